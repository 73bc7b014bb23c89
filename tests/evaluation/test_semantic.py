"""Semantic scores against counting by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.semantic import SemanticScores, scores_from_confusion


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(1, 6), dtype=st.sampled_from(["uint8", "int16", "int64"]))
def test_confusion_equals_counting(seed: int, num_classes: int, dtype: str) -> None:
    generator = np.random.default_rng(seed)
    scores = SemanticScores(num_classes)
    wanted = np.zeros((num_classes, num_classes), np.int64)
    for _ in range(generator.integers(1, 4)):
        shape = tuple(generator.integers(1, 7, 2))
        labels = generator.choice([*range(num_classes + 2), 255], shape).astype(dtype)
        if dtype != "uint8":
            labels[0, 0] = -1
        predictions = generator.integers(0, num_classes, shape)
        for true, found in zip(labels.ravel(), predictions.ravel(), strict=True):
            if 0 <= true < num_classes:
                wanted[true, found] += 1
        scores.update(torch.from_numpy(labels), torch.from_numpy(predictions))
    assert np.array_equal(scores.confusion(), wanted)


def test_scores_by_hand() -> None:
    # Class 0: 2 right of 3, class 1: 1 right of 1 but one false alarm, class 2: absent everywhere, class 3: only found.
    confusion = np.array([[2, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = scores_from_confusion(confusion)
    assert result.class_iou[:2] == pytest.approx([2 / 3, 1 / 2])
    assert np.isnan(result.class_iou[2:]).all()
    assert result.mean_iou == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert result.pixel_accuracy == pytest.approx(3 / 4)
    assert result.mean_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert result.frequency_weighted_iou == pytest.approx(3 / 4 * 2 / 3 + 1 / 4 * 1 / 2)
    confusion[0, 3] = 1
    only_found = scores_from_confusion(confusion)
    assert only_found.class_iou[3] == 0
    assert only_found.mean_iou == pytest.approx((2 / 4 + 1 / 2 + 0) / 3)


def test_nothing_to_score_is_nan_not_zero() -> None:
    scores = SemanticScores(3)
    scores.update(torch.full((4, 4), 255), torch.zeros(4, 4, dtype=torch.long))
    assert all(math.isnan(value) for value in scores.compute().scores().values())


def test_pictures_and_batches_count_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (3, 6, 7), generator=generator)
    predictions = torch.randint(0, 5, (3, 6, 7), generator=generator)
    batch, single = SemanticScores(5), SemanticScores(5)
    batch.update(labels, predictions)
    for one, two in zip(labels, predictions, strict=True):
        single.update(one, two)
    assert np.array_equal(batch.confusion(), single.confusion())


def test_predictions_outside_the_classes_are_a_bug_and_reported() -> None:
    scores = SemanticScores(3)
    scores.update(torch.tensor([[0, 1, 255]]), torch.tensor([[3, 1, 9]]))
    with pytest.raises(ValueError, match="1 predicted pixels are not among the 3 classes"):
        scores.compute()


def test_sizes_have_to_agree() -> None:
    with pytest.raises(ValueError, match=r"labels have shape \(4, 5\), predictions \(5, 4\)"):
        SemanticScores(2).update(torch.zeros(4, 5), torch.zeros(5, 4))
