"""The ZUTIS benchmarks at tiny sizes: both ways are computed and compared inside the stages themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import criterion, predict, train_step
from benchmarks.harness import Context, Timing
from benchmarks.plain_zutis import plain_forward
from networks.clip_encoder import ClipVitEncoder
from networks.zutis import Zutis
from training.losses import zutis_criterion

TINY_VIT = {"width": 64, "num_layers": 1, "patch_size": 8, "native_grid": 4, "embed_dim": 16}


class QuickContext(Context):
    """Calls everything once: the numbers do not matter here."""

    def time(self, function: Callable[[], object], *, min_seconds: float = 0.0) -> Timing:
        return super().time(function, min_seconds=0.0)


@pytest.fixture
def context() -> Context:
    return QuickContext(repeats=1, threads=1)


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LAYERS": 2, "QUERIES": 12, "GRID": 12, "SIZE": 48, "CATEGORIES": 12, "DIMENSION": 16}.items():
        monkeypatch.setattr(criterion, name, value)
    for name, value in {"SIZE": (48, 64), "GRID": (12, 16), "QUERIES": 9, "CATEGORIES": 13, "DIMENSION": 16}.items():
        monkeypatch.setattr(predict, name, value)
    for name, value in {"SIZE": 48, "CATEGORIES": 12, "DIMENSION": 16, "ENCODER": TINY_VIT}.items():
        monkeypatch.setattr(train_step, name, value)


@pytest.mark.parametrize("stage", [criterion, predict, train_step])
def test_stages_measure_both_ways(stage: object, context: Context) -> None:
    measurements = list(stage.measure(context))
    assert measurements
    for measurement in measurements:
        assert measurement.seconds > 0
        assert measurement.plain_seconds > 0
        assert measurement.name == stage.__name__.split(".")[-1]


def test_a_wrong_criterion_would_be_noticed(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*batch: object, ignore_index: int) -> object:
        return zutis_criterion(*batch, ignore_index=ignore_index, weight_ce=2.0)

    monkeypatch.setattr(criterion, "zutis_criterion", wrong)
    with pytest.raises(RuntimeError, match="disagree"):
        list(criterion.measure(context))


def test_plain_network_is_the_same_network() -> None:
    torch.manual_seed(0)
    network = Zutis(ClipVitEncoder(**TINY_VIT), num_queries=5).train()
    images = torch.randn(2, 3, 40, 56)
    with torch.no_grad():
        for plain, ours in zip(plain_forward(network, images), network(images), strict=True):
            assert torch.allclose(plain, ours, atol=1e-4)
