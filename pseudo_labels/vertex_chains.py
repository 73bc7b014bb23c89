"""The order in which the vertices of a permutohedral lattice are blurred: in place, and with few passes over memory."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

LOOK_AHEAD = 256  # places in the chains between the vertex that is blurred and the one that is fetched from memory
_BUCKETS = 1 << 16


def chain_vertices(following: NDArray[np.int32], coordinates: NDArray[np.int32]) -> NDArray[np.int32]:
    """Chains of neighbours, to be blurred one after the other.

    Axis by axis, the values of 16 classes would travel d + 1 times between memory and a core's cache. But steps along
    half of the axes change the coordinates of the other half alike: vertices that agree in the differences of these
    meet only among themselves, and are blurred along all axes of that half while they are in the cache. Two travels.

    Args:
        following: the next vertex along each axis, -1 where there is none, (d + 1, V).
        coordinates: of the vertices, (d + 1, V); a step along an axis adds -d to its coordinate and 1 to the others.

    Returns:
        Vertex numbers, int32; every chain is closed by the number V, and `LOOK_AHEAD` more of it follow the last one.
        A vertex occurs once for each axis along which it has a neighbour.
    """
    num_axes, num_vertices = following.shape
    parts = []
    for axes in (slice(0, num_axes // 2), slice(num_axes // 2, num_axes)):
        bucket = np.zeros(num_vertices, np.int32)
        for difference in np.diff(np.delete(coordinates, axes, axis=0), axis=0):
            bucket = bucket * 251 + difference
        bucket = (bucket % _BUCKETS).astype(np.uint16)  # two sets that meet in one bucket do no harm
        parts.append(_chain(following[axes], np.argsort(bucket, kind="stable"), bucket))
    return np.concatenate([*parts, np.full(LOOK_AHEAD, num_vertices, np.int32)])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _chain(following: np.ndarray, order: np.ndarray, bucket: np.ndarray) -> np.ndarray:
    """Follow the chains of one bucket after another, axis by axis inside each; `order` sorts vertices by bucket."""
    num_axes, num_vertices = following.shape
    is_first = np.ones((num_axes, num_vertices), np.bool_)
    for axis in range(num_axes):
        for vertex in range(num_vertices):
            if following[axis, vertex] >= 0:
                is_first[axis, following[axis, vertex]] = False
    chained = np.empty(num_axes * (num_vertices + num_vertices // 2), np.int32)
    length, start = 0, 0
    while start < num_vertices:
        stop = start
        while stop < num_vertices and bucket[order[stop]] == bucket[order[start]]:
            stop += 1
        for axis in range(num_axes):
            for place in range(start, stop):
                vertex = order[place]
                if not is_first[axis, vertex] or following[axis, vertex] < 0:
                    continue
                while vertex >= 0:
                    chained[length] = vertex
                    length += 1
                    vertex = np.int64(following[axis, vertex])
                chained[length] = num_vertices
                length += 1
        start = stop
    return chained[:length].copy()
