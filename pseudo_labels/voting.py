"""Choose one mask out of many candidates: drop those that span the picture, then let all others vote by overlap.

Free of PyTorch, so that worker processes start fast. The candidates come from `election.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# Whole numbers up to here are exact in float32, so counts of pixels may be summed by a float32 matrix product.
_EXACT_FLOAT32 = 1 << 24


class Vote(NamedTuple):
    """The outcome: ascending row numbers of the candidates that were compared, and the row number of the winner."""

    kept: np.ndarray
    winner: int


def kept_candidates(masks: np.ndarray, *, remove_long_masks: bool = True, remove_by_area: bool = False) -> np.ndarray:
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
    rows, columns = masks.any(axis=2), masks.any(axis=1)  # (n, H), (n, W)
    keep = rows.any(axis=1)
    if remove_long_masks:
        keep &= ~(rows[:, 0] & rows[:, -1]) & ~(columns[:, 0] & columns[:, -1])
    if remove_by_area:
        boxes, areas = _extent(rows) * _extent(columns), masks.sum(axis=(1, 2))
        keep &= (areas >= 0.05 * height * width) & (boxes <= 0.95 * height * width)
    kept = np.flatnonzero(keep)
    return kept if len(kept) else np.arange(len(masks))


def _extent(occupied: np.ndarray) -> np.ndarray:
    """Last minus first occupied index of every row of (n, length): (n,) int64; 0 for a row without any."""
    last = occupied.shape[1] - 1 - occupied[:, ::-1].argmax(axis=1)
    return np.where(occupied.any(axis=1), last - occupied.argmax(axis=1), 0)


def pairwise_iou(masks: np.ndarray) -> np.ndarray:
    """Intersection over union of all pairs of masks by one matrix product.

    Args:
        masks: (n, H, W), bool or 0/1.

    Returns:
        (n, n), float64 in [0, 1): intersection / (union + 1e-7), so that two empty masks have 0.
    """
    flat = _as_bool(masks).reshape(len(masks), -1)
    flat = flat.astype(np.float32 if flat.shape[1] < _EXACT_FLOAT32 else np.float64)
    intersection = (flat @ flat.T).astype(np.float64)
    areas = intersection.diagonal()
    union = areas[:, None] + areas[None] - intersection
    return intersection / (union + 1e-7)


def vote(masks: np.ndarray, *, remove_long_masks: bool = True, remove_by_area: bool = False) -> Vote:
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
    return Vote(kept, int(kept[pairwise_iou(masks[kept]).sum(axis=1).argmax()]))


def _as_bool(masks: np.ndarray) -> np.ndarray:
    """The masks as bool; ValueError unless they are (n, H, W) with pixels and n >= 1."""
    if masks.ndim != 3 or not masks.size:
        raise ValueError(f"expected candidate masks of shape (n, H, W) with n, H, W > 0, received {masks.shape}")
    return masks != 0
