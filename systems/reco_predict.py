"""Predictions of ReCo and ReCo+: label maps from a network, and beside it those of the dense CRF.

The network's scores at full size exist for a few pictures at a time only: they are made when the CRF is ready to take
them, and stay in this process.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.evaluate import Prediction
from evaluation.pictures import Segmentation
from evaluation.prediction_stream import Refinable
from evaluation.regions import region_results
from networks.deeplab_prediction import compute_logits, label_pixels
from networks.interpolation import resize
from networks.reco_prediction import RecoGrids, log_probabilities, predict_labels, score_maps
from pseudo_labels.crf_pool import PictureToLabel, label_pictures, num_processors
from pseudo_labels.dense_crf import DenseCrfSettings, crf_image
from utils.device import autocast
from utils.images import shrink_to
from utils.normalisation import normalise_images
from utils.settings import RecoSettings


@dataclass(frozen=True)
class PixelSegmenter(ABC):
    """Pictures in, label maps out, and what a CRF makes better ones of.

    Attributes:
        network: in evaluation mode, on the device.
        device: where it is.
        precision: "fp32", "bf16" or "fp16".
    """

    network: nn.Module
    device: torch.device
    precision: str = "fp32"

    def __call__(self, images: Tensor, size: tuple[int, int]) -> list[Prediction]:
        """Label pictures of one size.

        Args:
            images: RGB, uint8, (B, h, w, 3), on the device.
            size: (H, W) of the results; for the CRF that of the pictures.

        Returns:
            One prediction per picture: labels int64 (H, W), and what the CRF wants.
        """
        found = self.compute(images)
        return [
            Prediction(label, refinable=self.refinable(image, found, number, size))
            for number, (image, label) in enumerate(zip(images, self.labels(found, size), strict=True))
        ]

    def refinable(self, image: Tensor, found: Any, number: int, size: tuple[int, int]) -> Refinable:
        """What the CRF wants of one picture (h, w, 3) of a batch; of the batch it keeps what the network said alone."""

        @torch.inference_mode()
        def make_scores() -> Tensor:
            return self.scores(found, number, size)

        return Refinable(image, (self.num_classes(found), *size), make_scores)

    @abstractmethod
    def compute(self, images: Tensor) -> Any:
        """What the network says of pictures (B, h, w, 3), uint8, at its own grid."""

    @abstractmethod
    def labels(self, found: Any, size: tuple[int, int]) -> Tensor:
        """The best class of every pixel, (B, H, W), int64."""

    @abstractmethod
    def num_classes(self, found: Any) -> int:
        """N of the scores."""

    @abstractmethod
    def scores(self, found: Any, number: int, size: tuple[int, int]) -> Tensor:
        """Scores of one picture of a batch, whose softmax the CRF starts from: (N, H, W), float32."""

    @abstractmethod
    def certainty(self, found: Any, size: tuple[int, int]) -> Tensor:
        """How well the best class of every pixel fits, in (0, 1), of the first picture: (H, W)."""


@dataclass(frozen=True)
class RecoSegmenter(PixelSegmenter):
    """ReCo with references (`networks.reco.Reco`).

    Attributes:
        scored_as: label of every category, (N,), int64, on the device, where finer ones are predicted than scored.
    """

    scored_as: Tensor | None = None

    def compute(self, images: Tensor) -> RecoGrids:
        """See `PixelSegmenter`."""
        with autocast(self.device, self.precision):
            return self.network(normalise_images(images.permute(0, 3, 1, 2)))  # (B, h, w, 3) -> (B, 3, h, w)

    def labels(self, found: RecoGrids, size: tuple[int, int]) -> Tensor:
        """See `PixelSegmenter`."""
        labels = predict_labels(found, size)
        return labels if self.scored_as is None else self.scored_as[labels]

    def num_classes(self, found: RecoGrids) -> int:
        """See `PixelSegmenter`."""
        return found.similarity.shape[1]

    def scores(self, found: RecoGrids, number: int, size: tuple[int, int]) -> Tensor:
        """See `PixelSegmenter`; log-probabilities."""
        return log_probabilities(found.part(slice(number, number + 1)), size)[0]

    def certainty(self, found: RecoGrids, size: tuple[int, int]) -> Tensor:
        """See `PixelSegmenter`; the best of the scores at the larger grid."""
        grid = found.similarity.shape[-2:]
        return resize(score_maps(found.part(slice(0, 1)), grid).amax(dim=1), size)[0]


@dataclass(frozen=True)
class RecoPlusSegmenter(PixelSegmenter):
    """The DeepLabv3+ of ReCo+.

    Attributes:
        classes: the network's classes to choose between, in the order of the labels; None: all.
    """

    classes: Sequence[int] | None = None

    def compute(self, images: Tensor) -> Tensor:
        """See `PixelSegmenter`."""
        logits = compute_logits(self.network, images, precision=self.precision)
        return logits if self.classes is None else logits[:, list(self.classes)]

    def labels(self, found: Tensor, size: tuple[int, int]) -> Tensor:
        """See `PixelSegmenter`."""
        return label_pixels(found, size)

    def num_classes(self, found: Tensor) -> int:
        """See `PixelSegmenter`."""
        return found.shape[1]

    def scores(self, found: Tensor, number: int, size: tuple[int, int]) -> Tensor:
        """See `PixelSegmenter`; logits."""
        return resize(found[number], size)

    def certainty(self, found: Tensor, size: tuple[int, int]) -> Tensor:
        """See `PixelSegmenter`; the best probability."""
        return resize(found[:1].softmax(dim=1).amax(dim=1), size)[0]


@dataclass(frozen=True)
class CrfRefiner:
    """The dense CRF, on threads of this process.

    Attributes:
        settings: its constants.
        num_threads: pictures at a time.
        num_waiting: pictures that may wait for a thread while the next batch is predicted.
        scored_as: label of every category, (N,), where finer categories are predicted than scored.
        on_gpu: whether a GPU does the updates, which is the one that the network is on.
        name: of its scores.
    """

    settings: DenseCrfSettings
    num_threads: int
    num_waiting: int = 0
    scored_as: np.ndarray | None = None
    on_gpu: bool = False
    name: str = "crf"

    def __call__(self, pictures: Iterable[Refinable]) -> Iterator[Tensor]:
        """Labels (H, W), int64, in order.

        Raises:
            UserError: if the memory does not suffice; says the need, and what lowers it.
        """
        make = partial(crf_input, on_gpu=self.on_gpu)
        jobs = (PictureToLabel(picture.shape, partial(make, picture), self.on_gpu) for picture in pictures)
        labelled = label_pictures(jobs, self.settings, num_threads=self.num_threads, num_waiting=self.num_waiting)
        for labels in labelled:
            yield torch.from_numpy(labels if self.scored_as is None else self.scored_as[labels])


@torch.inference_mode()
def crf_input(picture: Refinable, *, on_gpu: bool = False) -> tuple[np.ndarray, np.ndarray | Tensor]:
    """What the CRF starts from: the picture, BGR, uint8, (H, W, 3), and its scores, float32, (N, H, W).

    Args:
        picture: with what makes the scores.
        on_gpu: leave the scores where the network is; else they come to the CPU.
    """
    normalised = normalise_images(picture.image.cpu().permute(2, 0, 1))  # (H, W, 3) -> (3, H, W)
    scores = picture.make_scores()
    return crf_image(normalised), scores if on_gpu else scores.cpu().numpy()


def make_refiner(
    settings: RecoSettings, device: torch.device, scored_as: np.ndarray | None = None
) -> CrfRefiner | None:
    """The CRF of the settings, for a network on a device; None if they switch it off."""
    if settings.crf is None:
        return None
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # they share the processors
    num_threads = settings.crf.num_threads or max(num_processors() // ranks_here, 1)
    # A batch waits while the network makes the next one.
    num_waiting, on_gpu = settings.val_loader.batch_size, settings.crf.device == "auto" and device.type == "cuda"
    return CrfRefiner(DenseCrfSettings(**settings.crf.constants()), num_threads, num_waiting, scored_as, on_gpu)


def describe_refiner(settings: RecoSettings) -> str:
    """The CRF in words, for protocols."""
    crf = settings.crf
    if crf is None:
        return "none"
    place = f"place {crf.gaussian_weight:g} x ({crf.gaussian_sxy:g} px)"
    colour = f"colour {crf.bilateral_weight:g} x ({crf.bilateral_sxy:g} px, {crf.bilateral_srgb:g} levels)"
    return f"scores with CRF: dense CRF, {crf.iterations} iterations, {place}, {colour}"


def segment_stream(
    segmenter: PixelSegmenter,
    refiner: CrfRefiner | None,
    pictures: Iterable[np.ndarray],
    *,
    long_edge: int | None = None,
) -> Iterator[Segmentation]:
    """Segment pictures in order; connected regions of one category are its instances.

    The network looks at the next pictures while the threads of the CRF work on earlier ones. Without a CRF there is one
    picture at a time.

    Args:
        segmenter: the network.
        refiner: the CRF; None: plain labels.
        pictures: RGB, uint8, (H, W, 3). Taken in the calling thread.
        long_edge: pictures with a longer side are shrunk to it for network and CRF; results have the picture's size.

    Yields:
        One for each picture. Labels count from 1; no pixel is 0.
    """
    if refiner is None:
        for picture in pictures:
            _, found = _look_at(segmenter, picture, long_edge)
            yield _segmentation(segmenter, found, picture.shape[:2])
        return
    under_way: deque[tuple[Any, tuple[int, int]]] = deque()

    def take() -> Iterator[Refinable]:
        for picture in pictures:
            small, found = _look_at(segmenter, picture, long_edge)
            under_way.append((found, picture.shape[:2]))
            yield segmenter.refinable(small, found, 0, tuple(small.shape[:2]))

    # Users' pictures may be large, and come one by one: a single one waits while the threads are busy.
    for refined in replace(refiner, num_waiting=1)(take()):
        yield _segmentation(segmenter, *under_way.popleft(), refined.numpy())


@torch.inference_mode()
def _look_at(segmenter: PixelSegmenter, picture: np.ndarray, long_edge: int | None) -> tuple[Tensor, Any]:
    """The picture as network and CRF see it, on the CPU, and what the network says of it."""
    small = torch.from_numpy(np.ascontiguousarray(shrink_to(picture, long_edge)))
    return small, segmenter.compute(small[None].to(segmenter.device))


@torch.inference_mode()
def _segmentation(
    segmenter: PixelSegmenter, found: Any, size: tuple[int, int], refined: np.ndarray | None = None
) -> Segmentation:
    """Label map and instances at the picture's size, from the network's word or from labels of the shrunk picture."""
    certainty = segmenter.certainty(found, size).cpu().numpy()
    if refined is None:
        labels = segmenter.labels(found, size)[0].cpu().numpy()
    else:
        rows, columns = (nearest_rows(*lengths) for lengths in zip(size, refined.shape, strict=True))
        labels = refined[rows[:, None], columns]
    label_map = labels.astype(np.int16) + 1
    return Segmentation(label_map, region_results(label_map, certainty))


def nearest_rows(length: int, source_length: int) -> np.ndarray:
    """The row of a shrunk picture that each of `length` rows shows: int64, (length,)."""
    return ((np.arange(length) + 0.5) * (source_length / length)).astype(np.int64)
