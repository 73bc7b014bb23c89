"""Benchmark readers by the names used in configurations."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from datasets.base import Benchmark
from datasets.cityscapes import CityscapesBenchmark, CityscapesObjectBenchmark
from datasets.coca import CocaBenchmark
from datasets.coco import CocoBenchmark
from datasets.coco20k import Coco20kBenchmark
from datasets.coco_layout import CocoLayoutBenchmark
from datasets.coco_stuff import CocoStuffBenchmark
from datasets.imagenet_s import ImageNetSBenchmark
from datasets.kitti_step import KittiStepBenchmark
from datasets.pascal_context import PascalContextBenchmark
from datasets.single_category import SingleCategoryBenchmark
from datasets.voc import VocBenchmark
from utils.errors import ConfigError
from utils.naming import CATEGORY_SUFFIX

BENCHMARK_NAMES = (
    *("cityscapes", "cityscapes_object", "cityscapes_object_category", "coca", "coca_category", "coco2017"),
    *("coco2017_category", "coco20k", "coco_layout", "coco_stuff", "imagenet-s", "imagenet-s_category", "kitti_step"),
    *("pascal_context", "voc2012", "voc2012_category"),
)


def build_benchmark(
    name: str,
    root: str | Path,
    split: str = "val",
    num_categories: int | None = None,
    *,
    category: str | None = None,
    categories: Sequence[str] | None = None,
    with_labels: bool | None = True,
    with_instances: bool = True,
    cache_dir: str | Path | None = None,
) -> Benchmark:
    """Open a benchmark.

    Args:
        name: one of `BENCHMARK_NAMES`; those that end in `_category` score one category against everything else.
        root: dataset folder.
        split: of the dataset; "val" for all published scores but those of COCO-20K, which has one split.
        num_categories: for ImageNet-S: 50, 300 or 919 (background not counted); not needed by others.
        category: the category that a `_category` benchmark scores; not needed by others.
        categories: for datasets in COCO's layout with names of their own, in label order: background and the names
            for coco2017, the names for coco_layout.
        with_labels: whether labels are read, for COCO2017 and the benchmarks that ReCo predicts training labels of
            (cityscapes, coco_layout, coco_stuff, kitti_step, pascal_context); for these, None reads them where there
            are any.
        with_instances: COCO2017 only: whether instance annotations are read.
        cache_dir: where files that take time to make are kept: the subset of COCO-20K if the dataset folder is
            read-only, the categories of every picture for `_category` benchmarks.

    Returns:
        The benchmark; everything but the pixels has been checked.

    Raises:
        ConfigError: unknown name, category or number of categories.
        DataError: files are missing or wrong.
    """
    if name not in BENCHMARK_NAMES:
        near = difflib.get_close_matches(name, BENCHMARK_NAMES, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"there is no benchmark {name!r}{hint}. Known benchmarks: {', '.join(BENCHMARK_NAMES)}.")
    if name.endswith(CATEGORY_SUFFIX):
        if category is None:
            raise ConfigError(f"the benchmark {name} needs the category that is scored (single_category), got none.")
        whole = build_benchmark(
            *(name.removesuffix(CATEGORY_SUFFIX), root, split, num_categories),
            categories=categories,
            with_instances=False,
            cache_dir=cache_dir,
        )
        return SingleCategoryBenchmark(whole, category, list_dir=root, cache_dir=cache_dir)
    if name == "coco2017":
        return CocoBenchmark(
            root, split, categories=categories, with_labels=with_labels is not False, with_instances=with_instances
        )
    if name == "coco_layout":
        return CocoLayoutBenchmark(root, split, categories=categories, with_labels=with_labels)
    if name == "coco20k":
        return Coco20kBenchmark(root, cache_dir=cache_dir)
    if name == "imagenet-s":
        return ImageNetSBenchmark(root, split, num_categories=num_categories or 919)
    if name in _OPTIONAL_LABELS:
        return _OPTIONAL_LABELS[name](root, split, with_labels=with_labels)
    return _SIMPLE[name](root, split)


_SIMPLE = {"cityscapes_object": CityscapesObjectBenchmark, "coca": CocaBenchmark, "voc2012": VocBenchmark}
_OPTIONAL_LABELS = {
    "cityscapes": CityscapesBenchmark,
    "coco_stuff": CocoStuffBenchmark,
    "kitti_step": KittiStepBenchmark,
    "pascal_context": PascalContextBenchmark,
}
