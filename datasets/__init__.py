"""Benchmarks to evaluate on (`build_benchmark`), training samples (`IndexDataset`), and the built-in `shapes` world."""

from datasets.base import Benchmark, EvaluationItem
from datasets.batch import TrainingBatch, collate_samples, normalise_images
from datasets.build import BENCHMARK_NAMES, build_benchmark
from datasets.index_dataset import IndexDataset

__all__ = [
    "BENCHMARK_NAMES",
    "Benchmark",
    "EvaluationItem",
    "IndexDataset",
    "TrainingBatch",
    "build_benchmark",
    "collate_samples",
    "normalise_images",
]
