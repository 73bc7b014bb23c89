"""Choose one mask out of many candidates: drop those that span the picture, then let all others vote by overlap."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Whole numbers up to here are exact in float32, so counts of pixels may be summed by a float32 matrix product.
_EXACT_FLOAT32 = 1 << 24


class Vote(NamedTuple):
    """The outcome: ascending row numbers of the candidates that were compared, and the row number of the winner."""

    kept: np.ndarray
    winner: int


def kept_candidates(
    masks: np.ndarray | Tensor, *, remove_long_masks: bool = True, remove_by_area: bool = False
) -> np.ndarray:
    """Row numbers of the candidates that could be an object.

    Args:
        masks: candidate masks, (n, H, W), bool or 0/1, n >= 1; empty ones are allowed.
        remove_long_masks: drop a mask that touches both the top and the bottom or both the left and the right side.
        remove_by_area: also drop masks of less than 5 % of the picture, or whose box covers more than 95 % of it.

    Returns:
        Ascending row numbers, int64. Empty masks never remain, unless nothing else does: then all rows are returned.

    Raises:
        ValueError: if there is no candidate or ``masks`` is not (n, H, W).

    Source: SelfMask, section 3.2.
    """
    masks = _as_bool(masks)
    _, height, width = masks.shape
    rows, columns = masks.any(dim=2), masks.any(dim=1)  # (n, H), (n, W)
    keep = rows.any(dim=1)
    if remove_long_masks:
        keep &= ~(rows[:, 0] & rows[:, -1]) & ~(columns[:, 0] & columns[:, -1])
    if remove_by_area:
        boxes = _extent(rows) * _extent(columns)
        areas = masks.flatten(1).sum(dim=1)
        keep &= (areas >= 0.05 * height * width) & (boxes <= 0.95 * height * width)
    kept = torch.nonzero(keep).flatten()
    return (kept if len(kept) else torch.arange(len(masks))).cpu().numpy().astype(np.int64)


def _extent(occupied: Tensor) -> Tensor:
    """Last minus first occupied index of every row of (n, length): (n,) int64; 0 for a row without any."""
    length = occupied.shape[1]
    first = occupied.int().argmax(dim=1)
    last = length - 1 - occupied.flip(1).int().argmax(dim=1)
    return torch.where(occupied.any(dim=1), last - first, 0)


def pairwise_iou(masks: np.ndarray | Tensor) -> np.ndarray:
    """Intersection over union of all pairs of masks by one matrix product.

    Args:
        masks: (n, H, W), bool or 0/1.

    Returns:
        (n, n), float64 in [0, 1): intersection / (union + 1e-7), so that two empty masks have 0.
    """
    masks = _as_bool(masks)
    flat = masks.flatten(1)
    flat = flat.to(torch.float32 if flat.shape[1] < _EXACT_FLOAT32 else torch.float64)
    intersection = (flat @ flat.T).double()
    areas = intersection.diagonal()
    union = areas[:, None] + areas[None] - intersection
    return (intersection / (union + 1e-7)).cpu().numpy()


def vote(masks: np.ndarray | Tensor, *, remove_long_masks: bool = True, remove_by_area: bool = False) -> Vote:
    """Find the candidate that agrees best with all others.

    Args:
        masks: candidate masks, (n, H, W), bool or 0/1, n >= 1.
        remove_long_masks: see `kept_candidates`.
        remove_by_area: see `kept_candidates`.

    Returns:
        The rows that were compared and the row with the largest sum of IoUs with them (the first of equals).

    Raises:
        ValueError: if there is no candidate or ``masks`` is not (n, H, W).

    Source: SelfMask, section 3.2; the release leaves the order of equals open.
    """
    masks = _as_bool(masks)
    kept = kept_candidates(masks, remove_long_masks=remove_long_masks, remove_by_area=remove_by_area)
    sums = pairwise_iou(masks[torch.from_numpy(kept).to(masks.device)]).sum(axis=1)
    return Vote(kept, int(kept[sums.argmax()]))


def _as_bool(masks: np.ndarray | Tensor) -> Tensor:
    """The masks as a bool tensor; ValueError unless they are (n, H, W) with pixels and n >= 1."""
    masks = torch.as_tensor(masks)
    if masks.ndim != 3 or not masks.numel():
        raise ValueError(f"expected candidate masks of shape (n, H, W) with n, H, W > 0, received {tuple(masks.shape)}")
    return masks.bool()
