"""The compiled loops of the dense CRF: mean-field updates with two lattice filters, sixteen classes at a time.

Values lie in groups of 16 classes, inside a group pixel after pixel: the vertices of a group fit the cache, a pixel is
one row (`lanes.py`), and all groups use one lattice (`permutohedral.py`). Probabilities, the sum of the messages and
the next probabilities take turns in one array; the second array holds the unary terms.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from pseudo_labels import lanes
from pseudo_labels.lanes import LANES, LanesType, empty_rows
from pseudo_labels.permutohedral import Lattice
from pseudo_labels.vertex_chains import LOOK_AHEAD
from utils.errors import UserError

_PLACE_CORNERS, _COLOUR_CORNERS = 3, 6  # of simplices in 2 and 5 dimensions
_PIXELS_PER_BLOCK = 64
_PIXELS_AHEAD = 16  # whose vertices are fetched from memory
_SPARE_ROWS = 5  # between groups, so that one pixel's rows do not compete for the same places in the cache
_NEVER = np.float32(-1e30)  # logarithm of the probability of the classes that fill up the last group


def not_finite(bad_class: int) -> UserError:
    """The error for scores of a class that are not finite."""
    return UserError(
        f"The scores of class {bad_class} hold NaN or infinity; the dense CRF needs finite numbers. Check the weights "
        "of the network, and run it with precision fp32 if it ran in half precision."
    )


class MeanField:
    """Class probabilities of one picture, and the updates of them.

    Args:
        scores: class scores before the softmax, (C, N), float32, C-contiguous.
        min_probability: unary probabilities below this are raised to it.

    Raises:
        UserError: if a score is not finite.
    """

    def __init__(self, scores: NDArray[np.float32], min_probability: float) -> None:
        self._num_classes, self._num_pixels = scores.shape
        num_groups = -(-self._num_classes // LANES)
        self._group_rows = self._num_pixels + _SPARE_ROWS
        self._unary, self._state = (empty_rows(num_groups * self._group_rows) for _ in range(2))
        bad_class = _pack(scores, self._unary, self._group_rows)
        if bad_class >= 0:
            raise not_finite(bad_class)
        surplus = np.zeros((num_groups, LANES), np.float32)
        surplus.reshape(-1)[self._num_classes :] = _NEVER
        floor = np.float32(math.log(min_probability))
        _bound_unary(self._unary, self._group_rows, self._num_pixels, floor, surplus)
        _softmax(self._unary, self._state, self._group_rows, self._num_pixels)

    def update(self, place: Lattice, colour: Lattice, weights: tuple[float, float], times: int) -> None:
        """Apply Q ← softmax(-U + w_place · K_place Q + w_colour · K_colour Q).

        Args:
            place: filter over the pixels' places, two-dimensional.
            colour: filter over places and colours, five-dimensional.
            weights: w_place and w_colour.
            times: number of updates.
        """
        place_arrays, colour_arrays = (
            (lattice.vertices, lattice.weights, lattice.chains, empty_rows(lattice.num_vertices + 2))
            for lattice in (place, colour)
        )
        place_gain, colour_gain = np.float32(weights[0] * place.gain), np.float32(weights[1] * colour.gain)
        for _ in range(times):
            for first_row in range(0, len(self._state), self._group_rows):
                state, unary = (rows[first_row : first_row + self._group_rows] for rows in (self._state, self._unary))
                _pass_messages(state, unary, *place_arrays, place_gain, *colour_arrays, colour_gain)
            _softmax(self._state, self._state, self._group_rows, self._num_pixels)

    def probabilities(self) -> NDArray[np.float32]:
        """The marginals, (C, N)."""
        result = np.empty((self._num_classes, self._num_pixels), np.float32)
        _unpack(self._state, self._group_rows, result)
        return result

    def labels(self) -> NDArray[np.int64]:
        """The first of the most probable classes, (N,)."""
        return _argmax(self._state, self._group_rows, self._num_pixels)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pack(scores: np.ndarray, packed: np.ndarray, group_rows: int) -> int:
    """Put classes side by side; returns the first class with a score that is not finite, else -1.

    In blocks of pixels, because the rows of a block stay in the cache until all 16 classes are there.
    """
    num_classes, num_pixels = scores.shape
    for first_class in range(0, num_classes, LANES):
        for first_pixel in range(0, num_pixels, _PIXELS_PER_BLOCK):
            count = min(_PIXELS_PER_BLOCK, num_pixels - first_pixel)
            first_row = first_class // LANES * group_rows + first_pixel
            rows = packed[first_row : first_row + count]
            for lane in range(LANES):
                if first_class + lane >= num_classes:
                    rows[:, lane] = _NEVER
                    continue
                values, is_finite = scores[first_class + lane, first_pixel : first_pixel + count], True
                for pixel in range(count):
                    is_finite &= np.isfinite(values[pixel])
                    rows[pixel, lane] = values[pixel]
                if not is_finite:
                    return first_class + lane
    return -1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _unpack(packed: np.ndarray, group_rows: int, result: np.ndarray) -> None:
    """The inverse of `_pack`."""
    num_classes, num_pixels = result.shape
    for first_class in range(0, num_classes, LANES):
        for first_pixel in range(0, num_pixels, _PIXELS_PER_BLOCK):
            count = min(_PIXELS_PER_BLOCK, num_pixels - first_pixel)
            first_row = first_class // LANES * group_rows + first_pixel
            rows = packed[first_row : first_row + count]
            for lane in range(min(LANES, num_classes - first_class)):
                values = result[first_class + lane, first_pixel : first_pixel + count]
                for pixel in range(count):
                    values[pixel] = rows[pixel, lane]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _bound_unary(unary: np.ndarray, group_rows: int, num_pixels: int, floor: float, surplus: np.ndarray) -> None:
    """Turn scores x into -U = max(log softmax(x), floor); `surplus` is added, one row per group."""
    for pixel in range(num_pixels):
        shift = _largest_of_pixel(unary, group_rows, pixel)
        top, terms = lanes.fill(shift), lanes.fill(np.float32(0))
        for group in range(len(surplus)):
            row = lanes.load(unary, group * group_rows + pixel)
            terms = lanes.add(terms, lanes.exp(lanes.subtract(row, top)))
        rest, lowest = lanes.fill(math.log(lanes.total(terms))), lanes.fill(floor)
        for group in range(len(surplus)):
            row = lanes.subtract(lanes.subtract(lanes.load(unary, group * group_rows + pixel), top), rest)
            row = lanes.add(lanes.maximum(row, lowest), lanes.load(surplus, group))
            lanes.store(unary, group * group_rows + pixel, row)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _softmax(source: np.ndarray, result: np.ndarray, group_rows: int, num_pixels: int) -> None:
    """Softmax over the classes of every pixel; source and result may be the same."""
    num_groups = len(source) // group_rows
    for pixel in range(num_pixels):
        top = lanes.fill(_largest_of_pixel(source, group_rows, pixel))
        terms = lanes.fill(np.float32(0))
        for group in range(num_groups):
            row = lanes.exp(lanes.subtract(lanes.load(source, group * group_rows + pixel), top))
            lanes.store(result, group * group_rows + pixel, row)
            terms = lanes.add(terms, row)
        inverse = lanes.fill(np.float32(1) / lanes.total(terms))
        for group in range(num_groups):
            row = lanes.multiply(lanes.load(result, group * group_rows + pixel), inverse)
            lanes.store(result, group * group_rows + pixel, row)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _largest_of_pixel(values: np.ndarray, group_rows: int, pixel: int) -> float:
    highest = lanes.load(values, pixel)
    for row in range(group_rows + pixel, len(values), group_rows):
        highest = lanes.maximum(highest, lanes.load(values, row))
    return lanes.largest(highest)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _argmax(values: np.ndarray, group_rows: int, num_pixels: int) -> np.ndarray:
    """The first class with the largest value of each pixel, (N,), int64; values are not negative."""
    labels = np.empty(num_pixels, np.int64)
    for pixel in range(num_pixels):
        highest, best = np.float32(-1), pixel
        for row in range(pixel, len(values), group_rows):
            largest = lanes.largest(lanes.load(values, row))
            if largest > highest:
                highest, best = largest, row
        lane = 0
        while lane < LANES - 1 and values[best, lane] != highest:
            lane += 1
        labels[pixel] = best // group_rows * LANES + lane
    return labels


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _pass_messages(
    state: np.ndarray,
    unary: np.ndarray,
    place_vertices: np.ndarray,
    place_weights: np.ndarray,
    place_chains: np.ndarray,
    place_values: np.ndarray,
    place_gain: float,
    colour_vertices: np.ndarray,
    colour_weights: np.ndarray,
    colour_chains: np.ndarray,
    colour_values: np.ndarray,
    colour_gain: float,
) -> None:
    """Replace the probabilities of 16 classes by unary term plus messages."""
    place_values[:] = 0
    colour_values[:] = 0
    last_pixel = len(place_vertices) - 1
    for pixel in range(len(place_vertices)):
        later = min(pixel + _PIXELS_AHEAD, last_pixel)
        _fetch(place_values, place_vertices[later], colour_values, colour_vertices[later])
        row = lanes.load(state, pixel)
        for corner in range(_PLACE_CORNERS):
            _add_to(place_values, place_vertices[pixel, corner], place_weights[pixel, corner], row)
        for corner in range(_COLOUR_CORNERS):
            _add_to(colour_values, colour_vertices[pixel, corner], colour_weights[pixel, corner], row)
    _blur(place_values, place_chains)
    _blur(colour_values, colour_chains)
    for pixel in range(len(place_vertices)):
        later = min(pixel + _PIXELS_AHEAD, last_pixel)
        _fetch(place_values, place_vertices[later], colour_values, colour_vertices[later])
        place_message, colour_message = lanes.fill(np.float32(0)), lanes.fill(np.float32(0))
        for corner in range(_PLACE_CORNERS):
            row = lanes.load(place_values, place_vertices[pixel, corner])
            place_message = lanes.multiply_add(place_weights[pixel, corner], row, place_message)
        for corner in range(_COLOUR_CORNERS):
            row = lanes.load(colour_values, colour_vertices[pixel, corner])
            colour_message = lanes.multiply_add(colour_weights[pixel, corner], row, colour_message)
        row = lanes.multiply_add(place_gain, place_message, lanes.load(unary, pixel))
        lanes.store(state, pixel, lanes.multiply_add(colour_gain, colour_message, row))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fetch(
    place_values: np.ndarray, place_vertices: np.ndarray, colour_values: np.ndarray, colour_vertices: np.ndarray
) -> None:
    for corner in range(_PLACE_CORNERS):
        lanes.prefetch(place_values, place_vertices[corner])
    for corner in range(_COLOUR_CORNERS):
        lanes.prefetch(colour_values, colour_vertices[corner])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _add_to(values: np.ndarray, vertex: int, weight: float, row: LanesType) -> None:
    lanes.store(values, vertex, lanes.multiply_add(weight, row, lanes.load(values, vertex)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _blur(values: np.ndarray, chains: np.ndarray) -> None:
    """v ← v + ½ (previous + next) along chains, in place: the previous value is kept as it was.

    Two rows follow those of the vertices. The first stays 0 and closes chains; what a chain's end would write there
    goes to the second, so that the loop has no branch, which could not be predicted.
    """
    end_of_chain, later = len(values) - 2, chains[LOOK_AHEAD:]
    half, previous = np.float32(0.5), lanes.fill(np.float32(0))
    vertex = np.int64(chains[0])
    current = lanes.load(values, vertex)
    for i in range(1, len(later)):
        lanes.prefetch(values, later[i])
        following = np.int64(chains[i])
        neighbour = lanes.load(values, following)
        row = lanes.multiply_add(half, lanes.add(previous, neighbour), current)
        lanes.store(values, vertex + (vertex == end_of_chain), row)
        vertex, previous, current = following, current, neighbour
