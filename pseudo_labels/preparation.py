"""From a picture to SelfMask's input and back: resize, normalise, rebuild, and resize a mask to the original size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.normalisation import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MAX_ASPECT", "resize_image", "resize_mask", "working_size"]
# Longer than this many times its shorter side, a picture is shrunk further: its tokens would fill any memory.
MAX_ASPECT = 16


def working_size(height: int, width: int, shorter_side: int = 512) -> tuple[int, int]:
    """Size at which a picture is shown to the network.

    Args:
        height: rows of the picture.
        width: columns of the picture.
        shorter_side: wanted length of the shorter side; small pictures are enlarged.

    Returns:
        (height, width) with the longer side rounded down. The longer side is at most `MAX_ASPECT` times the wanted
        shorter side; the published code knows no such limit and runs out of memory.

    Raises:
        ValueError: if a length is below 1.
    """
    if min(height, width, shorter_side) < 1:
        raise ValueError(f"sizes must be at least 1, received {height}×{width} and shorter_side {shorter_side}")
    shorter, longer = min(height, width), max(height, width)
    new_shorter, new_longer = shorter_side, int(shorter_side * longer / shorter)
    limit = MAX_ASPECT * shorter_side
    if new_longer > limit:
        new_shorter, new_longer = max(1, limit * shorter // longer), limit
    return (new_shorter, new_longer) if height <= width else (new_longer, new_shorter)


def resize_image(image: NDArray[np.uint8], shorter_side: int = 512) -> NDArray[np.uint8]:
    """Resize an RGB picture (H, W, 3), uint8, to its `working_size` with Pillow's antialiased bilinear filter."""
    height, width = working_size(image.shape[0], image.shape[1], shorter_side)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: NDArray[np.generic], height: int, width: int) -> NDArray[np.generic]:
    """Resize a mask (h, w) of any type to (height, width) by nearest neighbour.

    The source index is min(⌊i·(in/out)⌋, in − 1), computed in float32 as the original does; float64 would give other
    pixels for some sizes.
    """
    rows, columns = _nearest(mask.shape[0], height), _nearest(mask.shape[1], width)
    return mask[rows[:, None], columns[None, :]]


def _nearest(size: int, new_size: int) -> NDArray[np.int64]:
    scale = np.float32(size) / np.float32(new_size)
    return np.minimum((np.arange(new_size, dtype=np.float32) * scale).astype(np.int64), size - 1)
