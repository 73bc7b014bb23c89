"""The DeepLab benchmarks at tiny sizes: both ways are computed and compared inside the stages themselves."""

from __future__ import annotations

import pytest
import torch

from benchmarks import deeplab_step
from benchmarks.harness import discover
from networks.depthwise import DepthwiseConv3x3
from tests.benchmarks.test_zutis_stages import QuickContext


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"BACKBONE": "mobilenet", "NUM_CLASSES": 4, "SIZE": 48, "LABELLED_SIZE": 64, "LABELLED_CLASSES": (5, 30)}
    for name, value in tiny.items():
        monkeypatch.setattr(deeplab_step, name, value)


@pytest.mark.parametrize("stage", ["deeplab_step", "deeplab_evaluation"])
def test_stages_measure_both_ways(stage: str) -> None:
    measurements = list(discover()[stage](QuickContext(repeats=1, threads=1)))
    assert len(measurements) == 2
    for measurement in measurements:
        assert measurement.seconds > 0
        assert measurement.plain_seconds > 0
        assert measurement.name == stage
    assert measurements[0].limit_seconds > 0


def test_a_wrong_loss_or_label_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    context = QuickContext(repeats=1, threads=1)
    loss = deeplab_step.TrainingStep.loss
    monkeypatch.setattr(deeplab_step.TrainingStep, "loss", lambda self: 1.1 * loss(self))
    with pytest.raises(RuntimeError, match="training disagree"):
        list(deeplab_step.measure_step(context))
    monkeypatch.setattr(deeplab_step, "label_pixels", lambda logits, size: torch.zeros(1, *size, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="labelling disagree"):
        list(deeplab_step.measure_evaluation(context))


def test_the_plain_network_has_no_convolution_of_our_own() -> None:
    torch.manual_seed(0)
    network = deeplab_step.DeepLabV3Plus("mobilenet", 3).eval()
    plain, images = deeplab_step.with_library_convolutions(network), torch.randn(2, 3, 40, 48)
    assert not any(isinstance(module, DepthwiseConv3x3) for module in plain.modules())
    assert list(plain.state_dict()) == list(network.state_dict())
    with torch.inference_mode():
        assert torch.allclose(plain(images), network(images), atol=1e-5)
