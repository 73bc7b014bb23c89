"""Training samples of SelfMask: a picture, its one pseudo-mask, and the random geometry and colours of the release.

Every random decision is an explicit draw that depends on the seed, the epoch and the sample's number alone, so a sample
is the same in any worker, process or resumed run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from utils.errors import DataError


@dataclass(frozen=True)
class GeometryDraws:
    """Random decisions of `augment_geometry`.

    Attributes:
        scale: factor of the new height and width.
        top: first row of the crop, after padding.
        left: first column of the crop.
        flip: whether the crop is mirrored left to right.
    """

    scale: float
    top: int = 0
    left: int = 0
    flip: bool = False


def draw_geometry(generator: np.random.Generator, *, crop: int, scale_range: tuple[float, float]) -> GeometryDraws:
    """Draw scale, crop offset and flip; the offset is (0, 0) unless the scaled picture is larger than the crop."""
    scale = float(generator.uniform(*scale_range))
    slack = max(0, int(crop * scale) - crop)
    top, left = (int(generator.integers(0, slack + 1)) for _ in range(2))
    return GeometryDraws(scale, top, left, flip=bool(generator.random() > 0.5))


def augment_geometry(
    image: np.ndarray, mask: np.ndarray, draws: GeometryDraws, *, crop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, pad, crop and flip a square picture with its mask.

    Args:
        image: RGB, (S, S, 3), uint8: already resized to a square.
        mask: its mask at any other size, (H, W), uint8.
        draws: the random decisions.
        crop: side of the result.

    Returns:
        image: (crop, crop, 3), uint8; right of and below the scaled picture its mean colour.
        mask: (crop, crop), uint8; 0 there.

    Source: SelfMask, released augmentation: bilinear with Pillow's antialiasing for the picture, nearest straight from
    the mask's own size for the mask, mean colour taken after scaling and truncated.
    """
    size = tuple(max(1, int(side * draws.scale)) for side in image.shape[:2])
    scaled = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    scaled_mask = resize_nearest(mask, size)
    canvas_size = tuple(max(side, crop) for side in size)
    canvas = np.empty((*canvas_size, 3), np.uint8)
    canvas[:] = scaled.mean(axis=(0, 1)).astype(np.uint8)
    canvas_mask = np.zeros(canvas_size, np.uint8)
    canvas[: size[0], : size[1]], canvas_mask[: size[0], : size[1]] = scaled, scaled_mask
    rows, columns = slice(draws.top, draws.top + crop), slice(draws.left, draws.left + crop)
    image, mask = canvas[rows, columns], canvas_mask[rows, columns]
    if draws.flip:
        image, mask = image[:, ::-1], mask[:, ::-1]
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def resize_nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest resize as PyTorch does it, floor of float32 products: (H, W) uint8 -> (height, width) uint8."""
    tensor = torch.from_numpy(np.ascontiguousarray(mask, np.uint8))[None, None]
    return interpolate(tensor, size=size, mode="nearest")[0, 0].numpy()
