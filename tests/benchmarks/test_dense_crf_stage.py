"""The plain way that the CRF benchmark compares with: the specification, word by word, in NumPy."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import dense_crf as stage
from benchmarks.bilateral import make_picture
from benchmarks.harness import Context
from pseudo_labels.dense_crf import DenseCrfSettings, dense_crf, dense_crf_labels


@pytest.mark.parametrize(
    ("size", "num_classes"), [((20, 28), 5), ((19, 23), 17), ((1, 1), 3), ((1, 7), 2), ((9, 1), 40), ((6, 6), 1)]
)
def test_both_ways_agree(size: tuple[int, int], num_classes: int):
    image, rng = make_picture(*size)[0], np.random.default_rng(3)
    scores = rng.normal(0, 2, (num_classes, *size)).astype(np.float32)
    once = replace(DenseCrfSettings(), iterations=1)
    np.testing.assert_allclose(dense_crf(image, scores, once), stage.plain_crf(image, scores, once), atol=2e-6)
    expected = stage.plain_crf(image, scores)
    np.testing.assert_allclose(dense_crf(image, scores), expected, atol=5e-4)
    assert (dense_crf_labels(image, scores) != expected.argmax(0)).mean() <= 0.005


def test_both_ways_agree_with_other_settings():
    image = np.random.default_rng(0).integers(0, 256, (21, 17, 3), dtype=np.uint8)
    scores = np.random.default_rng(1).normal(0, 1, (6, 21, 17)).astype(np.float32)
    settings = DenseCrfSettings(2.5, 1.5, 9, 40, 7, iterations=6, min_probability=0.01)
    np.testing.assert_allclose(dense_crf(image, scores, settings), stage.plain_crf(image, scores, settings), atol=5e-4)


def test_the_stage_measures_against_numpy_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    for name, value in (("SIZE", 32), ("NUMPY_SIZE", 16), ("CLASS_COUNTS", (3,))):
        monkeypatch.setattr(stage, name, value)
    monkeypatch.setattr("benchmarks.limits.REPEATS", 1)
    [measurement] = stage.measure(Context(repeats=1))
    assert "3 classes" in measurement.workload
    assert measurement.note == "plain: NumPy at 16x16, scaled"
    assert measurement.plain_seconds > measurement.seconds > 0
    assert measurement.limit_seconds > 0
