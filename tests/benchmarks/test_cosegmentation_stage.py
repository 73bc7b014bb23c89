"""The plain ways that the co-segmentation benchmark compares with give the same results, on tiny inputs."""

from __future__ import annotations

import torch

from benchmarks import cosegmentation
from benchmarks.harness import Context
from networks.reco_prediction import RecoGrids, predict_labels
from pseudo_labels.cosegmentation import find_seeds


def test_both_ways_agree_and_are_measured(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(5, 16, 3, 4, generator=generator), torch.rand(5, 3, 4, generator=generator)
    assert torch.equal(cosegmentation.plain_seeds(features, weights), find_seeds(features, weights))
    grids = RecoGrids(torch.rand(2, 6, 4, 4, generator=generator), torch.rand(2, 6, 2, 2, generator=generator))
    assert torch.equal(cosegmentation.plain_labels(grids, (9, 7)), predict_labels(grids, (9, 7)))
    monkeypatch.setattr(cosegmentation, "NUM_PICTURES", 4)
    monkeypatch.setattr(cosegmentation, "NUM_CATEGORIES", 3)
    monkeypatch.setattr(cosegmentation, "SIDE", 64)
    found = list(cosegmentation.measure(Context(repeats=1)))
    assert [measurement.name for measurement in found] == ["cosegmentation", "reco labels"]
    assert all(measurement.ratio > 0 for measurement in found)
