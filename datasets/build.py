"""Benchmark readers by the names used in configurations."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from datasets.base import Benchmark
from datasets.coca import CocaBenchmark
from datasets.coco import CocoBenchmark
from datasets.coco20k import Coco20kBenchmark
from datasets.imagenet_s import ImageNetSBenchmark
from utils.errors import ConfigError

BENCHMARK_NAMES = ("coca", "coco2017", "coco20k", "imagenet-s")


def build_benchmark(
    name: str,
    root: str | Path,
    split: str = "val",
    num_categories: int | None = None,
    *,
    categories: Sequence[str] | None = None,
    with_labels: bool = True,
    cache_dir: str | Path | None = None,
) -> Benchmark:
    """Open a benchmark.

    Args:
        name: one of `BENCHMARK_NAMES`.
        root: dataset folder.
        split: of the dataset; "val" for all published scores but those of COCO-20K, which has one split.
        num_categories: for ImageNet-S: 50, 300 or 919 (background not counted); not needed by others.
        categories: for datasets in COCO's layout with names of their own: background and the names in label order.
        with_labels: COCO2017 only: whether semantic label PNGs are read.
        cache_dir: COCO-20K only: where its subset file goes if the dataset folder is read-only.

    Returns:
        The benchmark; everything but the pixels has been checked.

    Raises:
        ConfigError: unknown name or number of categories.
        DataError: files are missing or wrong.
    """
    if name == "coca":
        return CocaBenchmark(root, split)
    if name == "coco2017":
        return CocoBenchmark(root, split, categories=categories, with_labels=with_labels)
    if name == "coco20k":
        return Coco20kBenchmark(root, cache_dir=cache_dir)
    if name == "imagenet-s":
        return ImageNetSBenchmark(root, split, num_categories=num_categories or 919)
    near = difflib.get_close_matches(name, BENCHMARK_NAMES, n=1, cutoff=0.3)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ConfigError(f"there is no benchmark {name!r}{hint}. Known benchmarks: {', '.join(BENCHMARK_NAMES)}.")
