"""Benchmarks of ReCo: pairing by name, central squares, stored values, splits without labels, names of predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from datasets.base import Benchmark
from datasets.build import build_benchmark
from datasets.central_square import resize_square, sample_square
from datasets.metadata import benchmark_table, category_table, prediction_table
from evaluation.evaluate import Prediction, evaluate_semantic_and_instances, protocol_of
from tests.datasets.small_folders import blocks, picture, write, write_cityscapes
from utils.errors import DataError, UnreadableImageError


def write_kitti(root: Path, maps: dict[str, np.ndarray], split: str = "val") -> Path:
    for name, label in maps.items():
        write(root / split / f"{name}.png", picture(*label.shape))
        colours = np.stack([label, np.full_like(label, 3), np.full_like(label, 77)], axis=-1)
        write(root / "panoptic_maps" / split / f"{name}.png", colours)
    return root


def write_stuff(root: Path, labels: dict[str, np.ndarray]) -> Path:
    for name, label in labels.items():
        write(root / "images" / "val2017" / f"{name}.jpg", picture(*label.shape))
        write(root / "annotations" / "val2017" / f"{name}.png", label)
    listing = root / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{name}\n" for name in labels))
    return root


def write_stuff_10k(root: Path, labels: dict[str, np.ndarray]) -> Path:
    base = root.with_name(f"{root.name}10k")
    (base / "annotations").mkdir(parents=True)
    (base / "imageLists").mkdir()
    for name, label in labels.items():
        write(base / "images" / f"{name}.jpg", picture(*label.shape))
        savemat(base / "annotations" / f"{name}.mat", {"S": label, "captions": "a"})
    (base / "imageLists" / "train.txt").write_text("".join(f"{name}\n" for name in labels))
    return root


def write_context(root: Path, labels: dict[str, np.ndarray]) -> Path:
    for name, label in labels.items():
        write(root / "JPEGImages" / f"{name}.jpg", picture(*label.shape))
        write(root / "SegmentationClassContext" / f"{name}.png", label)
    listing = root / "ImageSets" / "SegmentationContext" / "val.txt"
    listing.parent.mkdir(parents=True)
    listing.write_text("".join(f"{name}\n" for name in labels))
    return root


def labels_of(benchmark: Benchmark) -> list[list[int]]:
    return [np.unique(item.label).tolist() for item in benchmark]


@pytest.mark.parametrize("size", [(320, 320), (500, 321), (200, 283), (1024, 2048), (7, 5), (480, 963)])
def test_squares_are_those_of_a_resize_and_a_crop(size: tuple[int, int]) -> None:
    image, side = picture(*size), 320
    height, width = (int(side * length / min(size)) for length in size)
    top, left = round((height - side) / 2), round((width - side) / 2)
    for resampling, square in (
        (Image.Resampling.NEAREST, sample_square(image, side)),
        (Image.Resampling.BILINEAR, resize_square(image, side, Image.Resampling.BILINEAR)),
    ):
        plain = np.asarray(Image.fromarray(image).resize((width, height), resampling))
        assert np.array_equal(square, plain[top : top + side, left : left + side])
    label = image[..., 0].astype(np.int16) - 1
    assert np.array_equal(sample_square(label, side), sample_square(image, side)[..., 0].astype(np.int16) - 1)


def test_cityscapes_on_the_central_square(tmp_path: Path) -> None:
    raw = np.zeros((50, 100), np.uint8)
    raw[:, 25:50], raw[:, 50:75], raw[:, 75:] = 7, 33, 255
    write_cityscapes(tmp_path, {"ulm/b": raw, "bonn/z": np.full((50, 100), 8, np.uint8)})
    benchmark = build_benchmark("cityscapes", tmp_path)
    items = list(benchmark)
    assert [item.path.parent.name for item in items] == ["bonn", "ulm"]
    assert items[1].image.shape == (320, 320, 3)
    assert items[1].size == items[1].label.shape == (320, 320)
    assert items[1].label.dtype == np.int16
    assert np.array_equal(items[1].label, np.repeat([[0] * 160 + [26] * 160], 320, axis=0))
    assert labels_of(benchmark)[0] == [1]
    assert benchmark.num_classes == 27
    assert benchmark.prediction_table is benchmark.table
    protocol = protocol_of(benchmark)
    assert protocol.image_size == "shorter side 320 (nearest), central 320x320 square"
    assert protocol.score_size == "the same 320x320 square (labels: nearest)"
    assert benchmark.protocol["classes"] == "27"


def test_void_is_not_scored(tmp_path: Path) -> None:
    raw = np.zeros((40, 40), np.uint8)
    raw[:20], raw[20:30] = 9, 10
    write_cityscapes(tmp_path, {"ulm/b": raw})

    def predict(images: torch.Tensor, size: tuple[int, int]) -> list[Prediction]:
        assert images.shape == (1, 320, 320, 3)
        return [Prediction(torch.full(size, 2))]

    result = evaluate_semantic_and_instances(predict, build_benchmark("cityscapes", tmp_path))
    assert result.scores()["pixel_accuracy"] == pytest.approx(2 / 3)
    assert result.protocol.ignore_index == -1


def test_kitti_at_its_own_size(tmp_path: Path) -> None:
    write_kitti(tmp_path, {"0002/000001": blocks([0, 255, 18]), "0002/000000": blocks([5]), "0001/000009": blocks([7])})
    benchmark = build_benchmark("kitti_step", tmp_path)
    items = list(benchmark)
    assert [f"{item.path.parent.name}/{item.path.stem}" for item in items] == [
        "0001/000009",
        "0002/000000",
        "0002/000001",
    ]
    assert np.array_equal(items[2].label, np.repeat(np.repeat([[0, -1, 18]], 4, axis=0), 4, axis=1))
    assert items[2].size == (4, 12)
    assert benchmark.export_path("out", items[2].path) == Path("out/0002/000001.png")
    write(tmp_path / "panoptic_maps/val/0001/000009.png", blocks([3]))
    with pytest.raises(
        DataError, match=r"000009\.png: expected an RGB panoptic map \(red = class\), got shape \(4, 4\)"
    ):
        benchmark[0]
    write_kitti(tmp_path, {"0001/000009": blocks([19])})
    with pytest.raises(DataError, match=r"000009\.png: the label file holds 19 in 16 pixels; expected 0 to 18, 255"):
        benchmark[0]


def test_coco_stuff_validates_on_the_curated_list(tmp_path: Path) -> None:
    root = write_stuff(tmp_path / "stuff", {"9": blocks([0, 255]), "4": blocks([181, 11])})
    write(root / "images" / "val2017" / "5.jpg", picture(4, 4))
    write(root / "annotations" / "val2017" / "5.png", blocks([1]))
    benchmark = build_benchmark("coco_stuff", root)
    assert [item.path.stem for item in benchmark] == ["9", "4"]
    coarse = category_table("coco_stuff27").label_map
    assert labels_of(benchmark) == [[-1, 9], sorted({int(coarse[181]), int(coarse[11])})]
    assert benchmark.num_classes == 27
    fine = benchmark.prediction_table
    assert fine.num_classes == 171
    assert fine is prediction_table("coco_stuff")
    assert fine.scored_as[fine.names.index("road")] == benchmark.category_names.index("ground")
    assert "171 predicted by name count as the 27 that are scored" in protocol_of(benchmark).extra["finer categories"]


def test_what_converters_leave_beside_coco_stuffs_labels_is_no_label(tmp_path: Path) -> None:
    root = write_stuff(tmp_path / "stuff", {"000000000139": blocks([0, 255])})
    write(root / "annotations" / "val2017" / "000000000139_labelTrainIds.png", blocks([1, 2]))
    benchmark = build_benchmark("coco_stuff", root)
    assert [path.name for path in benchmark.label_paths] == ["000000000139.png"]
    assert labels_of(benchmark) == [[-1, 9]]
    write(root / "annotations" / "val2017" / "000000000285.png", blocks([1]))
    with pytest.raises(DataError, match=r"val2017: 1 of 2 label files belong to no picture: 000000000285\.png\. Put"):
        build_benchmark("coco_stuff", root)
    root = write_stuff_10k(root, {"COCO_train2014_000000000036": blocks([1])})
    annotations = tmp_path / "stuff10k" / "annotations"
    savemat(annotations / "class_names.mat", {"names": "a"})
    assert len(build_benchmark("coco_stuff", root, "train")) == 1
    savemat(annotations / "COCO_val2014_000000000042.mat", {"S": blocks([1])})
    with pytest.raises(DataError, match=r"1 of 2 label files belong to no picture: COCO_val2014_000000000042\.mat"):
        build_benchmark("coco_stuff", root, "train")
    (tmp_path / "stuff" / "annotations" / "val2017" / "000000000139.png").rename(tmp_path / "stuff" / "139_ids.png")
    with pytest.raises(DataError, match=r"1 of 1 label files are missing: .*/000000000139\.png"):
        build_benchmark("coco_stuff", root)


def test_every_fine_category_has_a_coarse_one() -> None:
    fine, coarse = category_table("coco_stuff171"), category_table("coco_stuff27")
    assert fine.scored_as.shape == (171,)
    assert set(fine.scored_as.tolist()) == set(range(27))
    assert benchmark_table("coco_stuff") is coarse
    assert (coarse.label_map[:182] >= 0).all()
    assert coarse.label_map[255] == -1


def test_coco_stuff_trains_on_the_folder_beside(tmp_path: Path) -> None:
    root = write_stuff_10k(tmp_path / "stuff", {"COCO_train2014_3": np.array([[0, 1], [182, 2]], np.uint8)})
    benchmark = build_benchmark("coco_stuff", f"{root}/", "train")
    (item,) = benchmark
    assert np.unique(item.label).tolist() == sorted({-1, 9, 11, int(category_table("coco_stuff27").label_map[181])})
    assert item.path.parent.parent.name == "stuff10k"
    assert benchmark.export_path("out", item.path) == Path("out/COCO_train2014_3.png")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"T": np.zeros((2, 2), np.uint8)}, r"expected a map 'S' of ids 0 \(unlabelled\) to 182, found none"),
        ({"S": np.full((2, 2), 183, np.uint8)}, r"expected a map 'S' of ids .* found shape \(2, 2\), largest 183"),
    ],
)
def test_wrong_mat_files_are_named(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    root = write_stuff_10k(tmp_path / "stuff", {"x": blocks([1])})
    path = tmp_path / "stuff10k" / "annotations" / "x.mat"
    savemat(path, content)
    with pytest.raises(DataError, match=rf"{path}: {message}"):
        build_benchmark("coco_stuff", root, "train")[0]


@pytest.mark.parametrize("content", [b"", b"no such format", b"MATLAB 5.0 MAT-file" + bytes(40)])
def test_damaged_mat_files_are_named(tmp_path: Path, content: bytes) -> None:
    root = write_stuff_10k(tmp_path / "stuff", {"x": blocks([1])})
    path = tmp_path / "stuff10k" / "annotations" / "x.mat"
    path.write_bytes(content)
    with pytest.raises(UnreadableImageError, match=rf"{path}: this label file is damaged"):
        build_benchmark("coco_stuff", root, "train")[0]


def test_pascal_context_counts_from_one(tmp_path: Path) -> None:
    write_context(tmp_path, {"b": blocks([0, 1, 59]), "a": blocks([5])})
    benchmark = build_benchmark("pascal_context", tmp_path)
    assert [item.path.stem for item in benchmark] == ["b", "a"]
    assert benchmark[0].label.shape == (320, 320)
    assert np.array_equal(benchmark[0].image, resize_square(picture(4, 12), 320, Image.Resampling.BILINEAR))
    assert benchmark.protocol["image size"].startswith("shorter side 320 (bilinear)")
    wide = build_benchmark("pascal_context", write_context(tmp_path / "wide", {"c": blocks([0, 1, 59, 3], side=8)}))
    assert labels_of(wide) == [[0, 58]]


WRITERS = {
    "cityscapes": (lambda root: write_cityscapes(root, {"ulm/b": blocks([7])}, "train"), "gtFine"),
    "kitti_step": (lambda root: write_kitti(root, {"0001/000000": blocks([7])}, "train"), "panoptic_maps"),
    "coco_stuff": (lambda root: write_stuff_10k(root / "stuff", {"b": blocks([7])}), "stuff10k/annotations"),
}
EXPORTED = {"cityscapes": "b_gtFine_labelIds.png", "kitti_step": "0001/000000.png", "coco_stuff": "b.png"}


@pytest.mark.parametrize("name", WRITERS)
def test_pictures_to_predict_need_no_labels(tmp_path: Path, name: str) -> None:
    make, labels_dir = WRITERS[name]
    root = make(tmp_path)
    assert build_benchmark(name, root, "train", with_labels=None).has_labels
    labels = tmp_path / labels_dir
    labels.rename(tmp_path / "elsewhere")
    for with_labels in (None, False):
        benchmark = build_benchmark(name, root, "train", with_labels=with_labels)
        (item,) = benchmark
        assert item.label is None
        assert item.size == item.image.shape[:2]
        assert not benchmark.has_labels
        assert benchmark.export_path("out", item.path) == Path("out", EXPORTED[name])
    with pytest.raises(DataError, match=r"the folder with the labels does not exist\. Expected layout"):
        build_benchmark(name, root, "train")


def test_missing_and_extra_labels_are_named(tmp_path: Path) -> None:
    root = write_kitti(tmp_path / "kitti", {"0001/000000": blocks([7]), "0001/000001": blocks([7])})
    write(root / "panoptic_maps/val/0009/000000.png", blocks([7]))
    with pytest.raises(
        DataError, match=r"panoptic_maps/val: 1 of 3 label files belong to no picture: 0009/000000\.png"
    ):
        build_benchmark("kitti_step", root)
    (root / "panoptic_maps/val/0001/000001.png").unlink()
    with pytest.raises(DataError, match=r"1 of 2 panoptic maps are missing: .*0001/000001\.png"):
        build_benchmark("kitti_step", root)
    root = write_stuff(tmp_path / "stuff", {"9": blocks([0])})
    write(root / "annotations/val2017/10.png", blocks([0]))
    with pytest.raises(DataError, match=r"val2017: 1 of 2 label files belong to no picture: 10\.png"):
        build_benchmark("coco_stuff", root)
    root = write_context(tmp_path / "context", {"9": blocks([0])})
    (root / "SegmentationClassContext/9.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 label files are missing: .*9\.png\. Their pictures are listed in"):
        build_benchmark("pascal_context", root)
    with pytest.raises(DataError, match=r"COCO-Stuff has the splits 'train', 'val' here, got 'test'"):
        build_benchmark("coco_stuff", root, "test")
    with pytest.raises(DataError, match=r"KITTI-STEP has the splits 'train', 'val' here, got 'test'"):
        build_benchmark("kitti_step", root, "test")
    with pytest.raises(DataError, match=r"Pascal Context has the splits 'train', 'val' here, got 'test'"):
        build_benchmark("pascal_context", root, "test")
