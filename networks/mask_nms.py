"""Non-maximum suppression of masks, per category.

All overlaps come from one intersection matrix per category; the decisions then are made on that small matrix.
Next: ``zutis_prediction.py``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

NmsKind = Literal["hard", "linear", "gaussian"]
KINDS = ("hard", "linear", "gaussian")
POPCOUNT = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)
PIXELS_PER_PRODUCT = 1 << 20  # float32 counts exactly up to 2^24


@torch.no_grad()
def mask_nms(
    masks: Tensor,
    scores: Tensor,
    category_ids: Tensor,
    *,
    kind: NmsKind | None = "hard",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> tuple[Tensor, Tensor, Tensor]:
    """Suppress masks that overlap a better one of the same category.

    Repeatedly the candidate with the highest score is picked and the others' scores are multiplied by a weight of
    their IoU with it: "hard" 0 above the threshold, "linear" 1 − IoU above the threshold, "gaussian" exp(−IoU²/σ).

    Args:
        masks: (n, H, W), bool.
        scores: (n,), float.
        category_ids: (n,), int64; 0 is background.
        kind: kind of weight; None: nothing is suppressed.
        iou_threshold: overlap from which "hard" and "linear" act.
        sigma: width of the gaussian.
        score_threshold: a candidate whose weighted score is not above it is dropped (the first pick of a category is
            never tested).

    Returns:
        Masks, scores (weighted) and categories that remain, categories ascending and in each the order of picking;
        background and empty masks are left out.

    Raises:
        ValueError: if ``kind`` is unknown or the numbers of masks, scores and categories differ.

    Source: ZUTIS, section 3.3 (soft variants: Bodla et al. 2017). Of equal scores the last candidate is picked first.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)} or None as the kind of suppression, received {kind!r}")
    if not len(masks) == len(scores) == len(category_ids):
        raise ValueError(f"received {len(masks)} masks, {len(scores)} scores, {len(category_ids)} categories")
    host_scores, categories = scores.float().cpu().numpy(), category_ids.cpu().numpy()
    overlaps = MaskOverlaps(masks)
    kept, weighted = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for category in np.unique(categories[categories > 0]):
        members = np.flatnonzero(categories == category)
        if kind is None:
            order = members[np.argsort(-host_scores[members], kind="stable")]
            new_scores = host_scores[order]
        else:
            settings = (kind, iou_threshold, sigma, score_threshold)
            picks, picked_scores = _suppress(host_scores[members], overlaps.iou(members), *settings)
            order, new_scores = members[picks], np.array(picked_scores, np.float32)
        filled = overlaps.areas[order] > 0
        kept.append(order[filled])
        weighted.append(new_scores[filled])
    rows = torch.from_numpy(np.concatenate(kept)).to(masks.device)
    return masks[rows], torch.from_numpy(np.concatenate(weighted)).to(masks.device), category_ids[rows]


def _suppress(
    scores: np.ndarray, overlap: np.ndarray, kind: NmsKind, iou_threshold: float, sigma: float, score_threshold: float
) -> tuple[list[int], list[np.float32]]:
    """Pick candidates of one category: their numbers in order, and their scores when they were picked."""
    if kind == "gaussian":
        weights = np.exp(-(overlap**2) / np.float32(sigma))
    else:
        lowered = 0.0 if kind == "hard" else 1 - overlap
        weights = np.where(overlap > np.float32(iou_threshold), lowered, 1.0)
    weights = weights.astype(np.float32)
    scores = scores.astype(np.float32)
    alive = np.arange(len(scores))
    picks, picked_scores = [], []
    while len(alive):
        # The last of the highest scores, as the end of an ascending stable sort.
        position = len(alive) - 1 - int(scores[alive][::-1].argmax())
        best = alive[position]
        picks.append(int(best))
        picked_scores.append(scores[best])
        alive = np.delete(alive, position)
        scores[alive] *= weights[best, alive]
        alive = alive[scores[alive] > score_threshold]
    return picks, picked_scores


class MaskOverlaps:
    """Pixels that masks share.

    On a GPU one matrix product of the flattened masks, in pieces small enough for exact float32 counts; on a CPU the
    masks are packed to bits, an eighth of the memory to go through, and only pairs that are asked for are compared.

    Attributes:
        areas: pixels of every mask, (n,), int64.
    """

    def __init__(self, masks: Tensor) -> None:
        """Prepare masks (n, H, W), bool."""
        flat = masks.flatten(1)
        self._all, self._packed = None, None
        if masks.is_cuda:
            total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=flat.device)
            for part in flat.split(PIXELS_PER_PRODUCT, dim=1):
                part = part.float()
                total += part @ part.T
            self._all = total.long().cpu().numpy()
            self.areas = np.diagonal(self._all)
        else:
            bits = np.packbits(flat.numpy(), axis=1)
            self._packed = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)  # rows of 64-bit words
            self.areas = _count_bits(self._packed)

    def intersections(self, members: np.ndarray) -> np.ndarray:
        """Shared pixels of every two of the masks with the numbers ``members`` (k,): (k, k), int64."""
        if self._packed is None:
            return self._all[np.ix_(members, members)]
        packed = self._packed[members]
        result = np.zeros((len(members), len(members)), np.int64)
        for row in range(len(members)):
            result[row, row:] = result[row:, row] = _count_bits(packed[row] & packed[row:])
        return result

    def iou(self, members: np.ndarray) -> np.ndarray:
        """Intersection over union of every two of the masks with the numbers ``members``: (k, k), float32."""
        overlap = self.intersections(members).astype(np.float32)
        areas = self.areas[members]
        union = (areas[:, None] + areas[None]).astype(np.float32) - overlap
        return overlap / (union + np.float32(1e-7))


def _count_bits(words: np.ndarray) -> np.ndarray:
    """Set bits per row of (n, words)."""
    counts = np.bitwise_count(words) if hasattr(np, "bitwise_count") else POPCOUNT[words.view(np.uint8)]
    return counts.sum(axis=1, dtype=np.int64)
