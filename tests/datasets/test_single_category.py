"""One category of a benchmark: which pictures are scored, how they are labelled, what is kept and what is believed."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from datasets.base import Benchmark
from datasets.build import build_benchmark
from datasets.single_category import find_categories
from evaluation.evaluate import protocol_of
from tests.datasets.small_folders import blocks, picture, write, write_voc
from utils.errors import ConfigError, DataError

LABELS = {"a": blocks([0, 8]), "b": blocks([8, 255, 12]), "c": blocks([12, 0]), "d": blocks([0])}


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "VOC2012", LABELS, "train")


def cats(voc: Path, **options) -> Benchmark:
    return build_benchmark("voc2012_category", voc, "train", category="cat", **options)


def test_pictures_of_the_category_with_binary_labels(voc: Path) -> None:
    before = sorted(voc.rglob("*"))
    benchmark = cats(voc)
    items = list(benchmark)
    assert [item.path.stem for item in items] == ["a", "b"]
    assert np.array_equal(items[0].label, blocks([0, 1]))
    assert np.array_equal(items[1].label, blocks([1, 255, 0]))
    assert items[0].label.dtype == np.int16
    assert benchmark.binary
    assert benchmark.name == "voc2012_category"
    assert benchmark.category_names == ["background", "cat"]
    assert benchmark.palette.tolist() == [[0, 0, 0], [64, 0, 0]]
    assert protocol_of(benchmark).extra == {
        "pictures": "those whose labels show 'cat'",
        "score": "IoU of every picture over the pixels labelled 0 or 1, averaged over pictures",
    }
    assert sorted(voc.rglob("*")) == before


def test_labels_are_scanned_once_for_all_categories(voc: Path, tmp_path: Path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    assert len(cats(voc, cache_dir=cache)) == 2
    assert [path.name for path in cache.iterdir()] == ["voc2012_train_categories.json"]
    source = build_benchmark("voc2012", voc, "train")
    reads = []
    monkeypatch.setattr(type(source), "read_label", lambda self, path, _: reads.append(path))
    assert find_categories(source, cache) == [[0, 8], [8, 12], [0, 12], [0]]
    assert not reads
    monkeypatch.undo()
    write(voc / "SegmentationClass" / "d.png", blocks([8, 8, 8]))
    write(voc / "JPEGImages" / "d.jpg", picture(4, 12))
    assert [path.stem for path in cats(voc, cache_dir=cache).image_paths] == ["a", "b", "d"]


def test_published_list_is_used_where_it_fits(voc: Path, monkeypatch, caplog) -> None:
    def publish(stems: list[str], label_stems: list[str] | None = None) -> None:
        content = {
            "p_imgs": [f"/home/them/VOC2012/JPEGImages/{stem}.jpg" for stem in stems],
            "p_gts": [f"/home/them/VOC2012/SegmentationClass/{stem}.png" for stem in label_stems or stems],
        }
        (voc / "cat_train.json").write_text(json.dumps(content))

    publish(["b"])
    assert [path.stem for path in cats(voc).image_paths] == ["b"]
    monkeypatch.setattr(logging.getLogger("unmasked"), "propagate", True)
    publish(["b", "2007_000032"])
    with caplog.at_level(logging.WARNING):
        assert [path.stem for path in cats(voc).image_paths] == ["a", "b"]
    assert "cat_train.json does not fit and is not used: 1 of its 2 pictures are not in the split, the first is" in (
        caplog.text
    )
    publish(["b"], ["a"])
    assert len(cats(voc)) == 2
    assert "has no equally long lists p_imgs and p_gts of the same pictures" in caplog.text
    (voc / "cat_train.json").write_text("[]")
    assert len(cats(voc)) == 2


def test_categories_of_other_benchmarks(tmp_path: Path) -> None:
    for name, value in (("dice/b", 255), ("UAV/z", 255)):
        write(tmp_path / "image" / f"{name}.jpg", picture(6, 5))
        write(tmp_path / "binary" / f"{name}.png", np.full((6, 5), value, np.uint8))
    (item,) = build_benchmark("coca_category", tmp_path, category="UAV")
    assert item.path.stem == "z"
    assert item.label.min() == item.label.max() == 1


def test_wrong_categories_are_named(voc: Path) -> None:
    with pytest.raises(DataError, match="voc2012 train: no picture shows 'dining table'"):
        build_benchmark("voc2012_category", voc, "train", category="dining_table")
    with pytest.raises(ConfigError, match=r"voc2012 has no category 'dogs' \(did you mean 'dog'\?\)"):
        build_benchmark("voc2012_category", voc, "train", category="dogs")
    with pytest.raises(ConfigError, match="benchmark voc2012_category needs the category that is scored"):
        build_benchmark("voc2012_category", voc, "train")
    path = write(voc / "SegmentationClass" / "c.png", blocks([77, 0]))
    with pytest.raises(DataError, match=rf"{path}: the label file holds 77 in 16 pixels"):
        cats(voc)
