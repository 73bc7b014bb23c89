"""The dense CRF against exact Gaussian kernels, and against itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from pseudo_labels import dense_crf as module
from pseudo_labels.crf_pool import PictureToLabel, label_pictures, num_processors
from pseudo_labels.dense_crf import DenseCrfSettings, crf_image, dense_crf, dense_crf_labels
from pseudo_labels.lanes import LANES
from pseudo_labels.network_input import normalise
from utils.errors import UserError


def two_halves(height: int = 24, width: int = 32) -> np.ndarray:
    """A dark left and a bright right half, with a little noise."""
    image = np.random.default_rng(0).integers(0, 6, (height, width, 3))
    image[:, width // 2 :] += 150
    return image.astype(np.uint8)


def noisy_scores(num_classes: int, size: tuple[int, int], strength: float = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, strength, (num_classes, *size)).astype(np.float32)


def half_scores(height: int = 24, width: int = 32) -> np.ndarray:
    """Two classes that favour the two halves of the picture, with wrong pixels everywhere."""
    scores = noisy_scores(2, (height, width))
    scores[0, :, : width // 2] += 0.7
    scores[1, :, width // 2 :] += 0.7
    return scores


def exact_mean_field(image: np.ndarray, scores: np.ndarray, settings: DenseCrfSettings) -> np.ndarray:
    """Mean field with the kernels themselves, all pairs of pixels, in float64."""
    num_classes, height, width = scores.shape
    rows, columns = (axis.reshape(-1, 1) for axis in np.mgrid[:height, :width])
    place, colour = np.hstack([columns, rows]), image.reshape(-1, 3).astype(float)
    kernels = []
    for weight, features in (
        (settings.gaussian_weight, place / settings.gaussian_sxy),
        (settings.bilateral_weight, np.hstack([place / settings.bilateral_sxy, colour / settings.bilateral_srgb])),
    ):
        kernel = np.exp(-0.5 * ((features[:, None] - features[None]) ** 2).sum(-1))
        norm = kernel.sum(1) ** -0.5
        kernels.append(weight * norm[:, None] * kernel * norm)

    def softmax(values: np.ndarray) -> np.ndarray:
        exponentials = np.exp(values - values.max(0))
        return exponentials / exponentials.sum(0)

    unary = -np.log(softmax(scores.reshape(num_classes, -1).astype(float)).clip(settings.min_probability, 1))
    marginals = softmax(-unary)
    for _ in range(settings.iterations):
        marginals = softmax(sum(marginals @ kernel for kernel in kernels) - unary)
    return marginals.reshape(scores.shape)


@pytest.mark.parametrize("settings", [DenseCrfSettings(), DenseCrfSettings(bilateral_sxy=8, bilateral_srgb=20)])
def test_lattice_approximates_the_exact_kernels(settings: DenseCrfSettings):
    image, scores = two_halves(), half_scores()
    once = replace(settings, iterations=1)
    exact = exact_mean_field(image, scores, once)
    assert np.abs(dense_crf(image, scores, once) - exact).mean() < 0.05
    assert np.abs(exact - exact_mean_field(image, scores, replace(settings, iterations=0))).mean() > 0.15
    labels, expected = dense_crf_labels(image, scores, settings), exact_mean_field(image, scores, settings).argmax(0)
    assert (labels == expected).mean() > 0.98


def test_labels_follow_the_edge_of_the_picture():
    image, scores = two_halves(), half_scores()
    expected = np.zeros((24, 32), int)
    expected[:, 16:] = 1
    assert (scores.argmax(0) != expected).mean() > 0.2
    np.testing.assert_array_equal(dense_crf_labels(image, scores), expected)


@pytest.mark.parametrize("num_classes", [1, 2, LANES, LANES + 1, 3 * LANES - 1])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (30, 1), (7, 5), (2, 2)])
def test_marginals_of_any_size_sum_to_1_and_labels_are_their_maximum(size: tuple[int, int], num_classes: int):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    scores = noisy_scores(num_classes, size)
    marginals = dense_crf(image, scores)
    assert marginals.dtype == np.float32
    assert marginals.shape == scores.shape
    np.testing.assert_allclose(marginals.sum(0), 1, atol=1e-6)
    np.testing.assert_array_equal(dense_crf_labels(image, scores), marginals.argmax(0))


def test_order_of_the_classes_does_not_matter():
    image, scores = two_halves(), noisy_scores(37, (24, 32), strength=2)
    order = np.random.default_rng(5).permutation(37)
    np.testing.assert_allclose(dense_crf(image, scores[order]), dense_crf(image, scores)[order], atol=1e-4)


def test_scores_may_be_logits_or_log_probabilities_or_tensors():
    image, scores = two_halves(), noisy_scores(5, (24, 32))
    tensor = torch.from_numpy(scores)
    expected = dense_crf(image, scores)
    np.testing.assert_allclose(dense_crf(image, torch.log_softmax(tensor, dim=0)), expected, atol=1e-4)
    np.testing.assert_array_equal(dense_crf(image, tensor), expected)
    np.testing.assert_array_equal(dense_crf(image, scores.transpose(2, 0, 1).copy().transpose(1, 2, 0)), expected)


@pytest.mark.parametrize(
    "settings", [DenseCrfSettings(iterations=0), DenseCrfSettings(gaussian_weight=0, bilateral_weight=0)]
)
def test_without_messages_the_bounded_softmax_is_left(settings: DenseCrfSettings):
    scores = noisy_scores(20, (24, 32), strength=4)
    bounded = torch.softmax(torch.from_numpy(scores), dim=0).clamp(min=1e-5)
    expected = (bounded / bounded.sum(dim=0)).numpy()
    np.testing.assert_allclose(dense_crf(two_halves(), scores, settings), expected, rtol=2e-6, atol=0)


def test_smallest_probability_is_a_setting():
    scores = np.zeros((2, 24, 32), np.float32)
    scores[0] = 50
    settings = DenseCrfSettings(iterations=0, min_probability=0.25)
    np.testing.assert_allclose(dense_crf(two_halves(), scores, settings)[1], 0.2, rtol=1e-6)


def test_equal_scores_stay_equal():
    marginals = dense_crf(two_halves(), np.full((3, 24, 32), 7, np.float32))
    np.testing.assert_allclose(marginals, 1 / 3, rtol=1e-5)
    assert not dense_crf_labels(np.full((9, 9, 3), 255, np.uint8), np.zeros((40, 9, 9), np.float32)).any()


def test_enormous_scores_give_certain_labels():
    scores = np.zeros((18, 24, 32), np.float32)
    scores[17], scores[3] = 3e38, -3e38
    marginals = dense_crf(two_halves(), scores)
    assert np.isfinite(marginals).all()
    assert (marginals[17] > 0.99).all()


def test_channel_order_matters_a_little():
    image, scores = np.random.default_rng(2).integers(0, 40, (40, 40, 3), dtype=np.uint8), noisy_scores(4, (40, 40))
    forward, backward = dense_crf(image, scores), dense_crf(np.ascontiguousarray(image[..., ::-1]), scores)
    assert np.abs(forward - backward).max() > 1e-4
    assert (forward.argmax(0) == backward.argmax(0)).mean() > 0.9


def test_crf_image_is_truncated_and_bgr():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    result = crf_image(normalise(torch.from_numpy(image)))
    assert result.flags.c_contiguous
    lost = image[..., ::-1].astype(int) - result
    assert set(np.unique(lost)) == {0, 1}


# Many pictures

Job = tuple[np.ndarray, np.ndarray]


def pictures(sizes: list[tuple[int, int]]) -> list[Job]:
    rng = np.random.default_rng(4)
    return [
        (rng.integers(0, 60, (*size, 3), dtype=np.uint8), noisy_scores(6 + i, size, seed=i))
        for i, size in enumerate(sizes)
    ]


def makers(jobs: list[Job], make: Callable[[Job], Job] = lambda job: job) -> Iterator[PictureToLabel]:
    return (PictureToLabel(job[1].shape, partial(make, job)) for job in jobs)


@pytest.mark.parametrize(("num_threads", "num_waiting"), [(1, 0), (1, 9), (3, 1), (None, 0)])
def test_threads_change_neither_results_nor_order(num_threads: int | None, num_waiting: int):
    jobs = pictures([(20, 30), (1, 5), (33, 17), (20, 30), (20, 30), (8, 8)])
    expected = [dense_crf_labels(image, scores) for image, scores in jobs]
    found = list(label_pictures(makers(jobs), num_threads=num_threads, num_waiting=num_waiting))
    assert len(found) == len(expected)
    for labels, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels, wanted)


@pytest.mark.parametrize("num_waiting", [0, 4])
def test_few_pictures_are_taken_and_fewer_made_ahead(num_waiting: int):
    taken, made = [], []

    def source() -> Iterator[PictureToLabel]:
        for i, job in enumerate(pictures([(9, 9)] * 12)):
            taken.append(i)
            yield PictureToLabel(job[1].shape, lambda i=i, job=job: (made.append(i), job)[1])

    for count, _ in enumerate(label_pictures(source(), num_threads=2, num_waiting=num_waiting), start=1):
        assert len(taken) <= min(count + 2 + num_waiting, 12)
    assert taken == sorted(made) == list(range(12))


def test_no_more_scores_are_in_memory_than_threads_work_on(monkeypatch: pytest.MonkeyPatch):
    made, finished, most = [], [], []
    infer = module._infer

    def notice(*arguments: object) -> object:
        result = infer(*arguments)
        finished.append(None)
        return result

    monkeypatch.setattr(module, "_infer", notice)

    def make(job: Job) -> Job:
        made.append(None)
        most.append(len(made) - len(finished))
        return job

    jobs = pictures([(9, 9)] * 12)
    list(label_pictures(makers(jobs, make), num_threads=2, num_waiting=9))
    assert max(most) <= 2


def test_a_batch_is_made_while_the_one_before_waits(monkeypatch: pytest.MonkeyPatch):
    """None of the first batch has to be finished before the second one is asked for."""
    may_go_on = threading.Event()
    infer = module._infer
    monkeypatch.setattr(module, "_infer", lambda *arguments: (may_go_on.wait(30), infer(*arguments))[1])

    def source() -> Iterator[PictureToLabel]:
        yield from makers(pictures([(9, 9)] * 4))
        may_go_on.set()
        yield from makers(pictures([(9, 9)] * 4))

    assert len(list(label_pictures(source(), num_threads=1, num_waiting=3))) == 8


def test_pictures_are_made_beside_the_crf(monkeypatch: pytest.MonkeyPatch):
    """The source may wait for the CRF of an earlier picture: both run at the same time."""
    started = threading.Event()
    infer = module._infer

    def notice(*arguments: object) -> object:
        started.set()
        return infer(*arguments)

    monkeypatch.setattr(module, "_infer", notice)

    def source() -> Iterator[PictureToLabel]:
        first, second = makers(pictures([(9, 9), (9, 9)]))
        yield first
        assert started.wait(30)
        yield second

    assert len(list(label_pictures(source(), num_threads=1))) == 2


def test_an_error_in_one_picture_reaches_the_caller():
    jobs = pictures([(9, 9)] * 4)
    jobs[2][1][5, 3, 3] = np.nan
    results = label_pictures(makers(jobs), num_threads=2)
    next(results)
    next(results)
    with pytest.raises(UserError, match="scores of class 5 hold NaN or infinity"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dense-crf")]


def test_no_pictures_and_wrong_numbers_of_threads():
    assert list(label_pictures([])) == []
    assert num_processors() >= 1
    with pytest.raises(ValueError, match="num_threads must be at least 1, received 0"):
        label_pictures([], num_threads=0)
    with pytest.raises(ValueError, match="num_waiting must not be below 0, received -1"):
        label_pictures([], num_waiting=-1)


def test_scores_of_another_shape_than_was_told():
    (job,) = pictures([(9, 9)])
    with pytest.raises(ValueError, match=r"scores of shape \(6, 9, 8\) were told, received \(6, 9, 9\)"):
        next(label_pictures([PictureToLabel((6, 9, 8), lambda: job)]))


# What users can get wrong


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(value: float):
    scores = noisy_scores(21, (24, 32))
    scores[19, 23, 31] = value
    with pytest.raises(UserError, match=r"scores of class 19 hold NaN or infinity.*precision fp32"):
        dense_crf(two_halves(), scores)


@pytest.mark.parametrize(
    ("image", "scores", "message"),
    [
        (np.zeros((4, 5, 3)), np.zeros((2, 4, 5)), r"image must be uint8 \(H, W, 3\), received float64 \(4, 5, 3\)"),
        (np.zeros((4, 5), np.uint8), np.zeros((2, 4, 5)), r"received uint8 \(4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), np.zeros((2, 0, 5)), r"received uint8 \(0, 5, 3\)"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((2, 5, 4)), r"scores must be \(C, 4, 5\), received \(2, 5, 4\)"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((0, 4, 5)), r"received \(0, 4, 5\)"),
        (np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5)), r"received \(4, 5\)"),
    ],
)
def test_wrong_shapes_are_refused(image: np.ndarray, scores: np.ndarray, message: str):
    for function in (dense_crf, dense_crf_labels):
        with pytest.raises(ValueError, match=message):
            function(image, scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gaussian_sxy": 0}, "gaussian_sxy must be above 0, received 0"),
        ({"bilateral_srgb": -1}, "bilateral_srgb must be above 0, received -1"),
        ({"iterations": -1}, "iterations must not be below 0, received -1"),
        ({"bilateral_weight": float("nan")}, "bilateral_weight must not be below 0, received nan"),
        ({"min_probability": 0}, "min_probability must lie between 0 and 1, received 0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        DenseCrfSettings(**settings)


@pytest.mark.parametrize("narrow", [{"gaussian_sxy": 1e-9}, {"bilateral_srgb": 1e-4}])
def test_kernels_far_too_narrow_are_refused(narrow: dict[str, float]):
    with pytest.raises(
        UserError, match=r"too narrow for this picture.*Raise gaussian_sxy, bilateral_sxy or bilateral_srgb"
    ):
        dense_crf(two_halves(), noisy_scores(2, (24, 32)), DenseCrfSettings(**narrow))
