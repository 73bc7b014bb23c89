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
_ROUNDING = 4e-7  # of single precision, relative to the largest level: several roundings of 2**-24 each
_ON_BORDER = 1e-9  # cells; far above the rounding of the original, far below its smallest step


@dataclass(frozen=True)
class ColourGrid:
    """The occupied vertices of a picture.

    Attributes:
        vertex_of_pixel: vertex number of every pixel in raster order, (H·W,), int32. Vertices are numbered by how many
            neighbours they have: rows of one length after another make products with `blur` twice as fast.
        vertex_of_hash: vertex numbers in ascending order of the original's hash
            x + 255·y + 255²·Y + 255³·U + 255⁴·V, (V,), int32.
        counts: pixels of every vertex, (V,), int64.
        blur: the sum of the [1 2 1] filters along the five axes, (V, V): 10 on the diagonal, 1 between neighbours.
            The diagonal comes first in every row.
    """

    vertex_of_pixel: NDArray[np.int32]
    vertex_of_hash: NDArray[np.int32]
    counts: NDArray[np.int64]
    blur: sparse.csr_array


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
    cells = _CellTable(keys, strides[-1]) if strides[-1] <= _MAX_TABLE_CELLS else _SortedCells(keys)
    blur, vertex_of_hash = _build_blur(cells, strides[:-1])
    vertex_of_pixel = cells.number_pixels(vertex_of_hash)
    return ColourGrid(vertex_of_pixel, vertex_of_hash, np.bincount(vertex_of_pixel), blur)


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

    Single precision gives every bin but those of colours near the border between two, whole numbers all of these but
    the few exactly on it. Rounding decides there, as `_exact_bin` does.
    """
    channels = [image[..., i].reshape(-1).astype(np.float32) for i in range(3)]
    results = []
    for axis, sigma in enumerate(sigmas):
        red, green, blue = (np.float32(weight / sigma) for weight in COLOUR_MATRIX[axis])
        cells = channels[0] * red
        cells += channels[1] * green
        cells += channels[2] * blue
        cells += np.float32(COLOUR_OFFSETS[axis] / sigma)
        bins = cells.astype(np.int32)
        margin = np.float32(_ROUNDING * 256 / sigma)
        cells -= np.rint(cells)
        near = np.flatnonzero(np.abs(cells, out=cells) <= margin)
        if len(near):
            bins[near] = _careful_bins(image.reshape(-1, 3)[near], axis, sigma)
        results.append(bins)
    return results


def _careful_bins(colours: NDArray[np.uint8], axis: int, sigma: float) -> NDArray[np.int32]:
    """Bins of colours (N, 3) on one axis, where single precision does not decide."""
    millionths = colours.astype(np.int64) @ np.array(_MILLIONTHS[axis]) + round(1e6 * COLOUR_OFFSETS[axis])
    cells = millionths * (1e-6 / sigma)
    bins = (cells + _ON_BORDER).astype(np.int32)
    border = np.flatnonzero(np.abs(cells - bins) <= _ON_BORDER)
    if len(border):
        codes = colours[border].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        unique, inverse = np.unique(codes, return_inverse=True)
        bins[border] = np.array([_exact_bin(int(code), axis, sigma) for code in unique], np.int32)[inverse]
    return bins


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


class _CellTable:
    """The occupied cells of a box of cells, in ascending order: one table entry per cell of the box."""

    def __init__(self, keys: NDArray[np.signedinteger], num_cells: int) -> None:
        self._keys = keys
        self._occupied = np.zeros(num_cells, bool)
        self._occupied[keys] = True
        self.vertices = np.flatnonzero(self._occupied)
        self._number = np.empty(num_cells, np.int32)  # only occupied cells are ever written or read
        self._number[self.vertices] = np.arange(len(self.vertices), dtype=np.int32)

    def find(self, keys: NDArray[np.signedinteger]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Which of the keys are occupied (positions in `keys`), and which rows of `vertices` these are."""
        found = np.flatnonzero(self._occupied[keys])
        return found, self._number[keys[found]]

    def number_pixels(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Give the rows of `vertices` new numbers and look up those of all pixels; `find` may not be used after it."""
        self._number[self.vertices] = numbers
        return self._number[self._keys]


class _SortedCells:
    """The same for boxes too large for a table: cells are sorted and searched."""

    def __init__(self, keys: NDArray[np.signedinteger]) -> None:
        self.vertices, self._row_of_pixel = np.unique(keys, return_inverse=True)

    def find(self, keys: NDArray[np.signedinteger]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Which of the keys are occupied (positions in `keys`), and which rows of `vertices` these are."""
        rows = np.minimum(np.searchsorted(self.vertices, keys), len(self.vertices) - 1)
        found = np.flatnonzero(self.vertices[rows] == keys)
        return found, rows[found].astype(np.int32)

    def number_pixels(self, numbers: NDArray[np.int32]) -> NDArray[np.int32]:
        """Look up the new numbers of all pixels."""
        return numbers[self._row_of_pixel]


def _build_blur(cells: _CellTable | _SortedCells, strides: list[int]) -> tuple[sparse.csr_array, NDArray[np.int32]]:
    """Connect vertices that are one cell apart along one axis; returns the matrix and `vertex_of_hash`."""
    num_vertices = len(cells.vertices)
    pairs = [cells.find(cells.vertices + stride) for stride in strides]
    lengths = np.ones(num_vertices, np.int32)
    for below, above in pairs:
        lengths[below] += 1
        lengths[above] += 1
    by_length = np.argsort(lengths.astype(np.uint8), kind="stable")
    vertex_of_hash = np.empty(num_vertices, np.int32)
    vertex_of_hash[by_length] = np.arange(num_vertices, dtype=np.int32)
    indptr = np.zeros(num_vertices + 1, np.int32)
    np.cumsum(lengths[by_length], out=indptr[1:])
    indices, data = np.empty(indptr[-1], np.int32), np.ones(indptr[-1])
    next_place = indptr[vertex_of_hash]
    indices[next_place] = vertex_of_hash
    data[next_place] = 2 * len(strides)
    for below, above in pairs:
        for own, other in ((below, above), (above, below)):
            next_place[own] += 1
            indices[next_place[own]] = vertex_of_hash[other]
    return sparse.csr_array((data, indices, indptr), shape=(num_vertices, num_vertices)), vertex_of_hash
