"""Semantic scores: a confusion matrix kept on the device, and IoU and accuracies from it.

torchmetrics has a confusion matrix too; it drops one ignore index only (benchmarks have several label values outside
the classes) and takes three to ten times as long per picture, so the one line that counts is written here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.distributed import all_reduce_sum


@dataclass(frozen=True)
class SemanticResult:
    """Scores as fractions; NaN where a class (or everything) is absent."""

    mean_iou: float  # over the classes that occur in ground truth or prediction
    pixel_accuracy: float
    mean_accuracy: float  # over the classes that occur in the ground truth
    frequency_weighted_iou: float
    class_iou: np.ndarray  # float64, (num_classes,)

    def scores(self) -> dict[str, float]:
        """The four scores by name, without the classes."""
        return {
            "mean_iou": self.mean_iou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "frequency_weighted_iou": self.frequency_weighted_iou,
        }


class SemanticScores:
    """Counts pixels picture by picture, on the device, without waiting for it.

    Labels outside 0 .. num_classes - 1 (ignore indices) drop out.

    Args:
        num_classes: classes including background.
        device: where label maps and predictions lie.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.num_classes = num_classes
        # Two more bins: ignored pixels, and predictions that are no class (a bug, reported by `compute`).
        self._bins = torch.zeros(num_classes**2 + 2, dtype=torch.int64, device=device)
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Count one picture, or a batch.

        Args:
            labels: ground truth, any whole-number type, (..., H, W), on the device.
            predictions: classes 0 .. num_classes - 1, any whole-number type, the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        if labels.shape != predictions.shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}, predictions {tuple(predictions.shape)}")
        num, labels, predictions = self.num_classes, labels.int(), predictions.int()
        is_counted = (labels >= 0) & (labels < num)
        is_class = (predictions >= 0) & (predictions < num)
        index = torch.where(is_class, labels * num + predictions, num * num + 1)
        index = torch.where(is_counted, index, num * num).flatten()
        if index.is_cuda:  # bincount would wait for the largest value
            self._bins.scatter_add_(0, index.long(), self._one.expand_as(index))
        else:
            self._bins += torch.bincount(index, minlength=len(self._bins))

    def synchronise(self) -> None:
        """Add up the counts of all ranks, on all ranks; call it once, before `compute`."""
        self._bins = all_reduce_sum(self._bins)

    def confusion(self) -> np.ndarray:
        """Pixel counts, rows = ground truth, columns = prediction: int64, (num_classes, num_classes).

        Raises:
            ValueError: if predictions outside the classes were counted.
        """
        bins = self._bins.cpu().numpy()
        if bins[-1]:
            raise ValueError(f"{bins[-1]} predicted pixels are not among the {self.num_classes} classes")
        return bins[:-2].reshape(self.num_classes, self.num_classes)

    def compute(self) -> SemanticResult:
        """The scores of everything counted so far."""
        return scores_from_confusion(self.confusion())


def scores_from_confusion(confusion: np.ndarray) -> SemanticResult:
    """Turn pixel counts into scores.

    Args:
        confusion: counts, (C, C), rows = ground truth.

    Source: ZUTIS, evaluation protocol; a class with neither ground truth nor prediction is left out of the mean, one
        that is only predicted counts as 0.
    """
    counts = confusion.astype(np.float64)
    correct, true, predicted, total = np.diag(counts), counts.sum(1), counts.sum(0), counts.sum()
    class_iou = _ratio(correct, true + predicted - correct)
    class_accuracy = _ratio(correct, true)
    occurs = true > 0
    return SemanticResult(
        mean_iou=_mean(class_iou),
        pixel_accuracy=float(_ratio(correct.sum(), total)),
        mean_accuracy=_mean(class_accuracy),
        frequency_weighted_iou=float((true[occurs] / total * class_iou[occurs]).sum())
        if occurs.any()
        else float("nan"),
        class_iou=class_iou,
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _mean(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")
