"""Binary scores: the IoU of one category in every picture, averaged over pictures; counts stay on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.distributed import all_gather_objects

EPSILON = 1e-7  # a picture with the category in neither label nor prediction scores 0


@dataclass(frozen=True)
class BinaryResult:
    """IoU as fractions; NaN where there is no picture."""

    iou: float  # mean over the pictures
    image_iou: np.ndarray  # of every picture, float64, (n,); in no particular order after several ranks worked

    def scores(self) -> dict[str, float]:
        """The mean by name."""
        return {"iou": self.iou}


class BinaryScores:
    """Counts pixels picture by picture, on the device, without waiting for it.

    Source: NamedMask spec 5: |p ∧ g| / (|p ∨ g| + 1e-7) over pixels whose label is 0 or 1, averaged over pictures.
    """

    def __init__(self) -> None:
        self._counts: list[Tensor] = []  # intersection and union of each picture, int64, (n, 2)
        self._gathered: np.ndarray | None = None

    def update(self, labels: Tensor, predictions: Tensor) -> None:
        """Count one picture, or a batch.

        Args:
            labels: 0 or 1, other values are not scored; any whole-number type, (..., H, W), on the device.
            predictions: 0 or 1, any whole-number type, the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        if labels.shape != predictions.shape:
            raise ValueError(f"labels have shape {tuple(labels.shape)}, predictions {tuple(predictions.shape)}")
        labels = labels.flatten(0, -3) if labels.ndim > 2 else labels[None]  # (..., H, W) -> (n, H, W)
        predicted = predictions.reshape(labels.shape) == 1
        is_object = labels == 1
        is_scored = is_object | (labels == 0)
        intersection = (predicted & is_object).sum((-2, -1))
        union = ((predicted & is_scored) | is_object).sum((-2, -1))
        self._counts.append(torch.stack([intersection, union], dim=-1))

    def synchronise(self) -> None:
        """Bring together the pictures of all ranks, on all ranks; call it once, before `compute`."""
        self._gathered = np.concatenate(all_gather_objects(self._local()))

    def compute(self) -> BinaryResult:
        """The score of everything counted so far.

        The mean is that of an exactly rounded sum, so it does not depend on how pictures were shared out.
        """
        counts = self._local() if self._gathered is None else self._gathered
        iou = counts[:, 0] / (counts[:, 1] + EPSILON)
        return BinaryResult(math.fsum(iou) / len(iou) if len(iou) else float("nan"), iou)

    def _local(self) -> np.ndarray:
        if not self._counts:
            return np.zeros((0, 2), np.int64)
        return torch.cat(self._counts).cpu().numpy()
