"""Wrong names of networks are told before anything is built, all at once, and only where the networks are needed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from networks.backbone_weights import read_backbone_weights
from networks.clip_dimensions import OPENAI_MODELS
from networks.patch_encoders import _FILES_ONLY
from networks.patch_encoders import ENCODERS as LOADED_ENCODERS
from utils.config import load_settings
from utils.errors import ConfigError, UserError
from utils.model_names import (
    ENCODERS,
    FILE_ENCODERS,
    OPENAI_CLIPS,
    backbone_problems,
    clip_problems,
    encoder_problems,
)
from utils.setting_types import Problem

CLIPS = "RN50, RN101, RN50x4, RN50x16, RN50x64, ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px"


def problems(folder: Path, system: str, *words: str, task: str = "train") -> list[str]:
    """Lines of the error; none if there is no error."""
    (folder / "c.yaml").write_text(f"system: {system}\ncategories: [road, sky]\ndir_train_dataset: .\n")
    try:
        load_settings(folder / "c.yaml", words, task=task)
    except ConfigError as error:
        return [line.strip().removeprefix("command line: ") for line in str(error).splitlines()[1:]]
    return []


def text(found: list[Problem]) -> str:
    """The only problem's words."""
    (problem,) = found
    return problem.text


def test_names_are_those_that_the_networks_know() -> None:
    assert set(ENCODERS) == set(LOADED_ENCODERS)
    assert FILE_ENCODERS == _FILES_ONLY
    assert OPENAI_CLIPS == OPENAI_MODELS


def test_good_names_pass(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.touch()
    timm_names = ("timm:resnet18", "timm:vit_small_patch16_224.dino", "timm:resnet50.tv_in1k")
    clip_names = ("RN50x16", "ViT-L/14@336px", str(file), "open_clip:ViT-B-16/openai", f"open_clip:RN50/{file}")
    for name in (*timm_names, *clip_names, *(name for name in ENCODERS if name not in FILE_ENCODERS)):
        assert encoder_problems(name, None) == []
    for name in (*FILE_ENCODERS, "timm:cspresnet50d"):
        assert encoder_problems(name, file) == []
    for name in clip_names:
        assert clip_problems("retrieval_clip", name) == []
    for name in (None, "torchvision", "dino", str(file), "timm:resnet50.a1_in1k", "timm:gluon_resnet50_v1b"):
        assert backbone_problems(name, "resnet50") == []


def test_bad_names_are_told_with_what_is_allowed(tmp_path: Path) -> None:
    assert text(encoder_problems("dino_smal", None)) == (
        "received 'dino_smal', expected one of DeiT-S/16-SIN, dino_small, dino_base, supervised, mocov2, swav, "
        "timm:MODEL, a CLIP (RN50, ..., open_clip:ARCHITECTURE/WEIGHTS), or an existing weight file "
        "(did you mean 'dino_small'?)"
    )
    (problem,) = encoder_problems("swav", None)
    assert problem.keys == ("encoder_weights", "encoder_arch")
    assert problem.text == "not set; swav has no download, expected the file with its weights"
    assert text(encoder_problems("swav", tmp_path / "no.pth")) == f"{tmp_path}/no.pth does not exist; expected a file"
    for name, words in (
        ("timm:resnet5o", "but timm has no such model (did you mean 'resnet"),
        ("timm:resnet50.nope", "but timm has no such weights; expected one of resnet50."),
        ("timm:cspresnet50d", "but timm has no such weights, expected a file"),
        ("open_clip:ViT-B-61/openai", "but open_clip has no such architecture (did you mean 'ViT-B-"),
        ("open_clip:ViT-B-16", "expected after the slash a file or one of openai, "),
        ("open_clip:ViT-B-16/nope", "expected after the slash a file or one of openai, "),
    ):
        assert text(encoder_problems(name, None)).replace(",", "", 1).startswith(f"received '{name}' {words}")
    assert text(clip_problems("dense_clip_arch", "ViT-B16")) == (
        f"received 'ViT-B16', expected one of {CLIPS}, open_clip:ARCHITECTURE/WEIGHTS, or an existing weight file "
        "(did you mean 'ViT-B/16'?)"
    )


@pytest.mark.parametrize(
    ("weights", "backbone", "line"),
    [
        ("/nonexistent.pth", "resnet50", "/nonexistent.pth does not exist; expected a file"),
        ("dina", "resnet50", "received 'dina', expected dino, torchvision, timm:<name>, or an existing file (did you"),
        ("dino", "resnet101", "dino is a ResNet-50, but the backbone is resnet101; expected torchvision, a file, or"),
        ("timm:nope", "resnet50", "received 'timm:nope', but timm has no such model"),
        ("timm:resnet50.nope", "resnet50", "received 'timm:resnet50.nope', but timm has no such weights; expected one"),
        ("timm:vit_tiny_patch16_224", "resnet50", "received 'timm:vit_tiny_patch16_224', expected a resnet50 of timm"),
        ("timm:mobilenetv2_100", "mobilenet", "received 'timm:mobilenetv2_100', but timm's MobileNets do not fit"),
    ],
)
def test_bad_weights_of_a_backbone(weights: str, backbone: str, line: str) -> None:
    assert text(backbone_problems(weights, backbone)).startswith(line)
    if "vit" not in weights:  # which would be downloaded
        with pytest.raises(UserError):
            read_backbone_weights(weights, backbone)


def test_all_of_them_are_told_at_once(tmp_path: Path) -> None:
    words = ["encoder_arch=foo", "dense_clip_arch=RN5O", "retrieval_clip=ViT", "backbone_weights=timm:nope"]
    told = problems(tmp_path, "reco", *words, "method=reco_plus")
    keys = ["retrieval_clip", "encoder_arch", "dense_clip_arch", "backbone_weights"]
    assert [line.split(": ")[0] for line in told] == keys
    assert [line.split(": ")[0] for line in problems(tmp_path, "reco", *words)] == keys[:3]
    (line,) = problems(tmp_path, "reco", "encoder_arch=mocov2")
    assert ": encoder_weights: not set; mocov2 has no download" in line
    words = ["backbone_weights=/nonexistent.pth", "retrieval_clip=ViT", "use_expert_pseudo_masks=true"]
    experts = "experts.segmenter_name=deeplabv3plus_resnet101"
    told = problems(tmp_path, "namedmask", *words, experts)
    assert [line.split(": ")[0] for line in told] == ["retrieval_clip", "backbone_weights"]
    (line,) = problems(tmp_path, "namedmask", words[2], experts)
    assert "backbone_weights: dino is a ResNet-50, but the backbone is resnet101" in line
    (line,) = problems(tmp_path, "zutis", "clip_arch=open_clip:nope/openai")
    assert line.startswith("clip_arch: received 'open_clip:nope/openai', but open_clip has no such architecture")


def test_networks_that_are_not_needed_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("timm", "open_clip"):
        monkeypatch.setitem(sys.modules, package, None)  # an import would fail
    (tmp_path / "labels").mkdir()
    scored = ["categories=null", f"dir_val_dataset={tmp_path}", "dataset_name=cityscapes"]
    names = ["encoder_arch=timm:nope", "dense_clip_arch=open_clip:nope", "backbone_weights=timm:nope"]
    assert problems(tmp_path, "reco", *scored, *names, "method=reco_plus", task="evaluate") == []
    assert problems(tmp_path, "reco", *scored, *names[1:], "dense_clip_inference=false", task="evaluate") == []
    assert problems(tmp_path, "reco", *names, "stop_after=retrieval") == []
    given = [f"dir_pseudo_masks={tmp_path / 'labels'}", "method=reco_plus", "backbone_weights=null"]
    assert problems(tmp_path, "reco", *names[:2], *given) == []
    (line,) = problems(tmp_path, "reco", *scored, "encoder_arch=foo", task="evaluate")
    assert line.startswith("encoder_arch: received 'foo'")
    scored[2:] = ["dataset_name=voc2012", "retrieval_clip=open_clip:nope"]
    assert problems(tmp_path, "namedmask", *scored, names[2], task="evaluate") == []
    assert problems(tmp_path, "namedmask", names[2], "stop_after=pseudo_masks") == []
