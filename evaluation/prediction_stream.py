"""Pictures of a benchmark from loader workers through a system's `predict`, and through a refiner beside it.

Used for scores (`evaluate.py`) and wherever predictions are written down. The refiner (a dense CRF, say) works on
earlier pictures in threads of its own while the network works on later ones; this module never sees a network.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datasets.base import Benchmark, EvaluationItem
from evaluation.instances import PredictedInstances
from utils.errors import UnreadableImageError
from utils.loader import load_batches
from utils.log import progress


@dataclass(frozen=True)
class Refinable:
    """What a refiner makes new labels from.

    Attributes:
        image: the picture, RGB, uint8, (H, W, 3). From `predict` it is on the device; a refiner gets the one that the
            loader left on the CPU.
        shape: of the scores, (N, H, W): they are large.
        make_scores: () -> scores, float32, on the device. Called when it is the picture's turn, perhaps in another
            thread.
    """

    image: Tensor
    shape: tuple[int, int, int]
    make_scores: Callable[[], Tensor]


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one picture."""

    labels: Tensor | None  # class of every pixel, any whole-number type, (H, W), on the device
    instances: PredictedInstances | None = None  # masks at (H, W)
    refinable: Refinable | None = None  # what a refiner needs
    refined: Tensor | None = None  # labels after the refiner, (H, W), on the CPU


class Refiner(Protocol):
    """Second thoughts about labels, picture by picture.

    Attributes:
        name: behind the names of its scores ("crf").
    """

    name: str

    def __call__(self, pictures: Iterable[Refinable]) -> Iterator[Tensor]:
        """Labels (H, W), on the CPU, in order; takes later pictures while it works on earlier ones."""


Predict = Callable[[Tensor, tuple[int, int]], Sequence[Prediction]]


class LoadedPicture(NamedTuple):
    """One picture on its way from a loader worker."""

    image: Tensor
    label: Tensor | None
    size: Sequence[int]
    image_id: int
    path: str

    def item(self) -> EvaluationItem:
        """The picture as its benchmark gave it."""
        label = None if self.label is None else self.label.numpy()
        return EvaluationItem(self.image.numpy(), label, tuple(self.size), self.image_id, Path(self.path))


@dataclass(frozen=True)
class _Unreadable:
    path: str
    reason: str


def predict_pictures(
    predict: Predict,
    benchmark: Benchmark,
    indices: Sequence[int],
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
    refiner: Refiner | None = None,
    refuse: Callable[[Path, str], None] | None = None,
    description: str = "predicting",
) -> Iterator[tuple[LoadedPicture, Prediction]]:
    """Predict pictures of a benchmark; pictures of other sizes may overtake each other.

    Args:
        predict: see `evaluate.evaluate_semantic_and_instances`.
        benchmark: the reader.
        indices: of the pictures.
        device: where predictions are made.
        batch_size: pictures of equal size per call of `predict`.
        num_workers: loader processes.
        refiner: gives every prediction its `refined` labels.
        refuse: called with path and reason for a picture that cannot be read, which is then left out; None: an error.
        description: of the progress.

    Raises:
        UnreadableImageError: a picture or label that cannot be read, unless there is `refuse`.
        DataError: whatever else the benchmark finds wrong.
    """
    device = torch.device(device)
    dataset = benchmark if refuse is None else _Tolerant(benchmark)
    loaded = load_batches(
        dataset,
        [[index] for index in indices],
        collate=_collate,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    loaded = progress(loaded, total=len(indices), description=description, unit="image")
    pairs = _predict_all(predict, _readable(loaded, refuse), batch_size, device)
    return pairs if refiner is None else _refine_all(refiner, pairs)


class _Tolerant(Dataset):
    """A benchmark whose unreadable pictures are told about in their place."""

    def __init__(self, benchmark: Benchmark) -> None:
        self.benchmark = benchmark

    def __getitem__(self, index: int) -> EvaluationItem | _Unreadable:
        try:
            return self.benchmark[index]
        except UnreadableImageError as error:
            return _Unreadable(str(self.benchmark.image_paths[index]), str(error))


def _collate(items: list[Any]) -> LoadedPicture | _Unreadable:
    """One item as tensors; the loader pins them."""
    item = items[0]
    if isinstance(item, _Unreadable):
        return item
    image = torch.from_numpy(np.ascontiguousarray(item.image))
    label = None
    if item.label is not None:
        wide = (
            item.label if item.label.dtype in (np.uint8, np.int16, np.int32, np.int64) else item.label.astype(np.int64)
        )
        label = torch.from_numpy(np.ascontiguousarray(wide))
    return LoadedPicture(image, label, tuple(item.size), item.image_id, str(item.path))


def _readable(
    loaded: Iterable[LoadedPicture | _Unreadable], refuse: Callable[[Path, str], None] | None
) -> Iterator[LoadedPicture]:
    for picture in loaded:
        if isinstance(picture, _Unreadable):
            refuse(Path(picture.path), picture.reason)
        else:
            yield picture


def _group(pictures: Iterable[LoadedPicture], batch_size: int) -> Iterator[list[LoadedPicture]]:
    """Collect pictures of equal sizes into batches, holding back at most four batches' worth."""
    waiting: dict[tuple[Any, ...], list[LoadedPicture]] = {}
    for picture in pictures:
        group = waiting.setdefault((tuple(picture.image.shape), tuple(picture.size)), [])
        group.append(picture)
        if len(group) == batch_size:
            yield waiting.pop((tuple(picture.image.shape), tuple(picture.size)))
        elif sum(map(len, waiting.values())) >= 4 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _predict_all(
    predict: Predict, pictures: Iterable[LoadedPicture], batch_size: int, device: torch.device
) -> Iterator[tuple[LoadedPicture, Prediction]]:
    for group in _group(pictures, batch_size):
        images = torch.stack([picture.image.to(device, non_blocking=True) for picture in group])
        predictions = predict(images, tuple(group[0].size))
        yield from zip(group, predictions, strict=True)


def _refine_all(
    refiner: Refiner, pairs: Iterable[tuple[LoadedPicture, Prediction]]
) -> Iterator[tuple[LoadedPicture, Prediction]]:
    """Let every prediction go through the refiner; those under way are kept without what it was given."""
    under_way: deque[tuple[LoadedPicture, Prediction]] = deque()

    def take() -> Iterator[Refinable]:
        for picture, prediction in pairs:
            under_way.append((picture, replace(prediction, refinable=None)))
            yield replace(prediction.refinable, image=picture.image)

    for refined in refiner(take()):
        picture, prediction = under_way.popleft()
        yield picture, replace(prediction, refined=refined)
