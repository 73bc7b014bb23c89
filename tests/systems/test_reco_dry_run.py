"""Dry runs of ReCo, ReCo+ and dense CLIP: what is built and read, what is told, and that nothing is left or fetched."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from datasets.shapes.world import World
from networks import patch_encoders
from systems import reco
from tests.systems.tiny_reco import make_stuff_world, random_references, tiny_settings
from utils import download
from utils.download_table import FILES, RemoteFile
from utils.errors import DataError, UnreadableImageError, UserError

ENCODER = "deit_s_sin_dist.pth"
METHODS = ("method=reco", "method=reco_plus", "method=dense_clip")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_stuff_world(tmp_path_factory.mktemp("stuff"), num_stuff_index=6, num_cityscapes_stuff=4)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, and a network that must not be asked."""
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a dry run asked the network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def dry_run(world: World, output_dir: Path, *words: str) -> None:
    """Run it and see that nothing is left behind."""
    settings = tiny_settings(world, output_dir, *words)
    before = sorted(output_dir.rglob("*"))
    reco.train(settings, dry_run=True)
    assert sorted(output_dir.rglob("*")) == before


def test_networks_are_built_and_the_first_picture_is_read(world: World, tmp_path: Path, log_text) -> None:
    dry_run(world, tmp_path)
    for text in (
        "image encoder: 64 channels every 8 pixels",
        "dense CLIP: 32 channels every 8 pixels",
        "references to compute: 27",
        "_leftImg8bit.png, 320 x 320 pixels for the network, with labels",
    ):
        assert text in log_text.text


def test_dense_clip_alone_has_no_encoder(world: World, tmp_path: Path, log_text) -> None:
    dry_run(world, tmp_path, "method=dense_clip", "encoder_arch=nobody")
    assert "dense CLIP: 32 channels every 8 pixels" in log_text.text
    assert "references" not in log_text.text
    assert "image encoder" not in log_text.text


def test_what_would_be_downloaded_is_told(world: World, tmp_path: Path, log_text) -> None:
    path = random_references(tiny_settings(world, tmp_path, "encoder_arch=DeiT-S/16-SIN"), tmp_path / "r.safetensors")
    dry_run(world, tmp_path, "encoder_arch=DeiT-S/16-SIN", "dense_clip_arch=RN50x16")
    for text in (
        "image encoder: DeiT-S/16-SIN is left for the real run",
        "dense CLIP: RN50x16 is left for the real run",
    ):
        assert text in log_text.text
    dry_run(world, tmp_path, "encoder_arch=DeiT-S/16-SIN", f"reference_path={path}")
    assert f"references: {path}" in log_text.text


def test_references_of_another_width_are_refused(world: World, tmp_path: Path) -> None:
    path = random_references(tiny_settings(world, tmp_path), tmp_path / "r.safetensors", width=48)
    with pytest.raises(DataError, match="holds references of 48 channels, but the image encoder has 64"):
        dry_run(world, tmp_path, f"reference_path={path}")


@pytest.mark.parametrize("method", METHODS)
def test_a_damaged_first_picture_is_told(tmp_path: Path, method: str) -> None:
    world = make_stuff_world(tmp_path / "stuff", num_cityscapes_stuff=2, num_stuff_index=2)
    first = sorted((world.cityscapes_stuff_dir / "leftImg8bit" / "val").rglob("*.png"))[0]
    first.write_bytes(first.read_bytes()[:300])
    with pytest.raises(UnreadableImageError, match=first.name):
        dry_run(world, tmp_path / "runs", method)


def test_given_label_pngs_stand_for_all_of_reco(world: World, tmp_path: Path, log_text) -> None:
    labels = tmp_path / "dt"
    for path in (world.cityscapes_stuff_dir / "leftImg8bit" / "train").rglob("*.png"):
        labels.mkdir(exist_ok=True)
        name = path.name.replace("_leftImg8bit", "_gtFine_labelIds")
        Image.new("L", (320, 320)).save(labels / name)
    dry_run(world, tmp_path, "method=reco_plus", f"dir_pseudo_masks={labels}", "encoder_arch=DeiT-S/16-SIN")
    assert "image encoder" not in log_text.text
    assert "batch (two samples read)" in log_text.text


def test_pictures_to_retrieve_from_are_counted(world: World, tmp_path: Path, log_text) -> None:
    dry_run(world, tmp_path)
    assert f"index: 6 pictures to retrieve from in {world.stuff_index_dir / 'train'}" in log_text.text
    (tmp_path / "empty" / "train").mkdir(parents=True)
    for method in METHODS[:2]:
        with pytest.raises(DataError, match=r"dir_train_dataset: no pictures found in .*empty/train\."):
            dry_run(world, tmp_path, f"dir_train_dataset={tmp_path / 'empty'}", method)


@pytest.mark.parametrize("method", METHODS[:2])
def test_one_name_alone_is_told(world: World, tmp_path: Path, log_text, method: str) -> None:
    words = [method, "dataset_name=null", "dir_val_dataset=null"]
    dry_run(world, tmp_path, *words, "categories=[road, sky]")
    assert "every pixel of every picture" not in log_text.text
    dry_run(world, tmp_path, *words, "categories=[road]")
    (told,) = [record for record in log_text.records if "every pixel of every picture" in record.getMessage()]
    assert told.levelname == "WARNING"


def test_an_encoder_that_does_not_exist(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody"):
        dry_run(world, tmp_path, "encoder_arch=nobody")


def test_which_weights_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own.pth"
    file.write_bytes(b"12345")
    for name in ("DeiT-S/16-SIN", "RN50x16", "timm:vit_tiny_patch16_224", "dino_small", "open_clip:RN50/openai"):
        assert patch_encoders.needs_download(name)
    for name in ("DeiT-S/16-SIN", "timm:vit_tiny_patch16_224", "dino_small", "mocov2"):
        assert not patch_encoders.needs_download(name, file)
    assert patch_encoders.needs_download("RN50x16", file)  # a CLIP takes none in place of its own
    assert not patch_encoders.needs_download(file)
    assert not patch_encoders.needs_download(f"open_clip:RN50/{file}")
    monkeypatch.setitem(FILES, ENCODER, RemoteFile("https://example.org/a", "a.pth", "an encoder", num_bytes=5))
    kept = download.cache_dir() / "a.pth"
    kept.parent.mkdir()
    kept.write_bytes(b"123")  # cut off: it would be downloaded again
    assert patch_encoders.needs_download("DeiT-S/16-SIN")
    kept.write_bytes(b"12345")
    assert not patch_encoders.needs_download("DeiT-S/16-SIN")
    assert sorted(kept.parent.iterdir()) == [kept]
