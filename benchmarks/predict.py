"""Instances of one picture from the segmenter's outputs, against the plain way; semantic labels beside it.

Prediction before measuring (one thread): the plain way makes a (Q, h, w, D) product of 1 GB and compares masks one by
one in Python; ours resizes and thresholds about 90 masks of 480 × 640 (30 million pixels, 60 ms) and hardly anything
else. So 10 to 30 times faster.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Context, Measurement, benchmark
from benchmarks.plain_zutis import plain_instances
from networks.interpolation import resize
from networks.zutis_prediction import predict_instances, predict_semantic, semantic_logits

SIZE, GRID, QUERIES, CATEGORIES, DIMENSION = (480, 640), (60, 80), 100, 81, 512


@benchmark("predict")
def measure(context: Context) -> Iterator[Measurement]:
    """Instance prediction with hard suppression and semantic prediction at 480 × 640, forward pass excluded."""
    proposals, tokens, text = make_outputs(context.generator())
    ours = predict_instances(proposals[None, None], tokens[None], text, SIZE)[0]
    plain = plain_instances(proposals, tokens, text, SIZE)
    found = sorted((c, -s, m.sum().item()) for m, s, c in zip(*_columns(ours), strict=True))
    expected = sorted((c, -s, m.sum().item()) for m, s, c in plain)
    if [(c, n) for c, _, n in found] != [(c, n) for c, _, n in expected]:
        raise RuntimeError("the two ways of predicting instances disagree")
    fast, slow = context.time_pair(
        lambda: predict_instances(proposals[None, None], tokens[None], text, SIZE),
        lambda: plain_instances(proposals, tokens, text, SIZE),
    )
    yield Measurement(
        name="predict",
        workload=f"instances {SIZE[0]}x{SIZE[1]}, {QUERIES} queries, {len(plain)} kept",
        seconds=fast.seconds,
        spread=fast.spread,
        plain_seconds=slow.seconds,
        limit="resizing the proposals",
        limit_seconds=context.time(lambda: resize(proposals, SIZE)).seconds,
        peak_mib=context.peak_memory(lambda: predict_instances(proposals[None, None], tokens[None], text, SIZE)),
        plain_peak_mib=context.peak_memory(lambda: plain_instances(proposals, tokens, text, SIZE)),
    )
    fast, slow = context.time_pair(
        lambda: predict_semantic(tokens[None], text, SIZE), lambda: _plain_semantic(tokens[None], text)
    )
    yield Measurement(
        name="predict",
        workload=f"semantic {SIZE[0]}x{SIZE[1]}, {CATEGORIES} categories",
        seconds=fast.seconds,
        spread=fast.spread,
        plain_seconds=slow.seconds,
        limit="resizing the logits",
        limit_seconds=context.time(lambda: resize(semantic_logits(tokens[None], text), SIZE)).seconds,
        peak_mib=context.peak_memory(lambda: predict_semantic(tokens[None], text, SIZE)),
        plain_peak_mib=context.peak_memory(lambda: _plain_semantic(tokens[None], text)),
    )


def _columns(instances: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, list[float], list[int]]:
    masks, scores, categories = instances
    return masks, scores.tolist(), categories.tolist()


def _plain_semantic(tokens: Tensor, text: Tensor) -> Tensor:
    logits = torch.einsum("bhwd,nd->bnhw", tokens, text)
    return F.interpolate(logits, size=SIZE, mode="bilinear").argmax(dim=1)


def make_outputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Soft blobs as proposals (Q, h, w), tokens (h, w, D) near the names of smooth regions, text (N, D)."""
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in GRID), indexing="ij")
    centre = torch.rand(QUERIES, 2, 1, 1, generator=generator) * torch.tensor(GRID).view(1, 2, 1, 1)
    radius = 4 + 16 * torch.rand(QUERIES, 1, 1, generator=generator)
    distance = ((rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2).sqrt()
    proposals = (radius - distance).sigmoid()
    text = F.normalize(torch.randn(CATEGORIES, DIMENSION, generator=generator), dim=-1)
    side = GRID[0] // 6
    regions = torch.randint(0, 12, (6, GRID[1] // side + 1), generator=generator)
    labels = regions.repeat_interleave(side, 0).repeat_interleave(side, 1)[: GRID[0], : GRID[1]]
    noise = torch.randn(*GRID, DIMENSION, generator=generator) * DIMENSION**-0.5
    return proposals, F.normalize(text[labels] + noise, dim=-1), text
