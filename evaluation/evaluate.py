"""One pass over a benchmark: predictions on the device, scores of all ranks together.

The caller brings a `predict` function; this module never sees a network. Pictures and predictions come from
`prediction_stream.py`. Semantic counts stay on the device; instance masks leave it as run borders, read in a thread
while the next picture is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from datasets.base import Benchmark, EvaluationItem
from datasets.coco import read_annotations
from evaluation.binary import BinaryResult, BinaryScores
from evaluation.coco import check_annotations, evaluate_coco
from evaluation.instances import Record
from evaluation.prediction_stream import Predict, Prediction, Refiner, predict_pictures
from evaluation.protocol import Protocol
from evaluation.records import RecordWriter, compute_on_main, gather_records
from evaluation.semantic import SemanticResult, SemanticScores
from utils.distributed import shard
from utils.errors import DataError

__all__ = ["EvaluationResult", "Predict", "Prediction", "evaluate_semantic_and_instances", "protocol_of"]
_OWN_ENTRIES = ("benchmark", "classes", "ignore index", "image size", "score size")  # those that `Protocol` names


@dataclass(frozen=True)
class EvaluationResult:
    """Everything measured; the same on all ranks, except that only rank zero holds the records."""

    semantic: SemanticResult | None  # None where the benchmark has no labels or is binary
    coco: dict[str, float] | None  # class-aware mask AP; None without instances
    coco_class_agnostic: dict[str, float] | None
    records: list[Record]  # all instances, by image id; empty on the other ranks
    protocol: Protocol
    seconds: float
    binary: BinaryResult | None = None  # of binary benchmarks with labels
    refined: SemanticResult | None = None  # of the labels after the refiner, if there is one
    refiner: str = ""  # its name

    @property
    def class_iou(self) -> Sequence[float] | None:
        """IoU of every class in the order of the protocol's names (NaN where absent); None without label scores."""
        return None if self.semantic is None else self.semantic.class_iou

    def scores(self) -> dict[str, float]:
        """All scores by name, as fractions; class-agnostic ones end in `_class_agnostic`, refined ones in `_crf`."""
        scores = {} if self.semantic is None else self.semantic.scores()
        if self.refined is not None:
            scores |= {f"{name}_{self.refiner}": value for name, value in self.refined.scores().items()}
        scores |= {} if self.binary is None else self.binary.scores()
        scores |= self.coco or {}
        return scores | {f"{name}_class_agnostic": value for name, value in (self.coco_class_agnostic or {}).items()}

    def refined_class_iou(self) -> dict[str, dict[str, float]]:
        """IoU of every class after the refiner as an entry of a results file; empty without a refiner."""
        if self.refined is None:
            return {}
        values = map(float, self.refined.class_iou)
        return {f"class_iou_{self.refiner}": dict(zip(self.protocol.category_names, values, strict=True))}


def protocol_of(benchmark: Benchmark, *, num_images: int | None = None, **entries: Any) -> Protocol:
    """The protocol of a benchmark.

    Args:
        benchmark: the reader.
        num_images: images scored, if not all.
        entries: entries of `Protocol` that the system knows (prompts, refiner, suppression, ...).
    """
    facts = dict(benchmark.protocol)
    extra = {name: text for name, text in facts.items() if name not in _OWN_ENTRIES}
    if benchmark.binary:
        extra["score"] = "IoU of every picture over the pixels labelled 0 or 1, averaged over pictures"
    return Protocol(
        benchmark=benchmark.name,
        split=benchmark.split,
        num_images=len(benchmark) if num_images is None else num_images,
        category_names=tuple(benchmark.category_names),
        ignore_index=benchmark.ignore_index,
        **{
            "image_size": facts.get("image size", "full resolution"),
            "score_size": facts.get("score size", "size of the ground truth"),
            **entries,
            "extra": {**extra, **entries.get("extra", {})},
        },
    )


def evaluate_semantic_and_instances(
    predict: Predict,
    benchmark: Benchmark,
    *,
    device: torch.device | str = "cpu",
    protocol: Protocol | None = None,
    with_instances: bool = True,
    class_agnostic: bool = False,
    max_dets: Sequence[int] = (1, 10, 100),
    max_images: int | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    refiner: Refiner | None = None,
    visit: Callable[[EvaluationItem, Prediction], None] | None = None,
) -> EvaluationResult:
    """Predict every picture of a benchmark and score it, sharing the pictures out over the ranks.

    Args:
        predict: (images, size) -> one `Prediction` per image: images are RGB, uint8, (B, h, w, 3) on the device, all to
            be scored at the same (H, W) = size. Called without gradients.
        benchmark: the reader; its annotation file is checked before the first picture.
        device: where predictions are made.
        protocol: printed with the scores; made from the benchmark if not given.
        with_instances: score instances, where the benchmark has annotations of them.
        class_agnostic: compare instances whatever their category, as well.
        max_dets: detections per image, for COCO AP.
        max_images: score only the first so many pictures.
        batch_size: pictures of equal size per call of `predict`; 1 as in the papers. Results do not depend on it.
        num_workers: loader processes per rank.
        refiner: a second label map for every picture, which is scored, too; needs predictions that are `refinable`.
        visit: called with every picture and its prediction (to draw or export it), on the rank that made it.

    Raises:
        DataError: an unreadable picture, label or annotation file, or annotations of other categories.
    """
    start = time.perf_counter()
    num_images = len(benchmark) if max_images is None else min(max_images, len(benchmark))
    annotations = _annotations(benchmark) if with_instances and benchmark.annotations_path is not None else None
    scores = _make_scores(benchmark, device)
    refined_scores = None if refiner is None else _make_scores(benchmark, "cpu")
    loading = {"device": device, "batch_size": batch_size, "num_workers": num_workers, "refiner": refiner}
    predictions = predict_pictures(
        predict, benchmark, shard(range(num_images)), **loading, description=f"evaluating on {benchmark.name}"
    )
    records: list[Record] = []
    with RecordWriter(benchmark, records) as writer, torch.inference_mode():
        for picture, prediction in predictions:
            if scores is not None:
                scores.update(picture.label.to(device, non_blocking=True), prediction.labels)
            if refined_scores is not None:
                refined_scores.update(picture.label, prediction.refined)
            if annotations is not None and prediction.instances is not None:
                writer.add(prediction.instances, picture.image_id)
            if visit is not None:
                visit(picture.item(), prediction)
    for counts in (scores, refined_scores):
        if counts is not None:
            counts.synchronise()
    records = gather_records(records)
    options = {"max_dets": max_dets, "image_ids": benchmark.image_ids[:num_images]}
    coco = _compare(annotations, records, **options)
    agnostic = _compare(annotations, records, use_categories=False, **options) if class_agnostic else None
    result = None if scores is None else scores.compute()
    return EvaluationResult(
        semantic=None if benchmark.binary else result,
        coco=coco,
        coco_class_agnostic=agnostic,
        records=records,
        protocol=replace(protocol or protocol_of(benchmark), num_images=num_images),
        seconds=time.perf_counter() - start,
        binary=result if benchmark.binary else None,
        refined=None if refined_scores is None else refined_scores.compute(),
        refiner="" if refiner is None else refiner.name,
    )


def _make_scores(benchmark: Benchmark, device: torch.device | str) -> SemanticScores | BinaryScores | None:
    if not benchmark.has_labels:
        return None
    return BinaryScores() if benchmark.binary else SemanticScores(benchmark.num_classes, device)


def _compare(annotations: dict[str, Any] | None, records: list[Record], **options: Any) -> dict[str, float] | None:
    """Mask AP, computed by rank zero for all; None without annotations."""
    return None if annotations is None else compute_on_main(lambda: evaluate_coco(annotations, records, **options))


def _annotations(benchmark: Benchmark) -> dict[str, Any]:
    document = read_annotations(benchmark.annotations_path)
    check_annotations(document, str(benchmark.annotations_path))
    known = {category["id"] for category in document["categories"]}
    raw = benchmark.raw_category_ids or range(benchmark.num_classes)
    lacking = [category for category in list(raw)[1:] if category not in known]
    if lacking:
        raise DataError(
            f"{benchmark.annotations_path}: the category ids {lacking[:10]} of {benchmark.name} are not in this file, "
            f"which lists {len(known)} categories. Use the annotation file of this benchmark."
        )
    return document
