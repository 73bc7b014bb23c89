"""Cosines of every cell of a feature map with given vectors, and the attention to a text that comes of them."""

from __future__ import annotations

import torch
from torch import Tensor

from networks.interpolation import resize

TEMPERATURE = 10.0


def cosine_maps(features: Tensor, vectors: Tensor) -> Tensor:
    """Compare every cell with every vector.

    Args:
        features: (B, D, h, w); normalised here.
        vectors: (N, D), or (D,) for one; taken to be of unit length.

    Returns:
        (B, N, h, w), or (B, h, w) for one vector: cosines, float32.

    Raises:
        ValueError: if the dimensions D differ.
    """
    if features.shape[1] != vectors.shape[-1]:
        raise ValueError(f"features {tuple(features.shape)} and vectors {tuple(vectors.shape)} differ in D")
    features = features.float()
    with torch.autocast(features.device.type, enabled=False):  # labels are decided by small differences
        norms = torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        cosines = torch.einsum("nd,bdhw->bnhw", vectors.float().view(-1, vectors.shape[-1]), features) / norms
    return cosines if vectors.ndim == 2 else cosines[:, 0]


def text_attention(
    features: Tensor, text: Tensor, size: tuple[int, int] | None = None, *, temperature: float = TEMPERATURE
) -> Tensor:
    """How well every place of a picture fits a text.

    Args:
        features: dense features of the CLIP that the text belongs to, (B, D, h, w).
        text: unit text vectors, (N, D), or (D,) for one.
        size: (H, W) of the result; None: the features' own grid.
        temperature: factor of the cosine inside the sigmoid.

    Returns:
        (B, N, H, W), or (B, H, W) for one vector, float32 in (0, 1).

    Raises:
        ValueError: if the dimensions D differ.

    Source: ReCo, section 3.2. The sigmoid comes before the bilinear resize (align_corners false).
    """
    attention = (temperature * cosine_maps(features, text)).sigmoid()
    return attention if size is None else resize(attention, size)
