"""The ZUTIS training loss and its gradients, against all pairs of queries and objects at full resolution.

Prediction before measuring (one thread): the plain way moves about ten tensors of 100 · 10 · 384² floats through memory
for each of 12 layers and pictures, 70 GB in all; ours needs 177 million resized pixels with two logarithms each, about
1.2 s. So 20 to 40 times faster, in a twentieth of the memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Context, Measurement, benchmark
from benchmarks.plain_zutis import plain_criterion
from training.losses import zutis_criterion

BATCH, LAYERS, QUERIES, GRID, SIZE, CATEGORIES, DIMENSION, OBJECTS = 2, 6, 100, 48, 384, 81, 512, 10
IGNORE_INDEX = 255


@benchmark("criterion")
def measure(context: Context) -> Iterator[Measurement]:
    """Forward and backward pass of the loss, for a batch of two training samples."""
    batch = make_outputs(context.generator())
    proposals, tokens = batch[0].requires_grad_(), batch[1].requires_grad_()

    def ours() -> Tensor:
        proposals.grad = tokens.grad = None
        loss = zutis_criterion(*batch, ignore_index=IGNORE_INDEX).loss
        loss.backward()
        return loss

    loss = ours().item()
    gradients = proposals.grad.clone(), tokens.grad.clone()
    start = time.perf_counter()
    plain_loss, *plain_gradients = plain_criterion(*batch, IGNORE_INDEX)
    plain_seconds = time.perf_counter() - start
    agree = abs(loss - plain_loss) <= 1e-4 * abs(plain_loss)
    for found, expected in zip(gradients, plain_gradients, strict=True):
        agree = agree and torch.allclose(found, expected, rtol=1e-3, atol=1e-6)
    if not agree:
        raise RuntimeError("the two ways of computing the loss disagree")
    del gradients, plain_gradients
    timing = context.time(ours)
    pixels = torch.rand(QUERIES, SIZE * SIZE)
    yield Measurement(
        name="criterion",
        workload=f"batch {BATCH}, {SIZE}², {OBJECTS} objects, {LAYERS} layers, forward + backward",
        seconds=timing.seconds,
        spread=timing.spread,
        plain_seconds=plain_seconds,
        limit="two logarithms per pixel of all resized proposals",
        limit_seconds=2 * BATCH * LAYERS * context.time(pixels.log).seconds,
        peak_mib=context.peak_memory(ours),
        plain_peak_mib=context.peak_memory(lambda: _one_layer(batch)),
        note="plain memory is that of one layer of one picture; as published all 12 stay until the backward pass",
    )


def _one_layer(batch: tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]) -> None:
    proposals, tokens, text, masks, semantic = batch
    plain_criterion(proposals[:1, :1], tokens[:1], text, masks[:1], semantic[:1], IGNORE_INDEX)


def make_outputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
    """Proposals, patch tokens, text, instance masks and labels of a made batch."""
    shape = (BATCH, LAYERS, QUERIES, GRID, GRID)
    proposals = (2 * torch.randn(shape, generator=generator)).sigmoid()
    tokens = F.normalize(torch.randn(BATCH, GRID, GRID, DIMENSION, generator=generator), dim=-1)
    text = F.normalize(torch.randn(CATEGORIES, DIMENSION, generator=generator), dim=-1)
    masks, semantic = make_targets(generator)
    return proposals, tokens, text, masks, semantic


def make_targets(generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Per picture ten rectangles of a sixth to half of the side, and label maps with an ignored border."""
    masks = [torch.zeros(OBJECTS, SIZE, SIZE, dtype=torch.bool) for _ in range(BATCH)]
    semantic = torch.zeros(BATCH, SIZE, SIZE, dtype=torch.int64)
    for image in range(BATCH):
        for instance in range(OBJECTS):
            height, width = torch.randint(SIZE // 6, SIZE // 2, (2,), generator=generator).tolist()
            top, left = torch.randint(0, SIZE // 2, (2,), generator=generator).tolist()
            box = (slice(top, top + height), slice(left, left + width))
            masks[image][(slice(0, instance), *box)] = False
            masks[image][(instance, *box)] = True
            semantic[(image, *box)] = 1 + instance
        semantic[image, : SIZE // 20] = IGNORE_INDEX
    return masks, semantic
