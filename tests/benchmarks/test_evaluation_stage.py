"""The evaluation stage compares two ways that give the same results; sizes are small here, timings are not judged."""

from __future__ import annotations

import pytest
import torch

from benchmarks import evaluation
from benchmarks.harness import Context


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SIZE": (48, 64), "GRID": (12, 16), "NUM_QUERIES": 40, "NUM_CATEGORIES": 7, "WIDTH": 16, "NUM_IMAGES": 3,
    }.items():  # fmt: skip
        monkeypatch.setattr(evaluation, name, value)


@pytest.mark.usefixtures("small")
def test_both_ways_agree_and_are_measured() -> None:
    found = list(evaluation.measure(Context(repeats=1)))
    assert [measurement.name for measurement in found] == ["evaluation", "coco_ap"]
    assert all(measurement.seconds > 0 and measurement.plain_seconds > 0 for measurement in found)
    assert found[0].limit_seconds > 0


@pytest.mark.usefixtures("small")
def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = evaluation.make_outputs(torch.Generator().manual_seed(0))
    assert evaluation.check_equal(outputs) > 0
    process = evaluation.process
    monkeypatch.setattr(evaluation, "process", lambda *arguments: process(*arguments)[1:])
    with pytest.raises(RuntimeError, match="results differ from the plain way"):
        evaluation.check_equal(outputs)
