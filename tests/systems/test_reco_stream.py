"""Users' pictures through ReCo's network and the threads of the CRF: in order, a few ahead, each as if alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evaluation.pictures import Segmentation
from networks.reco_prediction import RecoGrids
from pseudo_labels import dense_crf
from pseudo_labels.dense_crf import DenseCrfSettings
from systems.reco_predict import (
    CrfRefiner,
    PixelSegmenter,
    RecoPlusSegmenter,
    RecoSegmenter,
    nearest_rows,
    segment_stream,
)
from utils.errors import UserError

CPU = torch.device("cpu")
SIZES = [(20, 30), (33, 17), (1, 1), (20, 30), (9, 40), (64, 48), (20, 30)]


class _Colours(nn.Module):
    """Logits on a coarse grid that follow the colours of the picture."""

    def forward(self, images: Tensor) -> Tensor:
        coarse = nn.functional.adaptive_avg_pool2d(images, [max(side // 4, 1) for side in images.shape[-2:]])
        return torch.cat([coarse, -coarse[:, :1]], dim=1)


class _Grids(_Colours):
    def forward(self, images: Tensor) -> RecoGrids:
        return RecoGrids(super().forward(images).sigmoid())


SEGMENTERS = [RecoPlusSegmenter(_Colours(), CPU), RecoSegmenter(_Grids(), CPU)]


def draw(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (*SIZES[number % len(SIZES)], 3), dtype=np.uint8)


def refiner(num_threads: int = 2) -> CrfRefiner:
    return CrfRefiner(DenseCrfSettings(iterations=3), num_threads, num_waiting=100)


def same(one: Segmentation, other: Segmentation) -> bool:
    return np.array_equal(one.labels, other.labels) and one.instances == other.instances


@pytest.mark.parametrize("long_edge", [None, 16])
@pytest.mark.parametrize("with_crf", [True, False])
@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_every_picture_is_segmented_as_if_it_were_alone(
    segmenter: PixelSegmenter, with_crf: bool, long_edge: int | None
) -> None:
    pictures = [draw(number) for number in range(7)]
    crf = refiner(3) if with_crf else None
    together = list(segment_stream(segmenter, crf, iter(pictures), long_edge=long_edge))
    assert [found.labels.shape for found in together] == SIZES
    assert len({found.labels.tobytes() for found in together}) == 7
    for picture, found in zip(pictures, together, strict=True):
        (alone,) = segment_stream(segmenter, crf and refiner(1), [picture], long_edge=long_edge)
        assert same(found, alone)
        assert found.labels.min() >= 1
        assert {record["category_id"] for record in found.instances} == set(np.unique(found.labels))


@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_labels_are_those_of_network_and_crf(segmenter: PixelSegmenter) -> None:
    picture = draw(5)
    (plain,) = segment_stream(segmenter, None, [picture])
    (refined,) = segment_stream(segmenter, refiner(), [picture])
    with torch.inference_mode():
        (prediction,) = segmenter(torch.from_numpy(picture)[None], picture.shape[:2])
        (labels,) = refiner()([prediction.refinable])
    assert np.array_equal(plain.labels, prediction.labels + 1)
    assert np.array_equal(refined.labels, labels + 1)
    assert not np.array_equal(refined.labels, plain.labels)


def test_labels_of_the_crf_are_enlarged_to_the_picture() -> None:
    segmenter, picture = SEGMENTERS[0], np.ascontiguousarray(draw(5)[:, :48].repeat(2, axis=0).repeat(2, axis=1))
    (found,) = segment_stream(segmenter, refiner(), [picture], long_edge=64)
    assert found.labels.shape == (128, 96)
    assert np.array_equal(found.labels[::2, ::2], found.labels[1::2, 1::2])
    assert np.array_equal(nearest_rows(6, 3), [0, 0, 1, 1, 2, 2])


@pytest.mark.parametrize(("with_crf", "ahead"), [(True, 4), (False, 1)])
def test_few_pictures_are_taken_ahead(with_crf: bool, ahead: int) -> None:
    """Two threads, one that waits, and the one that the network looks at; whatever waits for a benchmark's batches."""
    taken = []

    def source() -> Iterator[np.ndarray]:
        for number in range(14):
            taken.append(number)
            yield draw(number)

    stream = segment_stream(SEGMENTERS[0], refiner() if with_crf else None, source())
    for given, found in enumerate(stream):
        assert found.labels.shape == SIZES[given % len(SIZES)]
        assert len(taken) - given <= ahead
    assert len(taken) == 14


def test_the_network_goes_on_while_the_crf_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CRF of the first picture ends only after the network has looked at the second."""
    second = threading.Event()
    infer = dense_crf._infer

    def wait(*arguments: object) -> object:
        assert second.wait(30)
        return infer(*arguments)

    monkeypatch.setattr(dense_crf, "_infer", wait)

    class Noticing(_Colours):
        calls = 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 2:
                second.set()
            return super().forward(images)

    segmenter = RecoPlusSegmenter(Noticing(), CPU)
    assert len(list(segment_stream(segmenter, refiner(1), [draw(0), draw(1)]))) == 2


def test_an_error_of_the_crf_or_of_the_pictures_ends_the_stream() -> None:
    class Infinite(_Colours):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) / 0

    with pytest.raises(UserError, match="NaN or infinity"):
        list(segment_stream(RecoPlusSegmenter(Infinite(), CPU), refiner(), [draw(0)] * 5))

    def cut_off() -> Iterator[np.ndarray]:
        yield draw(0)
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        list(segment_stream(SEGMENTERS[0], refiner(), cut_off()))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dense-crf")]
