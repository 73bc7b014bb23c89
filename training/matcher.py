"""Which mask proposal belongs to which object: pairwise costs of all layers at once, one Hungarian matching each.

Nothing here is differentiated; ``losses.py`` computes the loss of the matched pairs alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from networks.interpolation import resize, resize_adjoint
from utils.errors import UserError

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}
LOG_FLOOR = -100.0


class Match(NamedTuple):
    """Pairs of one picture and one decoder layer.

    Attributes:
        instances: (k,), int64, rows of the picture's instance masks, ascending; k is min(n, Q).
        queries: (k,), int64, the query matched to each.
    """

    instances: np.ndarray
    queries: np.ndarray


def pairwise_dice(proposals: Tensor, instances: Tensor) -> Tensor:
    """Dice cost of every object with every proposal, as if the proposals were resized to the objects' size.

    Resizing is linear, so sums over pixels need the objects resized the other way (by the adjoint) only.

    Args:
        proposals: probabilities at low resolution, (..., h, w), float32.
        instances: binary masks, (n, H, W), any dtype.

    Returns:
        (n, ...), float32: 1 − (2·Σpg + 1) / (Σp + Σg + 1).
    """
    weights = resize_adjoint(torch.ones_like(instances[:1], dtype=torch.float32), proposals.shape[-2:])
    targets = resize_adjoint(instances.float(), proposals.shape[-2:])
    flat = proposals.flatten(0, -3).flatten(1)  # (P, h·w)
    overlap = targets.flatten(1) @ flat.T  # (n, P)
    total = (flat @ weights.flatten())[None] + instances.flatten(1).sum(dim=1)[:, None]
    return (1 - (2 * overlap + 1) / (total + 1)).unflatten(1, proposals.shape[:-2])


def pairwise_bce(proposals: Tensor, instances: Tensor) -> Tensor:
    """Binary cross-entropy of every object with every proposal, averaged over the objects' pixels.

    Two sums replace the pairs: Σ log(1 − p) for every proposal and one matrix product of log p − log(1 − p) with the
    objects. Proposals are resized a few at a time, so the memory does not grow with their number.

    Args:
        proposals: probabilities at low resolution, (..., h, w), float32.
        instances: binary masks, (n, H, W), any dtype.

    Returns:
        (n, ...), float32; logarithms are not below −100, as in the library's loss.
    """
    size = tuple(instances.shape[1:])
    num_pixels = size[0] * size[1]
    flat = proposals.flatten(0, -3)  # (P, h, w)
    targets = instances.flatten(1).float().T.contiguous()  # (H·W, n)
    group = max(CHUNK_ELEMENTS["cuda" if flat.is_cuda else "cpu"] // num_pixels, 1)
    costs = []
    for part in flat.split(group):
        inside = resize(part, size).flatten(1).clamp_(0, 1)  # (P', H·W); mixtures of ones may be 1 + rounding
        outside = (1 - inside).log_().clamp_(min=LOG_FLOOR)
        base = outside.sum(dim=1)
        gain = inside.log_().clamp_(min=LOG_FLOOR).sub_(outside)
        costs.append(base[:, None] + gain @ targets)  # (P', n)
    return (torch.cat(costs).T / -num_pixels).unflatten(1, proposals.shape[:-2])


@torch.no_grad()
def match_masks(mask_proposals: Tensor, instance_masks: Sequence[Tensor]) -> list[list[Match]]:
    """Assign every object to one proposal, for each picture and decoder layer.

    Args:
        mask_proposals: probabilities, (B, L, Q, h, w).
        instance_masks: per picture (n, H, W), bool; pictures without any object pixel may be among them.

    Returns:
        Per picture L matches that minimise the sum of dice and cross-entropy; an empty list for a picture without
        any object pixel. Objects without pixels in other pictures are matched like all others.

    Raises:
        UserError: if a cost is not finite, that is, if the training has diverged.

    Source: ZUTIS, section 3.3, after DETR. All costs reach the host in one copy.
    """
    costs = []
    present = torch.stack(
        [masks.any() if len(masks) else masks.new_zeros((), dtype=torch.bool) for masks in instance_masks]
    )
    has_objects = present.tolist()
    for proposals, masks, has in zip(mask_proposals.float(), instance_masks, has_objects, strict=True):
        if has:
            costs.append(pairwise_dice(proposals, masks) + pairwise_bce(proposals, masks))  # (n, L, Q)
    if not costs:
        return [[] for _ in instance_masks]
    host = torch.cat(costs).cpu().numpy()
    if not np.isfinite(host).all():
        raise UserError(
            "the matching cost is not finite: the mask proposals hold NaN, so the training has diverged. Lower the "
            "learning rate, or train in fp32 or bf16 if the precision is fp16."
        )
    matches: list[list[Match]] = []
    row = 0
    for masks, has in zip(instance_masks, has_objects, strict=True):
        if not has:
            matches.append([])
            continue
        block, row = host[row : row + len(masks)], row + len(masks)
        matches.append([Match(*linear_sum_assignment(block[:, layer])) for layer in range(block.shape[1])])
    return matches
