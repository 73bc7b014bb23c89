"""Spectral clustering of a feature map: affinity, normalised Laplacian, k-means on its lowest eigenvectors.

The affinity of n locations is never stored: it is an affine function of the product of the features with themselves,
so rows, degrees and products with vectors are computed from the features. `candidates.py` turns labels into masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn.functional import normalize

from pseudo_labels.kmeans import cluster_rows

# Below this many locations the dense solver is faster than Lanczos iterations (and it is needed for very small grids).
_DENSE_LIMIT = 400
# Cosines that all lie this close together are rounding noise: the picture has one feature only.
_CONSTANT_RANGE = 1e-6
# Entries of one block of the affinity held at a time (64 MiB in float32).
_BLOCK_ENTRIES = 1 << 24


@dataclass(frozen=True)
class Affinity:
    """The min-max rescaled cosine similarity W of n locations, kept as its factors.

    Attributes:
        features: unit-length rows, (n, C), float32.
        minimum: smallest cosine of any two locations.
        spread: largest minus smallest cosine; 0 where all locations are alike.
        degrees: row sums of W, (n,), float32.
    """

    features: Tensor
    minimum: float
    spread: float
    degrees: Tensor

    @property
    def is_constant(self) -> bool:
        """Whether all locations are alike, so that there is nothing to cluster."""
        return self.spread == 0

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` of W, (stop - start, n), float32 in [0, 1]; all ones if constant."""
        if self.is_constant:
            return torch.ones(self.features[start:stop].shape[0], len(self.features), device=self.features.device)
        return (self.features[start:stop] @ self.features.T - self.minimum) / self.spread

    def matrix(self) -> Tensor:
        """The whole of W, (n, n), float32: for small n."""
        return self.rows(0, len(self.features))


def cosine_affinity(features: Tensor) -> Affinity:
    """Rescaled cosine similarity of all pairs of locations.

    Args:
        features: one row per location, (n, C), floating point, any length; rows of zeros are allowed.

    Returns:
        The affinity W = (F Fᵀ - min) / (max - min) over the whole matrix, on the device of ``features``.

    Raises:
        ValueError: if ``features`` is not a matrix with at least one row, or holds NaN or infinity.

    Source: SelfMask, section 3.1 (as released; constant features, where the formula divides by zero, give all ones).
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"expected features of shape (n, C) with n > 0, received {tuple(features.shape)}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("the features hold NaN or infinity; check the weights of the feature network")
    unit = normalize(features.float(), dim=1)
    smallest, largest, sums = _extremes(unit)
    spread = largest - smallest
    if spread < _CONSTANT_RANGE:
        return Affinity(unit, smallest, 0.0, torch.full((len(unit),), float(len(unit)), device=unit.device))
    degrees = (sums - len(unit) * smallest) / spread
    return Affinity(unit, smallest, spread, degrees.float())


def _extremes(unit: Tensor) -> tuple[float, float, Tensor]:
    """Smallest and largest cosine over all pairs, and the row sums (n,) float64, in blocks of rows."""
    step = max(1, _BLOCK_ENTRIES // len(unit))
    lows, highs = [], []
    for start in range(0, len(unit), step):
        # The matrix is symmetric: rows of a block need only the columns from its own start on.
        block = unit[start : start + step] @ unit[start:].T
        lows.append(block.amin())
        highs.append(block.amax())
    sums = unit.double() @ unit.double().sum(dim=0)
    return float(torch.stack(lows).min()), float(torch.stack(highs).max()), sums


def smallest_eigenpairs(affinity: Affinity, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``num`` smallest solutions of (D - W) v = λ D v.

    Args:
        affinity: W and its degrees D.
        num: how many; at most n are returned.

    Returns:
        eigenvalues: (k,), float64, ascending.
        eigenvectors: (n, k), float64, with vᵀ D v = 1, each signed so that its largest entry is positive.

    Source: SelfMask, section 3.1. Solved as D^-1/2 W D^-1/2 u = (1 - λ) u, v = D^-1/2 u, with a fixed start vector,
    where the release runs LOBPCG from a random start: same problem, repeatable answer.
    """
    n = len(affinity.features)
    num = min(num, n)
    roots = 1.0 / np.sqrt(np.maximum(affinity.degrees.double().cpu().numpy(), 1e-12))
    if n <= _DENSE_LIMIT or num >= n - 1:
        similarities, vectors = _dense_eigenpairs(affinity, roots, num)
    else:
        similarities, vectors = _lanczos_eigenpairs(affinity, roots, num)
    order = np.argsort(-similarities, kind="stable")
    vectors = roots[:, None] * vectors[:, order]
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    return 1.0 - similarities[order], vectors * np.where(largest < 0, -1.0, 1.0)


def _dense_eigenpairs(affinity: Affinity, roots: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``num`` largest eigenpairs of D^-1/2 W D^-1/2 by a direct solver."""
    matrix = affinity.matrix().double().cpu().numpy() * roots[:, None] * roots[None]
    n = len(matrix)
    return scipy.linalg.eigh((matrix + matrix.T) / 2, subset_by_index=[n - num, n - 1])


def _lanczos_eigenpairs(affinity: Affinity, roots: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """The same by Lanczos iterations, each costing 2·n·C multiplications instead of n²."""
    n = len(roots)
    if affinity.is_constant:
        raise ValueError("a constant affinity has no lowest eigenvectors worth computing")
    features = affinity.features.double()
    scale = torch.from_numpy(roots).to(features)

    def multiply(vector: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float64).reshape(n)).to(features) * scale
        product = features @ (features.T @ scaled) - affinity.minimum * scaled.sum()
        return (product / affinity.spread * scale).cpu().numpy()

    operator = LinearOperator((n, n), matvec=multiply, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(n)
    try:
        return eigsh(operator, k=num, which="LA", v0=start, ncv=min(n, max(20, 4 * num)), tol=1e-8)
    except ArpackNoConvergence:  # very many nearly equal eigenvalues: slower, but always an answer
        return _dense_eigenpairs(affinity, roots, num)


def spectral_labels(features: Tensor, num_clusters: Sequence[int], *, seed: int = 0) -> list[np.ndarray]:
    """Cluster the locations of a feature map once for every number of clusters asked for.

    Args:
        features: one feature map, (C, h, w), floating point.
        num_clusters: numbers of clusters k, each >= 1; one eigendecomposition serves all.
        seed: of the k-means start points.

    Returns:
        One label map (h, w), int64, per k, clusters numbered by first appearance in raster order. Fewer than k labels
        occur where there are fewer than k different features; constant features give one cluster.

    Raises:
        ValueError: if ``features`` is not (C, h, w), a k is smaller than 1, or the features are not finite.

    Source: SelfMask, section 3.1: k-means (10 starts, 300 iterations) on the unscaled rows of the eigenvectors.
    """
    if min(num_clusters) < 1:
        raise ValueError(f"expected numbers of clusters >= 1, received {list(num_clusters)}")
    vectors = spectral_embedding(features, max(num_clusters))
    return [cluster_rows(vectors[:, :k], k, seed=seed).reshape(features.shape[1:]) for k in num_clusters]


def spectral_embedding(features: Tensor, num: int) -> np.ndarray:
    """The coordinates that k-means clusters: the lowest eigenvectors of a feature map's normalised Laplacian.

    Args:
        features: one feature map, (C, h, w), floating point, on any device.
        num: eigenvectors wanted; the first k of them serve k clusters.

    Returns:
        (h·w, min(num, h·w)), float64, rows in raster order; zeros for constant features.

    Raises:
        ValueError: if ``features`` is not (C, h, w) or not finite.
    """
    if features.ndim != 3:
        raise ValueError(f"expected features of shape (C, h, w), received {tuple(features.shape)}")
    affinity = cosine_affinity(features.flatten(1).T)  # (C, h, w) -> (h·w, C)
    if affinity.is_constant:
        return np.zeros((len(affinity.features), min(num, len(affinity.features))))
    return smallest_eigenpairs(affinity, num)[1]
