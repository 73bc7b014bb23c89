"""One optimiser step of ZUTIS with ViT-B/16, against the step as the paper's code takes it.

The plain step: forward pass with tokens resized before they are projected and attention matrices written out, loss over
all pairs at full resolution, backward pass, AdamW one tensor at a time, and training scores from full-size logits at
every iteration. Ours does the same update; scores are taken every few hundred iterations only, so none here.

Prediction before measuring (one thread, batch 2): the network's own matrix products take about 0.9 TFLOP, which both
ways need; the loss adds 40 to 80 s to the plain way and 2 s to ours. So 4 to 6 times faster.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.criterion import BATCH, CATEGORIES, DIMENSION, IGNORE_INDEX, SIZE, make_targets
from benchmarks.harness import Context, Measurement, benchmark
from benchmarks.plain_zutis import plain_criterion, plain_forward, plain_training_scores
from networks.clip_encoder import ClipVitEncoder
from networks.zutis import Zutis
from training.losses import zutis_criterion
from training.optimizers import zutis_optimizer

ENCODER = {"width": 768, "num_layers": 12, "patch_size": 16, "native_grid": 14, "embed_dim": DIMENSION}


@benchmark("train_step")
def measure(context: Context) -> Iterator[Measurement]:
    """Seconds per step, and how they compare with the matrix products of the network alone."""
    torch.manual_seed(context.seed)
    generator = context.generator()
    network = Zutis(ClipVitEncoder(**ENCODER)).train()
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator)
    text = F.normalize(torch.randn(CATEGORIES, DIMENSION, generator=generator), dim=-1)
    targets = make_targets(generator)
    fast, slow = Step(network, images, text, *targets), PlainStep(network, images, text, *targets)
    fast()
    seconds = []
    for _ in range(min(context.repeats, 3)):
        start = time.perf_counter()
        fast()
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    slow()
    plain_seconds = time.perf_counter() - start
    yield Measurement(
        name="train_step",
        workload=f"ViT-B/16, batch {BATCH}, {SIZE}²",
        seconds=float(np.median(seconds)),
        spread=float(np.ptp(seconds)),
        plain_seconds=plain_seconds,
        limit="forward and backward pass of the network alone",
        limit_seconds=context.time(lambda: _network_alone(network, images)).seconds,
        peak_mib=context.peak_memory(fast),
        note="the plain step includes training scores at every iteration, as published",
    )


class Step:
    """The step that training takes."""

    def __init__(self, network: Zutis, images: Tensor, text: Tensor, masks: list[Tensor], semantic: Tensor) -> None:
        """Keep a batch and make the optimiser."""
        self.network, self.images, self.text, self.masks, self.semantic = network, images, text, masks, semantic
        self.optimizer = zutis_optimizer(network.parameter_groups())

    def __call__(self) -> None:
        """Take one step."""
        outputs = self.network(self.images)
        result = zutis_criterion(*outputs, self.text, self.masks, self.semantic, ignore_index=IGNORE_INDEX)
        self.optimizer.zero_grad()
        result.loss.backward()
        self.optimizer.step()


class PlainStep(Step):
    """The same step the plain way."""

    def __init__(self, network: Zutis, *batch: Tensor | list[Tensor]) -> None:
        """Keep a batch and make the optimiser."""
        super().__init__(network, *batch)
        self.optimizer = torch.optim.AdamW(network.parameter_groups(), weight_decay=0.05, foreach=False)
        self.confusion = np.zeros((CATEGORIES, CATEGORIES))

    def __call__(self) -> None:
        """Take one step; the loss differentiates its outputs, the network takes over from there."""
        proposals, tokens = plain_forward(self.network, self.images)
        gradients = plain_criterion(proposals, tokens, self.text, self.masks, self.semantic, IGNORE_INDEX)[1:]
        self.optimizer.zero_grad()
        torch.autograd.backward([proposals, tokens], gradients)
        self.optimizer.step()
        plain_training_scores(tokens, self.text, self.semantic, self.confusion)


def _network_alone(network: Zutis, images: Tensor) -> None:
    proposals, tokens = network(images)
    (proposals.sum() + tokens.sum()).backward()
