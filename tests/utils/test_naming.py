"""Folder names of experiments follow the release."""

from __future__ import annotations

import re

from datasets.metadata import category_table, table_names
from utils.naming import (
    architecture_name,
    category_file_name,
    category_file_names,
    experiment_name,
    namedmask_experiment_name,
)

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


def test_categories_in_file_names() -> None:
    assert category_file_name("tv/monitor") == "tv_monitor"
    assert category_file_name("dining table") == "dining_table"


def test_characters_that_other_file_systems_refuse() -> None:
    assert category_file_name('a:b*?"<>|\\c\n') == "a_b_______c_"
    assert category_file_name("..") == "__"
    assert category_file_name("St. Bernard e.V.") == "St._Bernard_e.V_"


def test_the_releases_names_of_all_benchmarks_stay() -> None:
    for table in table_names():
        names = category_table(table).names
        assert category_file_names(names) == {name: re.sub("[ /]", "_", name) for name in names}


def test_file_names_are_distinct() -> None:
    names = ["wall/brick", "wall brick", "Sky", "sky", "traffic light"]
    found = category_file_names(names)
    assert list(found) == names
    assert len({name.casefold() for name in found.values()}) == len(names)
    assert found["wall brick"] == "wall_brick"
    assert found["traffic light"] == "traffic_light"
    assert re.fullmatch("wall_brick_[0-9a-f]{8}", found["wall/brick"])
    assert category_file_names(reversed(names)) == found


def test_the_name_most_like_its_file_name_keeps_it() -> None:
    found = category_file_names(["wall brick", "wall_brick"])
    assert found["wall_brick"] == "wall_brick"
    assert found["wall brick"].startswith("wall_brick_")


def test_published_namedmask_folders() -> None:
    common = {"segmenter_name": "deeplabv3plus_resnet50", "num_images": 500, "scale_range": (0.1, 1.0)}
    name = namedmask_experiment_name(**common, max_num_masks=2, use_expert_masks=True)
    assert name == "deeplabv3plus_resnet50_n500_cp2_sr10100_ex_s0"
    name = namedmask_experiment_name(**common, category="potted plant")
    assert name == "deeplabv3plus_resnet50_n500_sr10100_potted_plant_s0"
    name = namedmask_experiment_name(
        **common, num_categories=50, cluster_id=0, category="cat", suffix="try", seed=2, debug=True
    )
    assert name == "deeplabv3plus_resnet50_n500_sr10100_in_s50_cid0_try_s2_debug"
