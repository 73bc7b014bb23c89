"""Co-segmentation: adjacency and seeds of one category, and labels from ReCo's two grids, against the plain way.

The plain way takes the steps of the specification as they stand: the whole adjacency matrix, its weighted copy, one
maximum over each picture's window of columns; and three full-size score maps per category for the labels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Context, Measurement, benchmark
from networks.reco_prediction import RecoGrids, predict_labels
from pseudo_labels.cosegmentation import find_seeds

NUM_PICTURES, GRID, WIDTH = 50, (14, 14), 384
NUM_CATEGORIES, SIDE = 171, 320


@benchmark("cosegmentation")
def measure(context: Context) -> Iterator[Measurement]:
    """Seeds in 50 pictures of 196 positions, labels of one picture with 171 categories."""
    yield _measure_seeds(context)
    yield _measure_labels(context)


def _measure_seeds(context: Context) -> Measurement:
    generator = context.generator()
    features = torch.randn(NUM_PICTURES, WIDTH, *GRID, generator=generator).to(context.device)
    weights = torch.rand(NUM_PICTURES, *GRID, generator=generator).to(context.device)
    num_positions = NUM_PICTURES * GRID[0] * GRID[1]
    if (plain_seeds(features, weights) != find_seeds(features, weights)).float().mean() > 0.02:  # near ties
        raise RuntimeError("the two ways of finding seeds disagree")
    timing, plain = context.time_pair(
        lambda: find_seeds(features, weights), lambda: plain_seeds(features, weights), plain_repeats=2
    )
    return Measurement(
        name="cosegmentation",
        workload=f"adjacency and seeds, {NUM_PICTURES} pictures x {GRID[0] * GRID[1]} positions x {WIDTH}",
        seconds=timing.seconds,
        spread=timing.spread,
        plain_seconds=plain.seconds,
        limit="half of the adjacency matrix as one matrix product",
        limit_seconds=context.limits.matmul_seconds(num_positions // 2, WIDTH, num_positions),
        peak_mib=context.peak_memory(lambda: find_seeds(features, weights)),
        plain_peak_mib=context.peak_memory(lambda: plain_seeds(features, weights)),
    )


def plain_seeds(features: Tensor, weights: Tensor) -> Tensor:
    """Seeds (k,) of features (k, D, h, w) with the published window, step by step."""
    k, num_positions = len(features), features[0, 0].numel()
    unit = F.normalize(features, dim=1).flatten(2).transpose(1, 2).flatten(0, 1)
    adjacency = unit @ unit.T
    adjacency = adjacency * weights.flatten()
    best = []
    for i in range(k):
        values, _ = adjacency[:, i * num_positions : (2 * i + 1) * num_positions].max(dim=1)
        best.append(values)
    return torch.stack(best).mean(dim=0).view(k, -1).argmax(dim=1)


def _measure_labels(context: Context) -> Measurement:
    generator = context.generator()
    similarity = torch.rand(1, NUM_CATEGORIES, SIDE // 16, SIDE // 16, generator=generator).to(context.device)
    attention = torch.rand(1, NUM_CATEGORIES, SIDE // 32, SIDE // 32, generator=generator).to(context.device)
    grids, size = RecoGrids(similarity, attention), (SIDE, SIDE)
    if not torch.equal(predict_labels(grids, size), plain_labels(grids, size)):
        raise RuntimeError("the two ways of labelling disagree")
    timing, plain = context.time_pair(lambda: predict_labels(grids, size), lambda: plain_labels(grids, size))
    return Measurement(
        name="reco labels",
        workload=f"{NUM_CATEGORIES} categories x {SIDE}x{SIDE} pixels, two grids",
        seconds=timing.seconds,
        spread=timing.spread,
        plain_seconds=plain.seconds,
        limit="writing two enlarged maps per category",
        limit_seconds=context.limits.copy_seconds(2 * 4 * NUM_CATEGORIES * SIDE * SIDE),
        peak_mib=context.peak_memory(lambda: predict_labels(grids, size)),
        plain_peak_mib=context.peak_memory(lambda: plain_labels(grids, size)),
    )


def plain_labels(grids: RecoGrids, size: tuple[int, int]) -> Tensor:
    """Labels (B, H, W) from enlarged similarity, enlarged attention and their product, all at once."""
    similarity = F.interpolate(grids.similarity, size, mode="bilinear", align_corners=False)
    attention = F.interpolate(grids.attention, size, mode="bilinear", align_corners=False)
    scores = similarity * attention
    return scores.argmax(dim=1)
