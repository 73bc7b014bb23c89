"""From the eigenvectors of a picture's features to its pseudo-mask: cluster, make candidates, vote.

Free of PyTorch, so that worker processes start fast. The eigenvectors come from `spectral.py`, the stage that brings
both together is `candidates.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pseudo_labels import rle
from pseudo_labels.kmeans import cluster_rows
from pseudo_labels.preparation import resize_mask
from pseudo_labels.voting import vote


@dataclass(frozen=True)
class VotingSettings:
    """How candidates are made and chosen; the defaults are the published ones.

    Attributes:
        num_clusters: numbers of clusters; each gives so many candidates per feature network.
        shorter_side: resize pictures to this before features are taken; None: as they are.
        max_locations: pictures with more feature locations per network are made smaller (time grows with the square);
            None: never. No DUTS picture has so many.
        upsampling: factor by which feature maps are enlarged before clustering.
        remove_long_masks: drop candidates that span the picture.
        remove_by_area: drop candidates that are very small or whose box fills the picture.
        seed: of k-means.
    """

    num_clusters: tuple[int, ...] = (2, 3, 4)
    shorter_side: int | None = None
    max_locations: int | None = 40_000
    upsampling: int = 2
    remove_long_masks: bool = True
    remove_by_area: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Ballot:
    """What one feature network says about a picture.

    Attributes:
        embedding: eigenvectors, (h·w, k), float64.
        grid: rows h and columns w of locations, after upsampling.
        cell: side of a location in pixels of the working size (stride / upsampling).
    """

    embedding: np.ndarray
    grid: tuple[int, int]
    cell: float


def make_candidates(ballots: Sequence[Ballot], size: tuple[int, int], settings: VotingSettings) -> np.ndarray:
    """Cluster every network's embedding with every number of clusters and make one mask of every cluster.

    Args:
        ballots: one per feature network.
        size: (height, width) of the picture as the networks saw it, without padding.
        settings: see `VotingSettings`.

    Returns:
        Candidates, (n, H, W), bool: network by network, within it by number of clusters, within that by first
        appearance. With 3 networks and 2, 3, 4 clusters n is 27, less where fewer clusters occur.
    """
    masks = []
    for ballot in ballots:
        rows, columns = (_cells(length, ballot.cell, n) for length, n in zip(size, ballot.grid, strict=True))
        for k in settings.num_clusters:
            labels = cluster_rows(ballot.embedding[:, :k], k, seed=settings.seed).reshape(ballot.grid)
            enlarged = labels[rows[:, None], columns]  # (h, w) -> (H, W), the padding is left out
            masks.append(enlarged == np.arange(labels.max() + 1)[:, None, None])
    return np.concatenate(masks)


def _cells(length: int, cell: float, num_cells: int) -> np.ndarray:
    """Number of the location that each of ``length`` pixels lies in."""
    return np.minimum((np.arange(length) / cell).astype(np.int64), num_cells - 1)


def elect_mask(
    ballots: Sequence[Ballot], size: tuple[int, int], original_size: tuple[int, int], settings: VotingSettings
) -> dict[str, object]:
    """Find the pseudo-mask of one picture.

    Args:
        ballots: one per feature network.
        size: (height, width) of the picture as the networks saw it.
        original_size: (height, width) of the picture.
        settings: see `VotingSettings`.

    Returns:
        COCO run-length code of the winner at the original size.
    """
    candidates = make_candidates(ballots, size, settings)
    options = {"remove_long_masks": settings.remove_long_masks, "remove_by_area": settings.remove_by_area}
    winner = candidates[vote(candidates, **options).winner]
    return rle.encode(resize_mask(winner, *original_size))
