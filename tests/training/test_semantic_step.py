"""The training step of segmenters with logits on a small grid: exact, 0 where nothing counts, loud on bad labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.batch import TrainingBatch, normalise_images
from networks.deeplab import DeepLabV3Plus
from training import losses as losses_module
from training.loop_settings import Step
from training.optimizers import deeplab_optimizer
from training.semantic_step import SemanticStep, semantic_loss
from utils.errors import DataError


def make_batch(num: int, side: int, num_classes: int, ignore_index: int, seed: int = 0) -> TrainingBatch:
    """Pictures (channels last in memory, as loaded) with labels in blocks, a part of them ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num, side, side, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    labels = torch.randint(0, num_classes, (num, side, side), generator=generator, dtype=torch.int16)
    labels[:, : side // 3] = ignore_index
    return TrainingBatch(images, labels, [torch.zeros(0, side, side, dtype=torch.bool)] * num, [torch.zeros(0)] * num)


class Scores(nn.Module):
    """The smallest segmenter: scores of averaged pixels."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, num_classes, 4, stride=4)

    def forward(self, images: Tensor) -> Tensor:
        return self.layer(images)


@pytest.mark.parametrize(("num_classes", "ignore_index"), [(2, 255), (21, 255), (81, 255), (301, 1000), (920, 1000)])
@pytest.mark.parametrize("chunk", [None, 3000])
def test_the_step_is_cross_entropy_of_full_size_logits(
    num_classes: int, ignore_index: int, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk is not None:
        monkeypatch.setattr(losses_module, "CHUNK_ELEMENTS", {"cpu": chunk})
    torch.manual_seed(0)
    network, batch = Scores(num_classes), make_batch(2, 22, num_classes, ignore_index)
    batch.semantic[0, -1, -1] = num_classes - 1  # the last class is there
    found = SemanticStep(ignore_index)(network, batch, Step(0, 1, None))["loss"]
    (gradient,) = torch.autograd.grad(found, network.layer.weight)
    full = F.interpolate(network(normalise_images(batch.images)), size=(22, 22), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, batch.semantic.long(), ignore_index=ignore_index)
    (wanted,) = torch.autograd.grad(expected, network.layer.weight)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert torch.allclose(gradient, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("num_pixels", [None, torch.zeros(1)])
def test_a_batch_without_any_label_has_no_loss_and_no_gradient(num_pixels: Tensor | None) -> None:
    network, batch = Scores(3), make_batch(2, 12, 3, 255)
    batch.semantic[:] = 255
    loss = SemanticStep(255)(network, batch, Step(0, 1, num_pixels))["loss"]
    assert loss.item() == 0
    loss.backward()
    assert network.layer.weight.grad.abs().max() == 0


def test_parts_of_a_step_weigh_pixels_as_the_whole_batch_does() -> None:
    torch.manual_seed(0)
    network, whole, step = Scores(4), make_batch(4, 16, 4, 255), SemanticStep(255)
    whole.semantic[0] = 255  # the parts differ in their number of pixels
    parts = [
        TrainingBatch(whole.images[rows], whole.semantic[rows], [], [])
        for rows in (slice(0, 1), slice(1, 2), slice(2, 4))
    ]
    mean_counts = torch.stack([step.counts(part).float() for part in parts]).mean(0)
    together = step(network, whole, Step(0, 1, step.counts(whole).float()))["loss"]
    alone = step(network, whole, Step(0, 1, None))["loss"]
    assert torch.allclose(together, alone)
    split = torch.stack([step(network, part, Step(0, 3, mean_counts))["loss"] for part in parts]).mean()
    assert torch.allclose(split, alone, rtol=1e-5)


def test_labels_beyond_the_classes_are_refused() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 0, :5] = 80
    message = r"5 pixels have labels outside 0 \.\.\. 20 that are not the ignore index \(255\)"
    with pytest.raises(DataError, match=message):
        semantic_loss(torch.zeros(1, 21, 2, 2), labels, 255)


def test_mixed_precision_leaves_the_loss_in_float32() -> None:
    torch.manual_seed(0)
    network, batch = Scores(5), make_batch(2, 16, 5, 255)
    exact = SemanticStep(255)(network, batch, Step(0, 1, None))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = SemanticStep(255)(network, batch, Step(0, 1, None))["loss"]
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, exact, rtol=0.02)


def test_the_optimiser_is_adam_with_l2_on_everything() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    optimizer = deeplab_optimizer([{"params": list(layer.parameters()), "lr": 1e-3}])
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in layer.named_parameters():  # a gradient of decay alone: the first step is lr against its sign
        decay = 2e-4 * before[name]
        expected = before[name] - 1e-3 * decay / (decay.abs() + 1e-8)
        assert torch.allclose(parameter, expected, atol=1e-6)
    group = optimizer.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 2e-4)


def test_deeplab_learns_one_batch() -> None:
    torch.manual_seed(0)
    network, batch, step = DeepLabV3Plus("mobilenet", 2).train(), make_batch(2, 32, 2, 255), SemanticStep(255)
    batch.semantic[:, 11:21], batch.semantic[:, 21:] = 0, 1
    optimizer = deeplab_optimizer(network.parameter_groups())
    losses = []
    for iteration in range(8):
        loss = step(network, batch, Step(iteration, 1, None))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())
