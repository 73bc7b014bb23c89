"""Compiled pixel loops that give Pillow's results, bit for bit, in less time.

`datasets/photometric.py` and `datasets/geometric.py` use them; the tests compare them with Pillow over all colours and
many sizes.
"""

from __future__ import annotations

import math
from functools import cache

import cv2
import numba
import numpy as np
from PIL import Image

_PRECISION_BITS = 22  # of Pillow's fixed-point resampling weights
# Channels (largest, middle, smallest) in the six sectors of the hue circle, as `_shift_hue` numbers them.
_CHANNEL_ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1))


def shift_hue(image: np.ndarray, shift: int) -> np.ndarray:
    """Turn the hue of a picture: RGB to Pillow's 8-bit HSV, hue + shift modulo 256, back to RGB.

    Args:
        image: RGB, uint8, (H, W, 3).
        shift: in 1/256 of the colour circle, any sign.

    Returns:
        RGB, uint8, (H, W, 3); a new array.
    """
    pixels = np.ascontiguousarray(image).reshape(-1, 3)
    return _shift_hue(pixels, shift % 256, *_hsv_tables(), *_rgb_tables()).reshape(image.shape)


@cache
def _hsv_tables() -> tuple[np.ndarray, np.ndarray]:
    """Hue by (order of channels, spread, distance of the middle from the largest), saturation by (largest, smallest).

    Pillow itself fills them, so its rounding is in them: 6 * 65,536 and 65,536 bytes.
    """
    spread, distance = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    colours = np.zeros((6, 256, 256, 3), np.uint8)
    for order, (largest, middle, _) in enumerate(_CHANNEL_ORDERS):
        colours[order, ..., largest] = spread
        colours[order, ..., middle] = np.maximum(spread - distance, 0)
    hue = np.asarray(Image.fromarray(colours.reshape(-1, 256, 3)).convert("HSV"))[..., 0]
    largest, smallest = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    colours = np.stack([largest, np.minimum(smallest, largest), np.minimum(smallest, largest)], axis=-1).astype(
        np.uint8
    )
    saturation = np.asarray(Image.fromarray(colours).convert("HSV"))[..., 1]
    return hue.ravel().copy(), saturation.ravel().copy()


@cache
def _rgb_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For every hue: channels of the largest, middle and smallest value, whether the middle falls, and its fraction.

    And the strength of every saturation. Pillow mixes float32 and float64; the tables hold what it gets.
    """
    position = np.arange(256) * 6.0 / 255.0
    sector = np.floor(position).astype(np.int64)
    fraction = (position - sector).astype(np.float32)
    channels = np.array([(0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0), (2, 0, 1), (0, 2, 1)], np.int64)[sector % 6]
    return channels, sector % 2 == 1, fraction, (np.arange(256) / 255.0).astype(np.float32)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _shift_hue(
    pixels: np.ndarray,
    shift: int,
    hue_table: np.ndarray,
    saturation_table: np.ndarray,
    channels: np.ndarray,
    falls: np.ndarray,
    fractions: np.ndarray,
    strengths: np.ndarray,
) -> np.ndarray:
    out = np.empty_like(pixels)
    for i in range(pixels.shape[0]):
        red, green, blue = np.int64(pixels[i, 0]), np.int64(pixels[i, 1]), np.int64(pixels[i, 2])
        value, lowest = max(red, green, blue), min(red, green, blue)
        # Row of _CHANNEL_ORDERS: the first of the largest channels counts, as in Pillow.
        order = (
            (0 if blue == lowest else 1)
            if red == value
            else ((2 if blue == lowest else 3) if green == value else (4 if red == lowest else 5))
        )
        middle = red + green + blue - value - lowest
        hue = np.int64(hue_table[(order << 16) | ((value - lowest) << 8) | (value - middle)])
        hue = (hue + shift) & 255
        strength = strengths[saturation_table[(value << 8) | lowest]]
        fraction = fractions[hue]
        part = np.float64(strength * fraction) if falls[hue] else np.float64(strength) * (1.0 - np.float64(fraction))
        out[i, channels[hue, 0]] = value
        out[i, channels[hue, 1]] = np.int64(value * (1.0 - part) + 0.5)
        out[i, channels[hue, 2]] = np.int64(value * (1.0 - np.float64(strength)) + 0.5)
    return out


def resize_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture as Pillow's antialiased bilinear filter does.

    Args:
        image: uint8, (H, W, 3).
        size: (height, width) wanted, at least one pixel each.

    Returns:
        uint8, (height, width, 3).
    """
    height, width = size
    source_height, source_width = image.shape[:2]
    if (height, width) == (source_height, source_width):
        return image
    if height > source_height or width > source_width or source_height > 2 * source_width:
        # Pillow may go over the rows first here, which rounds differently: rare shapes, left to Pillow.
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    if width != source_width:
        # The inner loop of `_resize_rows` runs along memory; so the horizontal pass works on the transposed picture.
        image = cv2.transpose(_resize_rows(cv2.transpose(image), *_weights(source_width, width)))
    if height != source_height:
        image = _resize_rows(np.ascontiguousarray(image), *_weights(source_height, height))
    return image


def _weights(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """First source row (target,) and fixed-point weights (target, taps) of every row; unused taps are 0."""
    scale = source / target
    support = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    taps = np.arange(math.ceil(support) * 2 + 1)
    distance = np.abs((taps + first[:, None] - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where((distance < 1.0) & (taps < (last - first)[:, None]), 1.0 - distance, 0.0)
    total = np.zeros(target)
    for column in weights.T:  # one after the other, as Pillow adds them
        total += column
    weights /= total[:, None]
    return first, (0.5 + weights * (1 << _PRECISION_BITS)).astype(np.int32)


@numba.njit(cache=True, nogil=True)
def _resize_rows(image: np.ndarray, first: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of rows: (H, W, 3) -> (target, W, 3)."""
    height, length = image.shape[0], image.shape[1] * image.shape[2]
    rows = image.reshape(height, length)
    out = np.empty((len(first), length), np.uint8)
    total = np.empty(length, np.int32)
    for y in range(len(first)):
        total[:] = 1 << (_PRECISION_BITS - 1)
        for tap in range(weights.shape[1]):
            weight = weights[y, tap]
            if weight != 0:
                row = rows[first[y] + tap]
                for x in range(length):
                    total[x] += weight * np.int32(row[x])
        for x in range(length):
            out[y, x] = np.uint8(min(max(total[x] >> _PRECISION_BITS, 0), 255))
    return out.reshape(len(first), image.shape[1], image.shape[2])
