"""Position embeddings: learnt tables resampled to other grids, and sines computed for any grid.

Next: ``clip_encoder.py`` (tables), ``zutis.py`` (sines).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resample_position_embedding(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample a learnt table with a class entry to another patch grid.

    Args:
        table: class entry, then the native g×g grid row by row, (1 + g², C).
        grid: (rows, columns) wanted.

    Returns:
        (1, 1 + rows·columns, C), dtype of ``table``; the class entry is unchanged.

    Raises:
        ValueError: if the table is not one entry and a square grid.

    Source: ZUTIS encoder (after DINO). Kept for released weights: the factors (n + 0.1) / g are used as they are for
    the bicubic coordinates, and they are applied at the native size too, where the result is not the table itself.
    """
    native = math.isqrt(table.shape[0] - 1)
    if native * native != table.shape[0] - 1:
        raise ValueError(f"expected a class entry and a square grid, received a table with {table.shape[0]} rows")
    class_entry, patches = table[None, :1], table[None, 1:]
    patches = patches.unflatten(1, (native, native)).permute(0, 3, 1, 2)  # (1, g², C) -> (1, C, g, g)
    factors = [(size + 0.1) / native for size in grid]
    patches = F.interpolate(patches, scale_factor=factors, mode="bicubic", recompute_scale_factor=False)
    return torch.cat((class_entry, patches.flatten(2).transpose(1, 2)), dim=1)


def sine_position_axis(length: int, num_features: int, *, device: torch.device | str | None = None) -> Tensor:
    """Sines and cosines of the normalised positions 1 … length along one axis: (length, num_features), float32."""
    position = torch.arange(1, length + 1, dtype=torch.float64, device=device) / (length + 1e-6) * (2 * math.pi)
    feature = torch.arange(num_features, dtype=torch.float64, device=device)
    angle = position[:, None] / 10000.0 ** (2 * (feature // 2) / num_features)
    return torch.where(feature % 2 == 0, angle.sin(), angle.cos()).float()


def position_sine(grid: tuple[int, int], num_features: int, *, device: torch.device | str | None = None) -> Tensor:
    """Two-dimensional sine embedding of a grid.

    Args:
        grid: (h, w).
        num_features: features per axis.
        device: where to make it.

    Returns:
        (2·num_features, h, w), float32; the first half encodes y, the second half x.

    Source: DETR (Carion et al. 2020), normalised variant with temperature 10000.
    """
    height, width = grid
    y = sine_position_axis(height, num_features, device=device).T[:, :, None].expand(-1, -1, width)
    x = sine_position_axis(width, num_features, device=device).T[:, None, :].expand(-1, height, -1)
    return torch.cat((y, x))
