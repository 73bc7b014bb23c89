"""Scores of salient-object masks: IoU, pixel accuracy, F-measures, mean absolute error and S-measure.

One picture at a time; `SaliencyScores` averages over a benchmark. Readers of the benchmarks: `datasets/saliency.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from utils.distributed import all_gather_objects

METRICS = ("iou", "pixel_acc", "f_score", "f_max", "f_mean", "mae", "s_measure")
# Kept for published scores: the literature's beta² of 0.3 is squared once more.
_BETA_SQUARED = 0.3**2
_EPS = 1e-7


def saliency_metrics(probs: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """All scores of one predicted picture.

    Args:
        probs: foreground probabilities in [0, 1], (H, W), floating point.
        truth: true mask, (H, W), bool or whole numbers, foreground where > 0; may be empty or full.

    Returns:
        Name (see `METRICS`) to value in [0, 1]; higher is better, but for "mae".

    Raises:
        ValueError: if the two shapes differ or there is no pixel.

    Source: SelfMask, section 4.1 as released: threshold 0.5 (strict), F-measure with beta² = 0.09, "f_max" over the
    thresholds 0/255 ... 254/255, "f_mean" at twice the mean probability.
    """
    if probs.ndim != 2 or probs.shape != truth.shape or not probs.size:
        raise ValueError(f"expected two equal shapes (H, W), received {probs.shape} and {truth.shape}")
    probs, truth = probs.astype(np.float32, copy=False), truth > 0
    predicted = probs > 0.5
    thresholds = (np.arange(255) / 255).astype(np.float32)
    adaptive = np.float32(2 * probs.mean(dtype=np.float64))
    return {
        "iou": binary_iou(predicted, truth),
        "pixel_acc": float((predicted == truth).mean()),
        "f_score": float(_f_measures(probs, truth, np.array([0.5], np.float32))[0]),
        "f_max": float(_f_measures(probs, truth, thresholds).max()),
        "f_mean": float(_f_measures(probs, truth, np.array([adaptive]))[0]),
        "mae": float(np.abs(probs - truth.astype(np.float32)).mean(dtype=np.float64)),
        "s_measure": s_measure(probs, truth),
    }


def binary_iou(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Intersection / (union + 1e-7) of two masks of one shape, bool; two empty masks have 0."""
    return float((predicted & truth).sum() / ((predicted | truth).sum() + _EPS))


def _f_measures(probs: np.ndarray, truth: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """F-measure at every threshold (strict): (T,) float64, from two sorted lists of probabilities."""
    inside, outside = np.sort(probs[truth]), np.sort(probs[~truth])
    true_positives = len(inside) - np.searchsorted(inside, thresholds, side="right")
    false_positives = len(outside) - np.searchsorted(outside, thresholds, side="right")
    precision = true_positives / (true_positives + false_positives + _EPS)
    recall = true_positives / (len(inside) + _EPS)
    return (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall + _EPS)


def s_measure(probs: np.ndarray, truth: np.ndarray) -> float:
    """Structural similarity of a soft prediction and a mask, object and region terms weighted equally.

    Args:
        probs: foreground probabilities in [0, 1], (H, W), floating point.
        truth: true mask, (H, W), bool.

    Returns:
        The score, in [0, 1].

    Source: Fan et al., Structure-measure, ICCV 2017, alpha = 0.5, as SelfMask computes it: N - 1 in variances and
    deviations. Where the formulas leave a value open (deviation of one pixel, similarity of an empty quadrant) it is 0.
    """
    probs = probs.astype(np.float64)
    if not truth.any():
        return float(1 - probs.mean())
    if truth.all():
        return float(probs.mean())
    share = truth.mean()
    objects = share * _object_term(probs[truth]) + (1 - share) * _object_term(1 - probs[~truth])
    return float(max(0.0, 0.5 * objects + 0.5 * _region_term(probs, truth.astype(np.float64))))


def _object_term(values: np.ndarray) -> float:
    """2 m / (m² + 1 + s) of the probabilities of one region, with mean m and unbiased deviation s."""
    mean = values.mean()
    deviation = values.std(ddof=1) if len(values) > 1 else 0.0
    return 2 * mean / (mean**2 + 1 + deviation + 1e-20)


def _region_term(probs: np.ndarray, truth: np.ndarray) -> float:
    """Similarity of the four quadrants around the rounded centroid of the mask, weighted by area."""
    height, width = truth.shape
    total = truth.sum()
    row = int(np.round((truth.sum(axis=1) * np.arange(height)).sum() / total))
    column = int(np.round((truth.sum(axis=0) * np.arange(width)).sum() / total))
    score = 0.0
    for rows in (slice(0, row), slice(row, height)):
        for columns in (slice(0, column), slice(column, width)):
            part = truth[rows, columns]
            if part.size:
                score += part.size / truth.size * _similarity(probs[rows, columns], part)
    return score


def _similarity(probs: np.ndarray, truth: np.ndarray) -> float:
    """SSIM of two patches as a whole."""
    mean_p, mean_t = probs.mean(), truth.mean()
    freedom = truth.size - 1 + 1e-20
    variance_p, variance_t = ((probs - mean_p) ** 2).sum() / freedom, ((truth - mean_t) ** 2).sum() / freedom
    covariance = ((probs - mean_p) * (truth - mean_t)).sum() / freedom
    upper = 4 * mean_p * mean_t * covariance
    lower = (mean_p**2 + mean_t**2) * (variance_p + variance_t)
    if upper != 0:
        return upper / (lower + 1e-20)
    return 1.0 if lower == 0 else 0.0


@dataclass
class SaliencyScores:
    """Running means over the pictures of a benchmark.

    Two predictions are scored per picture: the one that the network chooses, and the best of all its queries
    ("upper bound"), chosen by IoU with the truth.
    """

    chosen: list[dict[str, float]] = field(default_factory=list)
    upper_bound: list[dict[str, float]] = field(default_factory=list)

    def add(self, chosen: np.ndarray, truth: np.ndarray, queries: np.ndarray | None = None) -> None:
        """Score one picture.

        Args:
            chosen: probabilities of the chosen query, (H, W), in [0, 1].
            truth: true mask, (H, W), foreground where > 0.
            queries: probabilities of all queries, (Q, H, W), for the upper bound; None leaves it out.
        """
        self.chosen.append(saliency_metrics(chosen, truth))
        if queries is not None:
            ious = [binary_iou(query > 0.5, truth > 0) for query in queries]
            self.upper_bound.append(saliency_metrics(queries[int(np.argmax(ious))], truth))

    def gather(self) -> SaliencyScores:
        """The pictures of all processes together, in the order of the ranks."""
        parts = all_gather_objects((self.chosen, self.upper_bound))
        return SaliencyScores([row for part in parts for row in part[0]], [row for part in parts for row in part[1]])

    def means(self) -> dict[str, float]:
        """Mean of every metric over the pictures, upper bounds as ``ub_<metric>``, and ``num_images``.

        Raises:
            ValueError: if no picture was added.
        """
        if not self.chosen:
            raise ValueError("no picture has been scored")
        means = {name: float(np.mean([row[name] for row in self.chosen])) for name in METRICS}
        if self.upper_bound:
            means |= {f"ub_{name}": float(np.mean([row[name] for row in self.upper_bound])) for name in METRICS}
        return means | {"num_images": len(self.chosen)}
