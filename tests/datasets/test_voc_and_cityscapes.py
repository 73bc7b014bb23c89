"""Readers of VOC2012 and of the objects of Cityscapes, and what users are told about wrong folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datasets.build import build_benchmark
from datasets.label_files import relabel
from datasets.metadata import benchmark_table, category_table
from evaluation.evaluate import protocol_of
from tests.datasets.small_folders import blocks, picture, write, write_cityscapes, write_voc
from utils.errors import ConfigError, DataError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_voc(tmp_path, {"2007_b": blocks([0, 1, 255]), "2007_a": blocks([20, 15])}, "val")
    write_voc(tmp_path, {"2008_c": blocks([8, 0])}, "train")
    return tmp_path


def test_voc_follows_the_list_of_the_split(voc: Path) -> None:
    benchmark = build_benchmark("voc2012", voc)
    items = list(benchmark)
    assert [item.path.stem for item in items] == ["2007_b", "2007_a"]
    assert np.array_equal(items[0].label, blocks([0, 1, 255]))
    assert np.array_equal(items[0].image, picture(4, 12))
    assert items[0].size == (4, 12)
    assert items[0].label.dtype == np.int16
    assert benchmark.num_classes == 21
    assert not benchmark.binary
    assert [item.path.stem for item in build_benchmark("voc2012", voc, "train")] == ["2008_c"]
    (voc / "ImageSets/Segmentation/trainval.txt").write_text("\n2008_c \n2007_a\n")
    assert len(build_benchmark("voc2012", voc, "trainval")) == 2


def test_wrong_voc_folders_are_described(voc: Path) -> None:
    with pytest.raises(DataError, match=r"splits 'train', 'val', 'trainval' here, got 'test'"):
        build_benchmark("voc2012", voc, "test")
    with pytest.raises(DataError, match=r"trainval\.txt: the list of the split's pictures does not exist"):
        build_benchmark("voc2012", voc, "trainval")
    with pytest.raises(DataError, match=r"JPEGImages: the folder with the VOC2012 pictures does not exist"):
        build_benchmark("voc2012", voc / "VOCdevkit")
    write(voc / "SegmentationClass" / "2009_x.png", blocks([0]))
    write(voc / "SegmentationClass" / "._2009_x.png", blocks([0]))
    with pytest.raises(
        DataError, match=r"SegmentationClass: 1 of 4 label files belong to no picture: 2009_x\.png\. Put"
    ):
        build_benchmark("voc2012", voc)
    (voc / "SegmentationClass" / "2009_x.png").unlink()
    (voc / "SegmentationClass" / "2007_a.png").unlink()
    with pytest.raises(
        DataError, match=r"1 of 2 label files are missing: .*2007_a\.png\. Their pictures are listed in .*val\.txt"
    ):
        build_benchmark("voc2012", voc)
    (voc / "JPEGImages" / "2007_b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pictures are missing: .*2007_b\.jpg"):
        build_benchmark("voc2012", voc)
    listing = voc / "ImageSets" / "Segmentation" / "val.txt"
    listing.write_text("\n \n")
    with pytest.raises(
        DataError, match=r"val\.txt: expected the names of the split's pictures, one per line, found none"
    ):
        build_benchmark("voc2012", voc)
    listing.write_text("a\nb\na\n")
    with pytest.raises(DataError, match=r"val\.txt: 'a' is listed more than once"):
        build_benchmark("voc2012", voc)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (blocks([0, 21, 254]), r"holds 21, 254 in 32 pixels; expected 0 to 20, or 255"),
        (
            np.zeros((4, 12, 3), np.uint8),
            r"one channel \(category ids\), got 3 channels\. VOC's labels are palette PNGs",
        ),
        (blocks([0, 1]), r"this label is 4x8, but its picture .* is 4x12"),
    ],
)
def test_wrong_voc_labels_are_named(voc: Path, label: np.ndarray, message: str) -> None:
    path = write(voc / "SegmentationClass" / "2007_b.png", label)
    with pytest.raises(DataError, match=rf"{path}: .*{message}"):
        build_benchmark("voc2012", voc)[0]


def test_cityscapes_pairs_by_name_and_counts_void_as_background(tmp_path: Path) -> None:
    labels = {"ulm/ulm_000001_000019": blocks([255, 0, 7, 17, 33]), "bonn/bonn_000000_000019": blocks([24, 26, 34])}
    write_cityscapes(tmp_path, labels)
    write(tmp_path / "gtFine/val/ulm/ulm_000001_000019_gtFine_instanceIds.png", blocks([9]))
    write(tmp_path / "gtFine/train/ulm/ulm_000007_000019_gtFine_labelIds.png", blocks([9]))
    benchmark = build_benchmark("cityscapes_object", tmp_path)
    items = list(benchmark)
    assert [item.path.parent.name for item in items] == ["bonn", "ulm"]
    assert np.array_equal(items[0].label, blocks([5, 7, 0]))
    assert np.array_equal(items[1].label, blocks([0, 0, 0, 1, 14]))
    assert items[1].label.dtype == np.int16
    assert benchmark.num_classes == 15
    assert protocol_of(benchmark).extra == {"other pixels": "stuff and void count as background, nothing is ignored"}
    for name in ("ulm", "köln"):
        write(tmp_path / f"gtFine/val/{name}/x_gtFine_labelIds.png", blocks([9]))
    with pytest.raises(DataError, match=r"gtFine/val: 2 of 4 label files belong to no picture: köln/x_gtFine_labelIds"):
        build_benchmark("cityscapes_object", tmp_path)
    (tmp_path / "gtFine/val/bonn/bonn_000000_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 label files are missing: .*bonn_000000_000019_gtFine_labelIds\.png"):
        build_benchmark("cityscapes_object", tmp_path)
    with pytest.raises(DataError, match=r"splits 'train', 'val' here, got 'test'"):
        build_benchmark("cityscapes_object", tmp_path, "test")
    with pytest.raises(DataError, match="leftImg8bit/train: the folder with the Cityscapes pictures does not exist"):
        build_benchmark("cityscapes_object", tmp_path, "train")


def test_stored_values_that_do_not_exist_are_named() -> None:
    table = category_table("kitti_step19")
    with pytest.raises(DataError, match=r"x\.png: the label file holds 19, 200 in 2 pixels; expected 0 to 18, 255\."):
        relabel(np.array([[0, 19, 200, 255]], np.uint8), table, Path("x.png"))
    with pytest.raises(DataError, match=r"holds 256 in 1 pixels"):
        relabel(np.array([[256, 0]], np.int32), category_table("cityscapes_object"), Path("x.png"))


def test_stored_values_are_the_map_the_other_way_round() -> None:
    table = category_table("cityscapes_object")
    assert table.stored_values()[1:] == [17, 18, 19, 20, *range(24, 34)]
    assert category_table("voc2012").stored_values() == list(range(21))


def test_table_of_one_category() -> None:
    table = benchmark_table("voc2012_category", category="tv_monitor")
    assert table.names == ("background", "tv/monitor")
    assert table.palette.tolist() == [[0, 0, 0], [0, 64, 128]]
    assert table.label_colours.shape == (256, 3)
    with pytest.raises(ConfigError, match=r"voc2012 has no category 'cats' \(did you mean 'cat'\?\)"):
        benchmark_table("voc2012_category", category="cats")
    with pytest.raises(ConfigError, match=r"voc2012 has no category 'background'"):
        benchmark_table("voc2012_category", category="background")
    with pytest.raises(ConfigError, match="dataset_name 'voc2012_category' needs the category that is scored"):
        benchmark_table("voc2012_category")
