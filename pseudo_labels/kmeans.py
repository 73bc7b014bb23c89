"""k-means on the rows of a matrix, with repeatable labels. Free of PyTorch, so that worker processes start fast."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning


def cluster_rows(rows: np.ndarray, num_clusters: int, *, seed: int = 0) -> np.ndarray:
    """Cluster points with k-means, 10 starts of at most 300 iterations.

    Args:
        rows: points, (n, d), floating point.
        num_clusters: k >= 1; fewer clusters come out where there are fewer different points.
        seed: of the start points.

    Returns:
        (n,), int64, clusters numbered by first appearance.
    """
    if num_clusters < 2 or len(rows) < 2:
        return np.zeros(len(rows), np.int64)
    kmeans = KMeans(min(num_clusters, len(rows)), n_init=10, max_iter=300, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters: allowed here
        return number_by_appearance(kmeans.fit_predict(rows))


def number_by_appearance(labels: np.ndarray) -> np.ndarray:
    """The same partition with labels 0, 1, ... in the order in which they first occur: any shape, int64."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[inverse].reshape(np.shape(labels))
