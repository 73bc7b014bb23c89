"""The bilateral grid: pixels that share a cell of position and colour become one vertex of a small graph.

Used by `bilateral_solver.py`. Cells are numbered by whole numbers over the box that the picture fills, so vertices and
their neighbours are found by looking up a table instead of sorting floating-point hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

# Rows: luma and the two chroma values of JPEG, each from R, G, B, all 0 to 255.
COLOUR_MATRIX = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
COLOUR_OFFSETS = (0.0, 128.0, 128.0)
_MILLIONTHS = tuple(tuple(round(1e6 * value) for value in row) for row in COLOUR_MATRIX)
_MAX_TABLE_CELLS = 1 << 26  # above this many cells (very large pictures) vertices are found by sorting
_NEAR_BORDER = 1e-9  # cells; far above the rounding of the original, far below its smallest step


@dataclass(frozen=True)
class ColourGrid:
    """The occupied vertices of a picture.

    Attributes:
        vertex_of_pixel: vertex number of every pixel in raster order, (H·W,), int32. Vertices are in ascending order
            of the original's hash x + 255·y + 255²·Y + 255³·U + 255⁴·V.
        counts: pixels of every vertex, (V,), int64.
        blur: the sum of the [1 2 1] filters along the five axes, (V, V): 10 on the diagonal, 1 between neighbours.
        diagonal_positions: where the diagonal stands in `blur.data`, (V,).
    """

    vertex_of_pixel: NDArray[np.int32]
    counts: NDArray[np.int64]
    blur: sparse.csr_array
    diagonal_positions: NDArray[np.int64]


def build_grid(image: NDArray[np.uint8], sigma_spatial: float, sigma_luma: float, sigma_chroma: float) -> ColourGrid:
    """Group the pixels of a picture.

    Args:
        image: RGB, (H, W, 3), uint8.
        sigma_spatial: pixels per cell.
        sigma_luma: luma levels per cell.
        sigma_chroma: chroma levels per cell.

    Returns:
        The grid of the picture. Other than in the original, pictures of more than 254 cells per side cannot collide.
    """
    keys, strides = _cell_keys(image, sigma_spatial, (sigma_luma, sigma_chroma, sigma_chroma))
    vertices, vertex_of_pixel = _find_vertices(keys, strides[-1])
    counts = np.bincount(vertex_of_pixel, minlength=len(vertices))
    blur, diagonal_positions = _build_blur(vertices, strides[:-1])
    return ColourGrid(vertex_of_pixel, counts, blur, diagonal_positions)


def _cell_keys(
    image: NDArray[np.uint8], sigma_spatial: float, sigma_colour: tuple[float, float, float]
) -> tuple[NDArray[np.signedinteger], list[int]]:
    """Number the cell of every pixel; returns keys (H·W,) and the stride of every axis x, y, Y, U, V, then the total.

    Every axis has one empty cell after its last occupied one, so that a step over the edge never meets a vertex.
    """
    height, width = image.shape[:2]
    colour_bins = [bins - bins.min() for bins in _colour_bins(image, sigma_colour)]
    columns = (np.arange(width) / sigma_spatial).astype(np.int64)
    rows = (np.arange(height) / sigma_spatial).astype(np.int64)
    sizes = [int(axis.max()) + 2 for axis in (columns, rows, *colour_bins)]
    strides = [1]
    for size in sizes:
        strides.append(strides[-1] * size)
    dtype = np.int32 if strides[-1] < 2**31 else np.int64
    position = (rows[:, None] * strides[1] + columns[None, :]).astype(dtype)
    luma, chroma_u, chroma_v = (bins.astype(dtype, copy=False) for bins in colour_bins)
    keys = (chroma_v * dtype(strides[4])).reshape(height, width)
    keys += chroma_u.reshape(height, width) * dtype(strides[3])
    keys += luma.reshape(height, width) * dtype(strides[2])
    keys += position
    return keys.reshape(-1), strides


def _colour_bins(image: NDArray[np.uint8], sigmas: tuple[float, float, float]) -> list[NDArray[np.int32]]:
    """Bin luma and chroma of every pixel exactly as the original's float64 matrix product does.

    Whole numbers give every bin but those of colours that lie on the border between two; rounding decides there, and
    these few colours go through `_exact_bin`.
    """
    channels = [np.ascontiguousarray(image[..., i]).reshape(-1).astype(np.int32) for i in range(3)]
    results = []
    for axis, sigma in enumerate(sigmas):
        weights = [np.int32(weight) for weight in _MILLIONTHS[axis]]  # sums stay below 2**28
        millionths = channels[0] * weights[0]
        millionths += channels[1] * weights[1]
        millionths += channels[2] * weights[2]
        millionths += np.int32(1e6 * COLOUR_OFFSETS[axis])
        cells = millionths * (1e-6 / sigma)
        bins = (cells + _NEAR_BORDER).astype(np.int32)
        near = np.flatnonzero(np.abs(cells - bins) <= _NEAR_BORDER)
        if len(near):
            codes = (channels[0][near] << 16) | (channels[1][near] << 8) | channels[2][near]
            colours, inverse = np.unique(codes, return_inverse=True)
            bins[near] = np.array([_exact_bin(int(code), axis, sigma) for code in colours], np.int32)[inverse]
        results.append(bins)
    return results


@lru_cache(maxsize=1 << 14)
def _exact_bin(code: int, axis: int, sigma: float) -> int:
    """Bin of one colour (0xRRGGBB) with the roundings of the original.

    Kept for released weights: a float64 matrix product accumulates R, G, B in this order, each step fused (rounded
    once). It puts greys such as 16, 32 and 64 one bin below where exact arithmetic has them.
    """
    accumulated = 0.0
    for weight, level in zip(COLOUR_MATRIX[axis], (code >> 16, code >> 8 & 255, code & 255), strict=True):
        accumulated = float(Fraction(weight) * level + Fraction(accumulated))
    return int((accumulated + COLOUR_OFFSETS[axis]) / sigma)


def _find_vertices(
    keys: NDArray[np.signedinteger], num_cells: int
) -> tuple[NDArray[np.signedinteger], NDArray[np.int32]]:
    """The occupied cells in ascending order (V,), and the vertex number of every pixel (H·W,)."""
    if num_cells > _MAX_TABLE_CELLS:
        vertices, inverse = np.unique(keys, return_inverse=True)
        return vertices, inverse.astype(np.int32)
    occupied = np.zeros(num_cells, bool)
    occupied[keys] = True
    vertices = np.flatnonzero(occupied)
    number_of_cell = np.empty(num_cells, np.int32)  # only occupied cells are ever written or read
    number_of_cell[vertices] = np.arange(len(vertices), dtype=np.int32)
    return vertices, number_of_cell[keys]


def _build_blur(vertices: NDArray[np.signedinteger], strides: list[int]) -> tuple[sparse.csr_array, NDArray[np.int64]]:
    """Connect vertices that are one cell apart along one axis; returns the matrix and its diagonal's positions."""
    num_vertices = len(vertices)
    own = np.arange(num_vertices, dtype=np.int32)
    # Columns of a row must ascend: −V, −U, −Y, −y, −x, itself, +x, +y, +Y, +U, +V.
    neighbours = np.full((num_vertices, 11), -1, np.int32)
    neighbours[:, 5] = own
    for axis, stride in enumerate(strides):
        wanted = vertices + stride
        found = np.searchsorted(vertices, wanted)
        found[found == num_vertices] = 0
        below = np.flatnonzero(vertices[found] == wanted)
        above = found[below]
        neighbours[below, 6 + axis] = above
        neighbours[above, 4 - axis] = below
    exists = neighbours >= 0
    indptr = np.zeros(num_vertices + 1, np.int32)
    np.cumsum(exists.sum(axis=1), out=indptr[1:])
    diagonal_positions = indptr[:-1] + exists[:, :5].sum(axis=1)
    data = np.ones(indptr[-1])
    data[diagonal_positions] = 2 * len(strides)
    blur = sparse.csr_array((data, neighbours[exists], indptr), shape=(num_vertices, num_vertices))
    return blur, diagonal_positions
