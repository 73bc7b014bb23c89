"""Where masks lie: one per picture, or one per picture and category."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pseudo_labels.mask_stores import ExpertMaskStore, MaskStore
from pseudo_labels.store import write_mask


def store_of(root: Path, index_dir: Path, images: list[str], mask_dir: Path | None = None) -> ExpertMaskStore:
    """The first picture belongs to `cat` and `tv/monitor`, the others to `cat` alone."""
    paths = [index_dir / image for image in images]
    return ExpertMaskStore.of_archive(
        {"cat": paths, "tv/monitor": paths[:1]}, [index_dir], mask_dir, benchmark="voc2012"
    )


@pytest.mark.parametrize(
    ("index_dir", "image", "mask", "own"),
    [
        (
            "ImageNet2012/train",
            "n01440764/n01440764_1.JPEG",
            "ImageNet2012/train_pseudo_masks_experts/voc2012/n01440764/n01440764_1.json",
            "ImageNet2012/train_pseudo_masks_experts/voc2012/by_category/tv_monitor/n01440764/n01440764_1.json",
        ),
        (
            "pass/images",
            "0a.jpg",
            "pass/pseudo_masks_experts/voc2012/0a.json",
            "pass/pseudo_masks_experts/voc2012/by_category/tv_monitor/0a.json",
        ),
        (
            "mine",
            "a.jpg",
            "mine_pseudo_masks_experts/voc2012/a.jpg.json",
            "mine_pseudo_masks_experts/voc2012/by_category/tv_monitor/a.jpg.json",
        ),
        (
            "mine",
            "x/y/a.jpg",
            "mine_pseudo_masks_experts/voc2012/x/y/a.jpg.json",
            "mine_pseudo_masks_experts/voc2012/by_category/tv_monitor/x/y/a.jpg.json",
        ),
    ],
)
def test_places_of_experts_masks(tmp_path: Path, index_dir: str, image: str, mask: str, own: str) -> None:
    store = store_of(tmp_path, tmp_path / index_dir, [image, f"{image}2"])
    assert store.path(tmp_path / index_dir / image, "tv/monitor") == tmp_path / own
    assert store.path(tmp_path / index_dir / image, "cat") == Path(str(tmp_path / own).replace("tv_monitor", "cat"))
    alone = store_of(tmp_path, tmp_path / index_dir, ["other", image])
    assert alone.path(tmp_path / index_dir / image, "cat") == tmp_path / mask


@pytest.mark.parametrize("image", ["a.jpg", "x/a.jpg"])
def test_all_masks_lie_in_the_folder_that_is_named(tmp_path: Path, image: str) -> None:
    store = store_of(tmp_path, tmp_path / "mine", [image, "b.jpg"], tmp_path / "masks")
    assert store.path(tmp_path / "mine" / image, "cat") == tmp_path / "masks/by_category/cat" / f"{image}.json"
    assert store.path(tmp_path / "mine/b.jpg", "cat") == tmp_path / "masks/b.jpg.json"


def test_a_published_mask_serves_all_categories_until_they_have_their_own(tmp_path: Path) -> None:
    store = store_of(tmp_path, tmp_path / "mine", ["a.jpg"])
    image = tmp_path / "mine" / "a.jpg"
    own = store.path(image, "cat")
    assert store.own_path(image, "cat") == own
    write_mask(store.masks.path(image), np.ones((2, 3), np.uint8))
    assert store.path(image, "cat") == store.path(image, "tv/monitor") == store.masks.path(image)
    write_mask(own, np.zeros((2, 3), np.uint8))
    assert store.read(image, "cat").sum() == 0
    assert store.read(image, "tv/monitor").sum() == 6


def test_stores_reach_loader_processes(tmp_path: Path) -> None:
    store = store_of(tmp_path, tmp_path / "mine", ["a.jpg"])
    assert pickle.loads(pickle.dumps(store)) == store
    assert MaskStore((tmp_path,)).path(tmp_path / "a.jpg", "cat") == MaskStore((tmp_path,)).path(tmp_path / "a.jpg")


def test_categories_whose_file_names_are_alike_keep_masks_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "mine" / "a.jpg"
    archive = {"wall brick": [path], "wall/brick": [path]}
    store = ExpertMaskStore.of_archive(archive, [tmp_path / "mine"], None, benchmark="custom")
    assert store.own_path(path, "wall brick").parent.name == "wall_brick"
    assert store.own_path(path, "wall/brick") != store.own_path(path, "wall brick")
