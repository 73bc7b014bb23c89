"""From the segmenter's outputs to label maps and instances.

Semantic labels compare every patch token with the categories; instances are mask proposals named by the tokens inside
them, thinned out by non-maximum suppression. Next: ``zutis.py`` (the outputs), ``mask_nms.py`` (the suppression).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from networks.interpolation import resize
from networks.mask_nms import NmsKind, mask_nms
from networks.resized_argmax import resized_argmax

MASK_THRESHOLD = 0.5
TEMPERATURE = 5.0
CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 27}


class Instances(NamedTuple):
    """The instances of one picture.

    Attributes:
        masks: (n, H, W), bool.
        scores: (n,), float32 in [0, 1].
        category_ids: (n,), int64, rows of the text embeddings; never 0, the background.
    """

    masks: Tensor
    scores: Tensor
    category_ids: Tensor


def semantic_logits(patch_tokens: Tensor, text: Tensor) -> Tensor:
    """Cosine of every patch token with every category: (B, h, w, D), (N, D) -> (B, N, h, w), float32.

    Raises:
        ValueError: if the dimensions D differ.
    """
    check_joint_dimension(patch_tokens, text)
    return (patch_tokens.float() @ text.float().T).permute(0, 3, 1, 2)


@torch.no_grad()
def predict_semantic(patch_tokens: Tensor, text: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Label every pixel with the category nearest to it.

    Args:
        patch_tokens: unit vectors, (B, h, w, D).
        text: unit text embeddings, background first, (N, D).
        size: (H, W) of the result; None: the tokens' own grid.

    Returns:
        (B, H, W), int64: arg-max of the bilinearly resized logits (align_corners false); the first of equal ones.

    Source: ZUTIS, section 3.2. The full-resolution logits never exist.
    """
    logits = semantic_logits(patch_tokens, text)
    return logits.argmax(dim=1) if size is None else resized_argmax(logits.permute(0, 2, 3, 1), size)


@torch.no_grad()
def predict_instances(
    mask_proposals: Tensor,
    patch_tokens: Tensor,
    text: Tensor,
    size: tuple[int, int] | None = None,
    *,
    nms: NmsKind | None = "hard",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
) -> list[Instances]:
    """Name the mask proposals and keep the best of those that overlap.

    Args:
        mask_proposals: probabilities, (B, L, Q, h, w) of which only the last layer counts, or (B, Q, h, w).
        patch_tokens: unit vectors, (B, h, w, D).
        text: unit text embeddings, background first, (N, D).
        size: (H, W) of the masks; None: the proposals' own grid.
        nms: kind of suppression, or None for none; see ``mask_nms``.
        iou_threshold, sigma, score_threshold: see ``mask_nms``.

    Returns:
        One ``Instances`` per picture; queries named background and empty masks are left out.

    Raises:
        ValueError: if sizes of masks and tokens, or dimensions of tokens and text, differ.

    Source: ZUTIS, section 3.3. Scores and categories come from the proposals' own grid, before resizing.
    """
    proposals = mask_proposals[:, -1] if mask_proposals.ndim == 5 else mask_proposals
    if proposals.shape[2:] != patch_tokens.shape[1:3]:
        raise ValueError(
            f"mask proposals {tuple(proposals.shape)} and patch tokens {tuple(patch_tokens.shape)} differ in h x w"
        )
    proposals = proposals.float()
    scores, categories = name_masks(proposals, patch_tokens, text)
    named = categories != 0
    counts = named.sum(dim=1).tolist()  # the only transfer to the host before the masks are there
    # Background queries never meet another category in the suppression: their masks need no resizing.
    masks = binarise(proposals[named], size)
    options = {"iou_threshold": iou_threshold, "sigma": sigma, "score_threshold": score_threshold}
    pieces = zip(masks.split(counts), scores[named].split(counts), categories[named].split(counts), strict=True)
    return [Instances(*mask_nms(*piece, kind=nms, **options)) for piece in pieces]


def name_masks(proposals: Tensor, patch_tokens: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """Find the category of every mask from the mean token inside it.

    Args:
        proposals: probabilities, (B, Q, h, w), float32.
        patch_tokens: unit vectors, (B, h, w, D).
        text: unit text embeddings, (N, D).

    Returns:
        scores: (B, Q), float32: mean probability inside the mask times the category's probability.
        category_ids: (B, Q), int64; an empty mask gets score 0 and category 0.
    """
    check_joint_dimension(patch_tokens, text)
    proposals, tokens = proposals.flatten(2), patch_tokens.float().flatten(1, 2)  # (B, Q, h·w), (B, h·w, D)
    inside = (proposals > MASK_THRESHOLD).float()
    area = inside.sum(dim=-1)
    confidence = (proposals * inside).sum(dim=-1) / (area + 1e-7)
    mean_token = (inside @ tokens) / (area[..., None] + 1e-7)
    mean_token = mean_token / (mean_token.norm(dim=-1, keepdim=True) + 1e-7)
    probability, category = (TEMPERATURE * (mean_token @ text.float().T)).sigmoid().max(dim=-1)
    return confidence * probability, category


def binarise(proposals: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize probabilities (n, h, w) bilinearly and threshold them: (n, H, W), bool."""
    if size is None or tuple(size) == tuple(proposals.shape[1:]):
        return proposals > MASK_THRESHOLD
    masks = torch.empty(len(proposals), *size, dtype=torch.bool, device=proposals.device)
    if len(proposals) == 0:  # nothing but background: torch refuses to resize no picture at all
        return masks
    group = max(CHUNK_ELEMENTS[_device_kind(proposals)] // (size[0] * size[1]), 1)
    for part, target in zip(proposals.split(group), masks.split(group), strict=True):
        torch.gt(resize(part, size), MASK_THRESHOLD, out=target)
    return masks


def check_joint_dimension(patch_tokens: Tensor, text: Tensor) -> None:
    """ValueError unless tokens (..., D) and text embeddings (N, D) live in the same space."""
    if text.ndim != 2 or text.shape[1] != patch_tokens.shape[-1]:
        raise ValueError(
            f"text embeddings {tuple(text.shape)} do not fit patch tokens {tuple(patch_tokens.shape)}: expected "
            f"(categories, {patch_tokens.shape[-1]}); take both from the same CLIP architecture"
        )


def _device_kind(x: Tensor) -> str:
    return "cuda" if x.is_cuda else "cpu"
