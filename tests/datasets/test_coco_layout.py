"""COCO's layout with own categories and no background: labels, names, both splits, and what users get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.build import build_benchmark
from evaluation.evaluate import protocol_of
from tests.datasets.small_folders import blocks, picture, write
from utils.errors import ConfigError, DataError

NAMES = ["sky", "road", "car"]


def write_layout(root: Path, labels: dict[str, np.ndarray], split: str = "val") -> Path:
    for name, label in labels.items():
        write(root / f"{split}2017" / f"{name}.jpg", picture(*label.shape))
        write(root / "annotations" / "semantic_segmentation_masks" / f"{name}.png", label)
    return root


def test_labels_count_from_the_first_name(tmp_path: Path) -> None:
    write_layout(tmp_path, {"b": blocks([0, 1, 2, 3, 255]), "a": blocks([3, 3])})
    write_layout(tmp_path, {"c": blocks([1])}, "train")
    benchmark = build_benchmark("coco_layout", tmp_path, categories=NAMES)
    assert [item.path.stem for item in benchmark] == ["a", "b"]
    assert benchmark[1].label[0, ::4].tolist() == [255, 0, 1, 2, 255]
    assert benchmark[1].image.shape == (4, 20, 3)
    assert (benchmark.num_classes, benchmark.category_names, benchmark.ignore_index) == (3, NAMES, 255)
    assert benchmark.palette.shape == (3, 3)
    assert benchmark.palette.any(axis=1).all()  # black is for no name
    assert protocol_of(benchmark).extra["other pixels"].startswith("those without a name")
    assert [item.path.stem for item in build_benchmark("coco_layout", tmp_path, "train", categories=NAMES)] == ["c"]


def test_labels_are_optional(tmp_path: Path) -> None:
    write_layout(tmp_path, {"a": blocks([1])})
    write(tmp_path / "train2017" / "b.jpg", picture(5, 6))
    (item,) = build_benchmark("coco_layout", tmp_path, "train", categories=NAMES, with_labels=None)
    assert item.label is None
    assert build_benchmark("coco_layout", tmp_path, categories=NAMES, with_labels=None).has_labels
    with pytest.raises(DataError, match=r"1 of 1 semantic label PNGs are missing: .*b\.png"):
        build_benchmark("coco_layout", tmp_path, "train", categories=NAMES)


def test_as_many_names_as_a_byte_can_tell(tmp_path: Path) -> None:
    write_layout(tmp_path, {"a": blocks([1, 254, 255])})
    names = [f"name {number}" for number in range(1, 301)]
    benchmark = build_benchmark("coco_layout", tmp_path, categories=names[:254])
    assert benchmark[0].label[0, ::4].tolist() == [0, 253, 255]
    assert benchmark.label_colours.shape == (256, 3)
    for count in (255, 256, 300):
        with pytest.raises(ConfigError, match=rf"received {count} names, but .* coco_layout takes 254 at most: its"):
            build_benchmark("coco_layout", tmp_path, categories=names[:count])


def test_no_label_of_the_layout_is_the_one_that_means_none(tmp_path: Path) -> None:
    write_layout(tmp_path, {"a": blocks([0, 254, 255])})
    names = ["background", *(f"name {number}" for number in range(1, 301))]
    benchmark = build_benchmark("coco2017", tmp_path, categories=names[:255], with_instances=False)
    assert benchmark[0].label[0, ::4].tolist() == [0, 254, 255]
    with pytest.raises(ConfigError, match=r"received 256 names with background, but .* take 255 at most: 255"):
        build_benchmark("coco2017", tmp_path, categories=names[:256], with_instances=False)


def test_what_users_get_wrong(tmp_path: Path) -> None:
    write_layout(tmp_path, {"a": blocks([4])})
    with pytest.raises(ConfigError, match="needs the names of its labels in their order"):
        build_benchmark("coco_layout", tmp_path)
    with pytest.raises(DataError, match=r"a\.png: the label file holds 4 in 16 pixels; expected 0 to 3, or 255"):
        build_benchmark("coco_layout", tmp_path, categories=NAMES)[0]
