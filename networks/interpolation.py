"""Bilinear resizing of stacks of maps, its adjoint, and its one-dimensional matrices.

The adjoint turns a sum over the pixels of resized maps into a sum over the cells of the small ones. All follow
``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize maps bilinearly (align_corners false): (..., h, w) -> (..., H, W)."""
    flat = maps.flatten(0, -3)
    return F.interpolate(flat[None], size=tuple(size), mode="bilinear", align_corners=False)[0].unflatten(
        0, maps.shape[:-2]
    )


def resize_adjoint(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Apply the transpose of ``resize``: (..., H, W) -> (..., h, w), so that Σ resize(p)·g = Σ p·adjoint(g).

    Args:
        maps: float32, (..., H, W).
        grid: (h, w), the size that ``resize`` would start from.
    """
    rows = bilinear_matrix(grid[0], maps.shape[-2]).to(maps)
    columns = bilinear_matrix(grid[1], maps.shape[-1]).to(maps)
    return rows.T @ (maps @ columns)


@lru_cache(maxsize=64)
def bilinear_matrix(num_cells: int, num_pixels: int) -> Tensor:
    """Weights with which every pixel of a line is mixed from the cells: (num_pixels, num_cells), float32, CPU."""
    position = (torch.arange(num_pixels, dtype=torch.float64) + 0.5) * (num_cells / num_pixels) - 0.5
    position = position.clamp(min=0)
    low = position.floor().long().clamp(max=num_cells - 1)
    high = (low + 1).clamp(max=num_cells - 1)
    share = position - low
    matrix = torch.zeros(num_pixels, num_cells, dtype=torch.float64)
    pixel = torch.arange(num_pixels)
    matrix.index_put_((pixel, low), 1 - share, accumulate=True)
    matrix.index_put_((pixel, high), share, accumulate=True)
    return matrix.float()


@lru_cache(maxsize=64)
def source_cells(num_cells: int, num_pixels: int) -> tuple[tuple[int, int], ...]:
    """First and last cell of a line that each of its pixels is mixed from, for ``num_pixels`` pixels."""
    used = (bilinear_matrix(num_cells, num_pixels) > 0).int()
    last = num_cells - 1 - used.flip(1).argmax(dim=1)
    return tuple(zip(used.argmax(dim=1).tolist(), last.tolist(), strict=True))
