"""Scoring a recipe on its benchmark: inside training, and of a weight file. Shared by all recipes.

A recipe brings a function that predicts; folders, pictures, exported labels and printed protocols are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.base import Benchmark, EvaluationItem
from datasets.imagenet_s import write_imagenet_s_label
from evaluation.evaluate import EvaluationResult, Prediction, evaluate_semantic_and_instances, protocol_of
from evaluation.instances import write_coco_results
from evaluation.prediction_stream import Predict, Refiner
from evaluation.protocol import format_scores, write_results
from systems.evaluation_pictures import EvaluationPictures
from training.run_folder import RunFolder
from utils.distributed import is_main
from utils.log import get_logger
from utils.naming import CATEGORY_SUFFIX
from utils.settings import RetrievalSettings, yaml_values

logger = get_logger(__name__)
Visit = Callable[[EvaluationItem, Prediction], None]


def score(
    settings: RetrievalSettings,
    predict: Predict,
    benchmark: Benchmark,
    *,
    device: torch.device,
    with_instances: bool = False,
    protocol: Mapping[str, Any],
    refiner: Refiner | None = None,
    visit: Visit | None = None,
) -> EvaluationResult:
    """Run a segmenter over a benchmark.

    Args:
        settings: batches, workers, number of pictures.
        predict: (images uint8 (B, h, w, 3) on the device, size) -> one `Prediction` per picture.
        benchmark: the reader.
        device: where predictions are made.
        with_instances: whether instances are scored too; they must be predicted then.
        protocol: what the recipe has to say about its predictions (entries of `evaluation.protocol.Protocol`).
        refiner: a second label map for every picture, which is scored, too.
        visit: called with every picture and its prediction.
    """

    return evaluate_semantic_and_instances(
        predict,
        benchmark,
        device=device,
        protocol=protocol_of(benchmark, **protocol),
        with_instances=with_instances,
        class_agnostic=with_instances,
        max_images=settings.max_images,
        batch_size=settings.val_loader.batch_size,
        num_workers=settings.val_loader.num_workers,
        refiner=refiner,
        visit=visit,
    )


def selecting_score(benchmark: Benchmark | None) -> str | None:
    """Name of the score that chooses the best weights of a run; None where nothing is scored."""
    if benchmark is None or not benchmark.has_labels:
        return None
    return "iou" if benchmark.binary else "mean_iou"


@dataclass(frozen=True)
class TrainingEvaluation:
    """The evaluation inside training: the network as it is, on the whole benchmark, with pictures.

    Attributes:
        score: (network, visit) -> result.
        benchmark: the reader.
        run: where scores and pictures go.
    """

    score: Callable[[nn.Module, Visit], EvaluationResult]
    benchmark: Benchmark
    run: RunFolder

    def __call__(self, network: nn.Module, iteration: int) -> Mapping[str, float]:
        """Scores as fractions."""
        pictures = EvaluationPictures(self.run.pictures_dir / f"{iteration:06d}", self.benchmark)
        result = self.score(network, pictures.add)
        if is_main():
            write_results(
                self.run.path / "results.json",
                result.scores(),
                result.protocol,
                class_iou=result.class_iou,
                extra={"iteration": iteration, **result.refined_class_iou()},
            )
            logger.info("iteration %d\n%s", iteration, format_scores(result.scores(), result.protocol))
        return result.scores()


def evaluate_weights(
    settings: RetrievalSettings,
    benchmark: Benchmark,
    folder: RunFolder,
    score: Callable[[Visit], EvaluationResult],
) -> EvaluationResult:
    """Score weights and leave scores, protocol, pictures and instances in a folder of their own.

    Args:
        settings: of the evaluation, written beside the results.
        benchmark: the reader. ImageNet-S test has no labels: its predictions are exported as label PNGs instead.
        folder: see `evaluation_path`.
        score: visit -> result.
    """
    pictures = EvaluationPictures(folder.pictures_dir, benchmark)
    export = None if benchmark.has_labels or benchmark.name != "imagenet-s" else folder.path / "labels"

    def visit(item: EvaluationItem, prediction: Prediction) -> None:
        pictures.add(item, prediction)
        if export is not None:
            write_imagenet_s_label(benchmark.export_path(export, item.path), prediction.labels.cpu().numpy())

    result = score(visit)
    if is_main():
        _report(settings, result, folder, export)
    return result


def benchmark_path(settings: RetrievalSettings) -> Path:
    """Folder of all runs on a benchmark; `custom` without one."""
    if settings.dataset_name is None:
        return settings.output_dir / "custom"
    return settings.output_dir / benchmark_folder(settings.dataset_name, settings.num_categories) / settings.split


def benchmark_folder(dataset_name: str, num_categories: int | None) -> str:
    """A benchmark's name in paths; ImageNet-S, of which there are three, has its number: `imagenet-s50_category`."""
    base = dataset_name.removesuffix(CATEGORY_SUFFIX)
    number = f"{num_categories}" if base == "imagenet-s" and num_categories is not None else ""
    return f"{base}{number}{dataset_name.removeprefix(base)}"


def evaluation_path(settings: RetrievalSettings, weights: Path, *details: str) -> Path:
    """Folder of an evaluation, beside the runs of the benchmark: it never touches the folder of a training run.

    Args:
        settings: of the evaluation.
        weights: the run folder or file.
        details: what else tells this evaluation from others; empty ones are left out.
    """
    stem = weights.name if weights.is_dir() else weights.stem
    if weights.is_file() and (weights.parent / "config.yaml").is_file():
        stem = f"{weights.parent.name}_{stem}"
    return benchmark_path(settings) / "_".join(part for part in ("evaluation", stem, *details) if part)


def _report(settings: RetrievalSettings, result: EvaluationResult, folder: RunFolder, export: Path | None) -> None:
    """Print scores with their protocol and write them down."""
    folder.write_config(yaml_values(settings))
    write_results(
        folder.path / "results.json",
        result.scores(),
        result.protocol,
        class_iou=result.class_iou,
        extra={"seconds": result.seconds, **result.refined_class_iou()},
    )
    if result.coco is not None:
        write_coco_results(folder.path / "instances.json", result.records)
    if export is not None:
        logger.info("this split has no public labels: label PNGs for the benchmark's server are in %s", export)
    table = format_scores(result.scores(), result.protocol, class_iou=result.class_iou, num_classes=5)
    logger.info("scores in %%\n%s\nresults: %s", table, folder.path / "results.json")
