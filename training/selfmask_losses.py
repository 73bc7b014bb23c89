"""The criterion that SelfMask is trained with: dice against one pseudo-mask, and a ranking of the queries' objectness.

Nothing is upsampled but the chosen masks of the last layer: bilinear upsampling U is linear, so sums of upsampled
predictions over a mask g are sums of the predictions over Uᵀ g, which is as small as the predictions.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

RankingSign = Literal["released", "corrected"]


class SelfMaskLosses(NamedTuple):
    """Loss and what is worth logging; all but ``loss`` are detached.

    Attributes:
        loss: scalar with gradient, sum over images and layers / number of images (empty ones counted).
        dice: mean over the images with foreground of the dice terms, summed over layers and queries.
        ranking: the same for the ranking terms.
        iou: mean over the same images of the IoU of the best query of the last layer, at 0.5.
        best_queries: (B,), int64, query with the smallest dice loss in the last layer; -1 for an image without
            foreground.
    """

    loss: Tensor
    dice: Tensor
    ranking: Tensor
    iou: Tensor
    best_queries: Tensor


def selfmask_criterion(
    mask_probs: Tensor,
    objectness: Tensor,
    masks: Tensor,
    *,
    weight_dice: float = 1.0,
    weight_ranking: float = 1.0,
    ranking_sign: RankingSign = "released",
) -> SelfMaskLosses:
    """Loss of all decoder layers against one pseudo-mask per image.

    Args:
        mask_probs: probabilities in [0, 1], (B, L, Q, h, w), floating point.
        objectness: sigmoid objectness in [0, 1], (B, L, Q).
        masks: pseudo-masks, (B, H, W), 0/1 or bool; images without foreground add nothing but are counted.
        weight_dice: factor of the dice terms of every query.
        weight_ranking: factor of the ranking terms.
        ranking_sign: "released" or "corrected", see `ranking_loss`.

    Returns:
        The loss and its parts.

    Raises:
        ValueError: if the shapes do not belong together or ``ranking_sign`` is neither of the two.

    Source: SelfMask, section 3.3, eq. 2-4, as released (every query pays dice, none is matched).
    Shapes: B images, L decoder layers, Q queries, h×w prediction grid, H×W mask.
    """
    _check_shapes(mask_probs, objectness, masks)
    masks = masks.to(torch.float32)
    dice = dice_losses(mask_probs, masks)  # (B, L, Q)
    has_object = masks.flatten(1).any(dim=1)
    dice_terms = dice.sum(dim=(1, 2)) * has_object  # (B,)
    ranking_terms = ranking_loss(objectness, dice.detach(), sign=ranking_sign).sum(dim=1) * has_object  # (B,)
    loss = (weight_dice * dice_terms + weight_ranking * ranking_terms).sum() / len(masks)
    with torch.no_grad():
        best = torch.where(has_object, dice[:, -1].argmin(dim=1), -1)
        iou = _best_iou(mask_probs[:, -1], masks, best)
        num_objects = has_object.sum().clamp(min=1)
        parts = [(terms * has_object).sum() / num_objects for terms in (dice_terms, ranking_terms, iou)]
    return SelfMaskLosses(loss, *parts, best)


def dice_losses(mask_probs: Tensor, masks: Tensor) -> Tensor:
    """Dice loss of every prediction, upsampled to the mask's size, against its image's mask.

    Args:
        mask_probs: probabilities in [0, 1], (B, L, Q, h, w).
        masks: (B, H, W), float32, 0 or 1.

    Returns:
        1 - (2 Σ p g + 1) / (Σ p + Σ g + 1), (B, L, Q), float32.

    Source: SelfMask, eq. 2; bilinear upsampling with align_corners=False.
    """
    size = mask_probs.shape[-2:]
    rows = _upsampling_matrix(size[0], masks.shape[1], masks.device)  # (H, h)
    columns = _upsampling_matrix(size[1], masks.shape[2], masks.device)  # (W, w)
    pulled = torch.einsum("hy,bhw,wx->byx", rows, masks, columns).flatten(1)  # Uᵀ g, (B, h·w)
    counts = torch.outer(rows.sum(dim=0), columns.sum(dim=0)).flatten()  # Uᵀ 1, (h·w)
    probs = mask_probs.float().flatten(3)  # (B, L, Q, h·w)
    # Plain sums, not matrix products: they add pairwise, so that near ties between queries come out right.
    overlap = (probs * pulled[:, None, None]).sum(dim=-1)
    predicted = (probs * counts).sum(dim=-1)
    actual = masks.flatten(1).sum(dim=1)[:, None, None]
    return 1 - (2 * overlap + 1) / (predicted + actual + 1)


def ranking_loss(objectness: Tensor, dice: Tensor, *, sign: RankingSign = "released") -> Tensor:
    """Pairwise hinge between the objectness of the queries and their order by dice loss.

    Args:
        objectness: in [0, 1], (B, L, Q); gets the gradient.
        dice: dice losses, (B, L, Q); only their order counts.
        sign: "released" charges max(0, better - worse), which teaches the *worse* mask the higher objectness although
            inference takes the query with the highest; "corrected" charges max(0, worse - better).

    Returns:
        Sum over all pairs of queries, (B, L), float32.

    Raises:
        ValueError: if ``sign`` is neither of the two.

    Source: SelfMask, eq. 3; "released" is what the published training code computes.
    """
    if sign not in ("released", "corrected"):
        raise ValueError(f"expected ranking_sign 'released' or 'corrected', received {sign!r}")
    order = dice.argsort(dim=-1, descending=True, stable=True)  # worst first
    scores = objectness.float().gather(-1, order)
    better_minus_worse = scores[..., None, :] - scores[..., :, None]  # (B, L, Q, Q), column behind row
    direction = 1.0 if sign == "released" else -1.0
    return (direction * better_minus_worse).clamp(min=0).triu(diagonal=1).sum(dim=(-2, -1))


def _upsampling_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """Bilinear interpolation (align_corners=False) along one axis as a matrix, (target, source), float32."""
    basis = torch.eye(source, device=device)[None]  # each row a unit impulse
    return interpolate(basis, size=target, mode="linear", align_corners=False)[0].T


def _best_iou(mask_probs: Tensor, masks: Tensor, best: Tensor) -> Tensor:
    """IoU at 0.5 of one upsampled query per image: (B, Q, h, w), (B, H, W), (B,) -> (B,) float32."""
    chosen = one_hot(best.clamp(min=0), mask_probs.shape[1]).to(mask_probs)
    chosen = torch.einsum("bq,bqhw->bhw", chosen, mask_probs).float()
    upsampled = interpolate(chosen[:, None], size=masks.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    predicted, actual = (upsampled > 0.5).flatten(1), masks.bool().flatten(1)
    union = (predicted | actual).sum(dim=1)
    return (predicted & actual).sum(dim=1) / (union + 1e-7)


def _check_shapes(mask_probs: Tensor, objectness: Tensor, masks: Tensor) -> None:
    """ValueError unless the three belong to the same images, layers and queries."""
    fits = mask_probs.ndim == 5 and masks.ndim == 3 and objectness.shape == mask_probs.shape[:3]
    if not fits or len(masks) != len(mask_probs) or not len(masks):
        raise ValueError(
            "expected mask_probs (B, L, Q, h, w), objectness (B, L, Q) and masks (B, H, W), received "
            f"{tuple(mask_probs.shape)}, {tuple(objectness.shape)} and {tuple(masks.shape)}"
        )
