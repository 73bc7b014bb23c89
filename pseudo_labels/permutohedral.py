"""The permutohedral lattice: Gaussian filtering of points in a few dimensions, here of pixels by place and colour.

Every point lies in a simplex of a lattice that fills d-dimensional space. Its value is shared out to the d + 1 corners
("splat"), corners are blurred with their neighbours along d + 1 axes, and points read the result back ("slice"). This
file finds corners, weights and neighbours; `vertex_chains.py` orders the blur, `mean_field.py` does the filtering.

Source: Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from pseudo_labels.vertex_chains import chain_vertices
from utils.errors import UserError

_POINTS_PER_BLOCK = 4
_LARGEST_EXACT = 1 << 24  # whole numbers above it are not exact in float32
_FIRST_SLOTS = 1 << 14


@dataclass(frozen=True)
class LatticeGraph:
    """The same filter as `Lattice`, with the neighbours of vertices as they were found.

    Attributes:
        vertices, weights, gain: as in `Lattice`.
        following: the next vertex along each axis, -1 where there is none, (d + 1, V), int32.
        coordinates: of the vertices in the lattice, (d + 1, V), int32.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    following: NDArray[np.int32]
    coordinates: NDArray[np.int32]
    gain: float


@dataclass(frozen=True)
class Lattice:
    """A normalised filter over N points in d dimensions, with V vertices.

    The filter maps values q to gain · Σ weights · blur(Σ weights · q), where the blur replaces vertices along each axis
    in turn by v + ½ (previous + next). Its kernel K is normalised on both sides by (K 1)^-½.

    Attributes:
        vertices: vertex numbers of the corners of every point, (N, d + 1), int32.
        weights: barycentric weight of each corner times the point's normalisation, (N, d + 1), float32.
        chains: vertices in the order in which they are blurred, as `chain_vertices` gives it, int32.
        num_vertices: V.
        gain: factor of the filter's result.
    """

    vertices: NDArray[np.int32]
    weights: NDArray[np.float32]
    chains: NDArray[np.int32]
    num_vertices: int
    gain: float


def build_lattice(features: NDArray[np.float32]) -> Lattice:
    """Prepare the filter of `build_graph` for the compiled loops of `mean_field.py`."""
    graph = build_graph(features)
    chains = chain_vertices(graph.following, graph.coordinates)
    return Lattice(graph.vertices, graph.weights, chains, graph.following.shape[1], graph.gain)


def build_graph(features: NDArray[np.float32]) -> LatticeGraph:
    """Prepare the filter exp(-½ ‖f_i - f_j‖²) over points.

    Args:
        features: coordinates of the points in units of the kernel's standard deviation, (d, N), float32, d and N ≥ 1.
            Their rounding decides in which simplex a point lies.

    Raises:
        UserError: if the points lie so many standard deviations apart that vertices cannot be numbered.
    """
    num_dims, num_points = features.shape
    if not np.abs(features).max() * (num_dims + 1) ** 2 < _LARGEST_EXACT:
        raise _too_narrow()
    # Kept for released weights: the original fills its last block with points at 0, whose corners take part in the
    # blur. It shows in the marginals only, by up to 1e-4.
    padded = np.pad(features, ((0, 0), (0, 1))) if num_points % _POINTS_PER_BLOCK else features
    origins, ranks, remainders = _enclosing_simplices(padded)
    packing = _Packing.of(origins)
    vertices, weights, keys, slots = _find_corners(packing.pack(origins), ranks, remainders, packing.strides)
    vertices, weights = vertices[:num_points], weights[:num_points]
    following = _find_following(keys, slots, packing.neighbour_steps())
    gain = 1 / (1 + 2.0**-num_dims)
    norm = _filter_ones(vertices, weights, following) * np.float32(gain)
    weights *= (1 / np.sqrt(norm + np.float32(1e-20)))[:, None]
    return LatticeGraph(vertices, weights, following, packing.unpack(keys), gain)


def _too_narrow() -> UserError:
    return UserError(
        "A kernel of the dense CRF is too narrow for this picture: the vertices of its lattice cannot be numbered. "
        "Raise gaussian_sxy, bilateral_sxy or bilateral_srgb."
    )


def _enclosing_simplices(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.int32], NDArray[np.int8], NDArray[np.float32]]:
    """The simplex of every point and the place of the point in it.

    Float32 in exactly this order of operations: rounding decides between two simplices.

    Returns:
        Coordinates of the lattice point where the simplex begins, int32; ranks of the remainders, 0 for the largest to
        d, int8; remainders / (d + 1), float32. All (d + 1, N).
    """
    num_dims, num_points = features.shape
    num_corners = np.float32(num_dims + 1)
    elevated = np.empty((num_dims + 1, num_points), np.float32)
    running = np.zeros(num_points, np.float32)
    spread = float(np.float32(math.sqrt(2 / 3) * (num_dims + 1)))  # rounded before it is divided, as in the original
    for axis in range(num_dims, 0, -1):
        coordinate = features[axis - 1] * np.float32(spread / math.sqrt(axis * (axis + 1)))
        elevated[axis] = running - np.float32(axis) * coordinate
        running += coordinate
    elevated[0] = running
    rounded = np.rint(elevated * (np.float32(1) / num_corners))
    origins = rounded * num_corners
    ranks = _rank_rows(elevated - origins)
    ranks += rounded.astype(np.int32).sum(axis=0).astype(np.int8)
    wraps = (ranks < 0).astype(np.int8) - (ranks > num_dims)
    ranks += wraps * np.int8(num_dims + 1)
    origins += wraps * num_corners
    return origins.astype(np.int32), ranks, (elevated - origins) / num_corners


def _rank_rows(remainders: NDArray[np.float32]) -> NDArray[np.int8]:
    """Per column, how many rows come before each: those that are larger, and earlier ones that are equal."""
    ranks = np.zeros(remainders.shape, np.int8)
    for i in range(len(remainders)):
        for j in range(i + 1, len(remainders)):
            is_less = remainders[i] < remainders[j]
            ranks[i] += is_less
            ranks[j] += ~is_less
    return ranks


@dataclass(frozen=True)
class _Packing:
    """Vertices as single numbers: the first d coordinates in a mixed-radix system over the box that they fill."""

    lows: tuple[int, ...]  # smallest value of each coordinate that is ever asked for
    sizes: tuple[int, ...]  # number of values of each
    strides: NDArray[np.int64]  # (d + 1,); 0 for the last coordinate, which follows from the others

    @classmethod
    def of(cls, origins: NDArray[np.int32]) -> _Packing:
        """The box around simplices that begin at these points, their corners and the neighbours of these."""
        num_corners = len(origins)
        lows = tuple(int(row.min()) - 2 * num_corners for row in origins[:-1])
        sizes = tuple(int(row.max()) + 2 * num_corners - low + 1 for row, low in zip(origins[:-1], lows, strict=True))
        if math.prod(sizes) >= 1 << 62:
            raise _too_narrow()
        strides = [math.prod(sizes[:axis]) for axis in range(num_corners - 1)]
        return cls(lows, sizes, np.array([*strides, 0], np.int64))

    def pack(self, coordinates: NDArray[np.int32]) -> NDArray[np.int64]:
        """Keys of the vertices at these coordinates, (d + 1, N) -> (N,)."""
        keys = np.zeros(coordinates.shape[1], np.int64)
        for row, low, stride in zip(coordinates[:-1], self.lows, self.strides[:-1], strict=True):
            keys += (row - np.int64(low)) * stride
        return keys

    def unpack(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        """Coordinates of vertices, (V,) -> (d + 1, V)."""
        coordinates = np.zeros((len(self.strides), len(keys)), np.int32)
        for row, low, size in zip(coordinates[:-1], self.lows, self.sizes, strict=True):
            keys, remainder = np.divmod(keys, size)
            row[:] = remainder
            row += low
        coordinates[-1] = -coordinates[:-1].sum(axis=0)
        return coordinates

    def neighbour_steps(self) -> NDArray[np.int64]:
        """What to add to a key for the next vertex along each axis: 1 on all coordinates but one, there -d."""
        return self.strides.sum() - len(self.strides) * self.strides


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _first_slot(key: int, num_slots: int) -> int:
    """Where a key is looked for first: the upper bits of a product with 2⁶⁴ / golden ratio."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & (num_slots - 1)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _find_corners(
    origins: np.ndarray, ranks: np.ndarray, remainders: np.ndarray, strides: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number the corners of all simplices in the order in which they occur.

    Returns vertices (N, d + 1), weights (N, d + 1), the key of every vertex (V,), and the table to find them in:
    `slots` holds vertex numbers, -1 where free.
    """
    num_corners, num_points = ranks.shape
    vertices = np.empty((num_points, num_corners), np.int32)
    weights = np.empty((num_points, num_corners), np.float32)
    slots, keys, num_vertices = np.full(_FIRST_SLOTS, -1, np.int32), np.empty(_FIRST_SLOTS // 2, np.int64), 0
    axis_of_rank, sorted_remainders = np.empty(num_corners, np.int64), np.empty(num_corners, np.float32)
    all_strides = strides.sum()
    for point in range(num_points):
        is_same = point > 0 and origins[point] == origins[point - 1]
        for axis in range(num_corners):
            rank = np.int64(ranks[axis, point])
            is_same = is_same and axis_of_rank[rank] == axis
            axis_of_rank[rank] = axis
            sorted_remainders[rank] = remainders[axis, point]
        first, last = sorted_remainders[0], sorted_remainders[num_corners - 1]
        weights[point, 0] = last + (np.float32(1) - first)
        for corner in range(1, num_corners):
            rank = num_corners - 1 - corner
            weights[point, corner] = sorted_remainders[rank] - sorted_remainders[rank + 1]
        if is_same:
            vertices[point] = vertices[point - 1]
            continue
        if 2 * (num_vertices + num_corners) > len(slots):
            slots, keys = _double_table(keys, num_vertices)
        key = origins[point]
        for corner in range(num_corners):
            if corner > 0:
                key += all_strides - num_corners * strides[axis_of_rank[num_corners - corner]]
            slot = _first_slot(key, len(slots))
            while slots[slot] >= 0 and keys[slots[slot]] != key:
                slot = (slot + 1) & (len(slots) - 1)
            if slots[slot] < 0:
                slots[slot], keys[num_vertices] = num_vertices, key
                num_vertices += 1
            vertices[point, corner] = slots[slot]
    return vertices, weights, keys[:num_vertices].copy(), slots


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _double_table(keys: np.ndarray, num_vertices: int) -> tuple[np.ndarray, np.ndarray]:
    slots, longer = np.full(4 * len(keys), -1, np.int32), np.empty(2 * len(keys), np.int64)
    longer[:num_vertices] = keys[:num_vertices]
    for vertex in range(num_vertices):
        slot = _first_slot(keys[vertex], len(slots))
        while slots[slot] >= 0:
            slot = (slot + 1) & (len(slots) - 1)
        slots[slot] = vertex
    return slots, longer


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _find_following(keys: np.ndarray, slots: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The next vertex along each axis, -1 where there is none, (d + 1, V), int32."""
    following = np.empty((len(steps), len(keys)), np.int32)
    for axis in range(len(steps)):
        for vertex in range(len(keys)):
            wanted = keys[vertex] + steps[axis]
            slot = _first_slot(wanted, len(slots))
            while slots[slot] >= 0 and keys[slots[slot]] != wanted:
                slot = (slot + 1) & (len(slots) - 1)
            following[axis, vertex] = slots[slot]
    return following


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _filter_ones(vertices: np.ndarray, weights: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Splat, blur and slice the value 1 at every point: (N,), float32, without the gain."""
    num_axes, num_vertices = following.shape
    values, half = np.zeros(num_vertices, np.float32), np.float32(0.5)
    for point in range(len(vertices)):
        for corner in range(num_axes):
            values[vertices[point, corner]] += weights[point, corner]
    for axis in range(num_axes):
        blurred = values.copy()
        for vertex in range(num_vertices):
            neighbour = following[axis, vertex]
            if neighbour >= 0:
                blurred[vertex] += half * values[neighbour]
                blurred[neighbour] += half * values[vertex]
        values = blurred
    result = np.zeros(len(vertices), np.float32)
    for point in range(len(vertices)):
        for corner in range(num_axes):
            result[point] += weights[point, corner] * values[vertices[point, corner]]
    return result
