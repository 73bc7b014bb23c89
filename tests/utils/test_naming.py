"""Folder names of experiments follow the release."""

from __future__ import annotations

from utils.naming import architecture_name, experiment_name

COMMON = {"num_images": 500, "scale_range": (0.1, 1.0), "random_duplicate": True}


def test_published_folders() -> None:
    dirs = ["/data/ImageNet2012/train", "/data/pass/images"]
    assert (
        experiment_name(clip_arch="ViT-B/16", index_dirs=dirs, **COMMON) == "vit_b_16_rd_n500_imagenet_pass_sr10100_s0"
    )


def test_every_part() -> None:
    name = experiment_name(
        clip_arch="RN50x4",
        index_dirs=["/my data/holiday pictures/"],
        num_images=20,
        scale_range=(0.29, 2.0),
        random_duplicate=False,
        stop_gradient=False,
        suffix="try",
        seed=3,
        debug=True,
    )
    assert name == "rn50x4_frozen_bn_no_sg_n20_holiday_pictures_sr28200_try_s3_debug"


def test_architecture_name() -> None:
    assert architecture_name("ViT-L/14@336px") == "vit_l_14_336px"
