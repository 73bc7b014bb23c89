"""Benchmarks that are scored on the central square of every picture: shorter side 320, cropped to 320x320.

Nearest-neighbour sampling takes the pixels that Pillow takes; only those of the square are ever touched.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from PIL import Image

from datasets.base import Benchmark

SIDE = 320


class CentralSquareBenchmark(Benchmark):
    """A benchmark whose network input and labels are central squares.

    Attributes:
        image_filter: how pictures are resized; labels are always sampled.

    Source: ReCo spec 8. # Kept for published scores: most benchmarks sample their pictures, too.
    """

    image_filter: ClassVar[Image.Resampling] = Image.Resampling.NEAREST
    trains_on_squares: ClassVar[bool] = True

    def fit(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """The central square of the picture and of its label, both (320, 320)."""
        if self.image_filter is Image.Resampling.NEAREST:
            square = sample_square(image, SIDE)
        else:
            square = resize_square(image, SIDE, self.image_filter)
        return square, None if label is None else sample_square(label, SIDE), (SIDE, SIDE)

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(320, 320), whatever the picture's size."""
        return SIDE, SIDE

    @property
    def protocol(self) -> dict[str, str]:
        """What a score depends on; here the square."""
        size = f"shorter side {SIDE} ({self.image_filter.name.lower()}), central {SIDE}x{SIDE} square"
        return {
            **super().protocol,
            "image size": size,
            "score size": f"the same {SIDE}x{SIDE} square (labels: nearest)",
        }


def square_plan(size: tuple[int, int], side: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """How a picture becomes a central square.

    Args:
        size: (height, width) of the picture.
        side: of the square.

    Returns:
        (height, width) with the shorter side = `side` and the longer one truncated; (top, left) of the square in it,
        halves rounded to even, as torchvision does.
    """
    shorter = min(size)
    height, width = (side if length == shorter else side * length // shorter for length in size)
    return (height, width), (round((height - side) / 2), round((width - side) / 2))


def sample_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """The central square by nearest-neighbour sampling: (H, W, ...) of any dtype -> (side, side, ...)."""
    (height, width), (top, left) = square_plan(pixels.shape[:2], side)
    rows = nearest_positions(pixels.shape[0], height)[top : top + side]
    columns = nearest_positions(pixels.shape[1], width)[left : left + side]
    return pixels[rows[:, None], columns]


def resize_square(image: np.ndarray, side: int, resampling: Image.Resampling) -> np.ndarray:
    """The central square of an RGB picture, uint8, resized by one of Pillow's filters: (side, side, 3)."""
    (height, width), (top, left) = square_plan(image.shape[:2], side)
    resized = Image.fromarray(image).resize((width, height), resampling)
    return np.array(resized.crop((left, top, left + side, top + side)))


def nearest_positions(length: int, new_length: int) -> np.ndarray:
    """Which of `length` pixels each of `new_length` takes when Pillow samples the nearest: int32, (new_length,)."""
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[None])
    return np.asarray(ramp.resize((new_length, 1), Image.Resampling.NEAREST))[0]
