"""Scale, pad, crop and flip of a picture with its mask, with the random decisions held apart from their application.

`draw_geometric` decides, `plan_crop` turns decisions and a picture size into a `CropPlan`, and `crop_mask` /
`crop_image` carry it out. Colours: `datasets/photometric.py`; whole samples: `datasets/synthesis.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from datasets.kernels import resize_bilinear

Nearest = Callable[[int, int], np.ndarray]  # (length, source length) -> source index of every position


@dataclass(frozen=True)
class GeometricDraws:
    """How one picture becomes a square crop.

    Attributes:
        scale: factor of the picture's own size.
        pad_top: where the scaled picture is too low, the padding goes above it (else below).
        pad_left: where it is too narrow, the padding goes to its left (else to its right).
        top: first row of the crop in the scaled and padded picture; left: its first column.
        flip: mirror left and right in the end.
    """

    scale: float
    pad_top: bool
    pad_left: bool
    top: int
    left: int
    flip: bool


@dataclass(frozen=True)
class CropPlan:
    """Where the pixels of a crop come from: `window` of the scaled picture goes to `(y, x)` of the crop, then `flip`.

    Attributes:
        source_size: (height, width) of the picture.
        scaled_size: (height, width) after scaling.
        crop_size: side of the square crop.
        window: (top, left, bottom, right) in the scaled picture.
        y, x: position of the window's first pixel in the crop, before flipping.
        flip: mirror left and right in the end.
    """

    source_size: tuple[int, int]
    scaled_size: tuple[int, int]
    crop_size: int
    window: tuple[int, int, int, int]
    y: int
    x: int
    flip: bool

    @property
    def rect(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the picture inside the finished crop; the rest is padding."""
        top, left, bottom, right = self.window
        height, width = bottom - top, right - left
        x = self.crop_size - self.x - width if self.flip else self.x
        return self.y, x, self.y + height, x + width


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) after scaling, truncated, at least one pixel (the release crashes below that)."""
    return max(int(size[0] * scale), 1), max(int(size[1] * scale), 1)


def draw_geometric(
    rng: np.random.Generator, size: tuple[int, int], crop_size: int, scale_range: tuple[float, float]
) -> GeometricDraws:
    """Decide how a picture of (height, width) `size` becomes a square crop.

    Args:
        rng: source of randomness.
        size: (height, width) of the picture.
        crop_size: side of the crop in pixels.
        scale_range: the scale is uniform between these two.

    Returns:
        The decisions, to be given to `plan_crop`.

    Source: ZUTIS spec 7.5-3. # Kept for released weights: the side of the padding is chosen by up to three chained
    tests, so the four corners have probabilities 1/4, 3/16, 9/64 and 27/64.
    """
    scale = float(rng.uniform(*scale_range))
    if rng.random() < 0.25:
        pad_top, pad_left = True, True
    elif 0.25 <= rng.random() < 0.5:
        pad_top, pad_left = False, True
    elif 0.5 <= rng.random() < 0.75:
        pad_top, pad_left = True, False
    else:
        pad_top, pad_left = False, False
    height, width = scaled_size(size, scale)
    top = int(rng.integers(0, max(height - crop_size, 0), endpoint=True))
    left = int(rng.integers(0, max(width - crop_size, 0), endpoint=True))
    return GeometricDraws(scale, pad_top, pad_left, top, left, flip=bool(rng.random() > 0.5))


def plan_crop(size: tuple[int, int], draws: GeometricDraws, crop_size: int) -> CropPlan:
    """Turn decisions into the source window and target position of a crop.

    Args:
        size: (height, width) of the picture.
        draws: the decisions.
        crop_size: side of the crop in pixels.

    Raises:
        ValueError: the offsets reach outside the scaled and padded picture.
    """
    scaled = scaled_size(size, draws.scale)
    spans = []
    for length, offset, pad_before in zip(
        scaled, (draws.top, draws.left), (draws.pad_top, draws.pad_left), strict=True
    ):
        free = max(length - crop_size, 0)
        if not 0 <= offset <= free:
            raise ValueError(
                f"crop offset {offset} is outside 0..{free} for a side of {length} and a crop of {crop_size}"
            )
        end = min(offset + crop_size, length)
        spans.append((offset, end, crop_size - (end - offset) if pad_before else 0))
    (top, bottom, y), (left, right, x) = spans
    return CropPlan(size, scaled, crop_size, (top, left, bottom, right), y, x, draws.flip)


def crop_mask(mask: np.ndarray, plan: CropPlan, *, nearest: Nearest | None = None) -> np.ndarray:
    """The part of a mask that a crop shows, without padding: nearest neighbour, flipped; its place is `plan.rect`.

    Args:
        mask: (H, W), any type.
        plan: from `plan_crop`.
        nearest: which pixels are the nearest; `nearest_indices` if None.

    Returns:
        (h, w) array of the same type, the size of `plan.rect`; contiguous.
    """
    nearest = nearest or nearest_indices
    top, left, bottom, right = plan.window
    rows = nearest(plan.scaled_size[0], mask.shape[0])[top:bottom]
    columns = nearest(plan.scaled_size[1], mask.shape[1])[left:right]
    if plan.flip:
        columns = columns[::-1]
    return mask[rows[:, None], columns]


def pad_crop(content: np.ndarray, plan: CropPlan, fill: int | tuple[int, ...]) -> np.ndarray:
    """Surround the visible part of a crop with `fill` up to the square: (h, w, ...) -> (crop, crop, ...)."""
    padded = np.empty((plan.crop_size, plan.crop_size, *content.shape[2:]), content.dtype)
    top, left, bottom, right = plan.rect
    if content.shape[:2] != padded.shape[:2]:
        padded[:] = fill
    padded[top:bottom, left:right] = content
    return padded


def crop_image(image: np.ndarray, plan: CropPlan) -> tuple[Image.Image, tuple[int, int, int]]:
    """The part of a picture that a crop shows, without padding, and the colour of the padding.

    Args:
        image: RGB, uint8, (H, W, 3).
        plan: from `plan_crop` for the same size.

    Returns:
        The picture at the place `plan.rect`; the mean colour of the whole scaled picture, truncated (0 if there is no
        padding, because nobody needs it then).

    Source: ZUTIS spec 7.5-3; Pillow's bilinear filter with antialiasing.
    """
    scaled = resize_bilinear(image, plan.scaled_size)
    top, left, bottom, right = plan.window
    needs_fill = (bottom - top) < plan.crop_size or (right - left) < plan.crop_size
    fill = _mean_colour(scaled) if needs_fill else (0, 0, 0)
    content = scaled[top:bottom, left:right]
    return Image.fromarray(content[:, ::-1] if plan.flip else content), fill


def nearest_indices(length: int, source_length: int) -> np.ndarray:
    """Source index of every target position of a nearest-neighbour resize: (length,), int64.

    Source: min(floor(i * (source / target)), source - 1), all in float32 as the released weights were trained with;
    float64 gives other indices for some sizes.
    """
    ratio = np.float32(source_length) / np.float32(length)
    return np.minimum((np.arange(length, dtype=np.float32) * ratio).astype(np.int64), source_length - 1)


def _mean_colour(image: np.ndarray) -> tuple[int, int, int]:
    sums = cv2.sumElems(image)  # whole numbers below 2**53: exact in float64
    red, green, blue = (int(value) // (image.shape[0] * image.shape[1]) for value in sums[:3])
    return red, green, blue
