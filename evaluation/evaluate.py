"""One pass over a benchmark: pictures from loader workers, predictions on the device, scores of all ranks together.

The caller brings a `predict` function; this module never sees a network. Semantic counts stay on the device; instance
masks leave it as run borders, read in a thread while the next picture is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.base import Benchmark, EvaluationItem
from datasets.coco import read_annotations
from evaluation.binary import BinaryResult, BinaryScores
from evaluation.coco import check_annotations, evaluate_coco
from evaluation.instances import PredictedInstances, Record
from evaluation.protocol import Protocol
from evaluation.records import RecordWriter, compute_on_main, gather_records
from evaluation.semantic import SemanticResult, SemanticScores
from utils.distributed import shard
from utils.errors import DataError
from utils.loader import load_batches
from utils.log import get_logger, progress

logger = get_logger(__name__)
_OWN_ENTRIES = ("benchmark", "classes", "ignore index", "image size", "score size")  # those that `Protocol` names


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one picture."""

    labels: Tensor | None  # class of every pixel, any whole-number type, (H, W), on the device
    instances: PredictedInstances | None = None  # masks at (H, W)


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

    @property
    def class_iou(self) -> Sequence[float] | None:
        """IoU of every class in the order of the protocol's names (NaN where absent); None without label scores."""
        return None if self.semantic is None else self.semantic.class_iou

    def scores(self) -> dict[str, float]:
        """All scores by name, as fractions; class-agnostic ones end in `_class_agnostic`."""
        scores = {} if self.semantic is None else self.semantic.scores()
        scores |= {} if self.binary is None else self.binary.scores()
        scores |= self.coco or {}
        return scores | {f"{name}_class_agnostic": value for name, value in (self.coco_class_agnostic or {}).items()}


Predict = Callable[[Tensor, tuple[int, int]], Sequence[Prediction]]


class _Picture(NamedTuple):
    """One picture on its way from a loader worker."""

    image: Tensor
    label: Tensor | None
    size: Sequence[int]
    image_id: int
    path: str

    def item(self) -> EvaluationItem:
        label = None if self.label is None else self.label.numpy()
        return EvaluationItem(self.image.numpy(), label, tuple(self.size), self.image_id, Path(self.path))


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
        visit: called with every picture and its prediction (to draw or export it), on the rank that made it.

    Raises:
        DataError: an unreadable picture, label or annotation file, or annotations of other categories.
    """
    start = time.perf_counter()
    num_images = len(benchmark) if max_images is None else min(max_images, len(benchmark))
    annotations = _annotations(benchmark) if with_instances and benchmark.annotations_path is not None else None
    scores = _make_scores(benchmark, device)
    pictures = _load(benchmark, shard(range(num_images)), num_workers, torch.device(device))
    records: list[Record] = []
    with RecordWriter(benchmark, records) as writer, torch.inference_mode():
        for picture, prediction in _predict_all(predict, pictures, batch_size, device):
            if scores is not None:
                scores.update(picture.label.to(device, non_blocking=True), prediction.labels)
            if annotations is not None and prediction.instances is not None:
                writer.add(prediction.instances, picture.image_id)
            if visit is not None:
                visit(picture.item(), prediction)
    if scores is not None:
        scores.synchronise()
    records = gather_records(records)
    coco, agnostic = None, None
    if annotations is not None:
        image_ids = benchmark.image_ids[:num_images]
        coco = compute_on_main(lambda: evaluate_coco(annotations, records, max_dets=max_dets, image_ids=image_ids))
        if class_agnostic:
            agnostic = compute_on_main(
                lambda: evaluate_coco(
                    annotations, records, max_dets=max_dets, image_ids=image_ids, use_categories=False
                )
            )
    result = None if scores is None else scores.compute()
    return EvaluationResult(
        semantic=None if benchmark.binary else result,
        coco=coco,
        coco_class_agnostic=agnostic,
        records=records,
        protocol=replace(protocol or protocol_of(benchmark), num_images=num_images),
        seconds=time.perf_counter() - start,
        binary=result if benchmark.binary else None,
    )


def _make_scores(benchmark: Benchmark, device: torch.device | str) -> SemanticScores | BinaryScores | None:
    if not benchmark.has_labels:
        return None
    return BinaryScores() if benchmark.binary else SemanticScores(benchmark.num_classes, device)


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


def _collate(items: list[EvaluationItem]) -> _Picture:
    """One item as tensors; the loader pins them."""
    item = items[0]
    image = torch.from_numpy(np.ascontiguousarray(item.image))
    label = None
    if item.label is not None:
        wide = (
            item.label if item.label.dtype in (np.uint8, np.int16, np.int32, np.int64) else item.label.astype(np.int64)
        )
        label = torch.from_numpy(np.ascontiguousarray(wide))
    return _Picture(image, label, tuple(item.size), item.image_id, str(item.path))


def _load(benchmark: Benchmark, indices: Sequence[int], num_workers: int, device: torch.device) -> Iterator[_Picture]:
    batches = [[index] for index in indices]
    pictures = load_batches(
        benchmark, batches, collate=_collate, num_workers=num_workers, pin_memory=device.type == "cuda"
    )
    return progress(pictures, total=len(batches), description=f"evaluating on {benchmark.name}", unit="image")


def _group(pictures: Iterable[_Picture], batch_size: int) -> Iterator[list[_Picture]]:
    """Collect pictures of equal sizes into batches, holding back at most four batches' worth."""
    waiting: dict[tuple[Any, ...], list[_Picture]] = {}
    for picture in pictures:
        group = waiting.setdefault((tuple(picture.image.shape), tuple(picture.size)), [])
        group.append(picture)
        if len(group) == batch_size:
            yield waiting.pop((tuple(picture.image.shape), tuple(picture.size)))
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _predict_all(
    predict: Predict, pictures: Iterable[_Picture], batch_size: int, device: torch.device | str
) -> Iterator[tuple[_Picture, Prediction]]:
    for group in _group(pictures, batch_size):
        images = torch.stack([picture.image.to(device, non_blocking=True) for picture in group])
        predictions = predict(images, tuple(group[0].size))
        yield from zip(group, predictions, strict=True)
