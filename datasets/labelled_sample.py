"""Training samples of whole pictures with a label for every pixel: zoom, crop, flip, colours, blur.

Used by ReCo+, whose labels are ReCo's predictions. Copy-paste samples: `datasets/synthesis.py`. Which pictures, and in
what order: `training/labelled_pictures.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.central_square import nearest_positions
from datasets.geometric import CropPlan, GeometricDraws, crop_mask, pad_crop, plan_crop, scaled_size
from datasets.photometric import PhotometricDraws, PhotometricSettings, draw_photometric
from datasets.synthesis import Sample, render_crop


@dataclass(frozen=True)
class LabelledDraws:
    """Everything random about one sample."""

    geometric: GeometricDraws
    photometric: PhotometricDraws


def draw_labelled(
    rng: np.random.Generator,
    size: tuple[int, int],
    crop_size: int,
    *,
    scale_range: tuple[float, float],
    photometric: PhotometricSettings,
) -> LabelledDraws:
    """Decide how a picture becomes a sample.

    Args:
        rng: source of randomness.
        size: (height, width) of the picture.
        crop_size: side of the sample in pixels.
        scale_range: the scale is uniform between these two.
        photometric: colour changes.

    Source: ReCo spec 12. Where the scaled picture is too small, the padding goes below and to the right.
    """
    scale = float(rng.uniform(*scale_range))
    height, width = scaled_size(size, scale)
    top = int(rng.integers(0, max(height - crop_size, 0), endpoint=True))
    left = int(rng.integers(0, max(width - crop_size, 0), endpoint=True))
    geometric = GeometricDraws(scale, False, False, top, left, flip=bool(rng.random() > 0.5))
    return LabelledDraws(geometric, draw_photometric(rng, photometric))


def make_labelled_sample(
    image: np.ndarray,
    labels: np.ndarray,
    draws: LabelledDraws,
    *,
    crop_size: int,
    ignore_index: int,
    blur_kernel: int,
) -> Sample:
    """Make a sample as decided.

    Args:
        image: RGB, uint8, (H, W, 3).
        labels: any whole-number type, (H, W).
        draws: the decisions.
        crop_size: side S of the sample.
        ignore_index: label of the padding, whose colour is the mean of the scaled picture.
        blur_kernel: width of the blur kernel in pixels, odd.

    Returns:
        The sample, without instances.

    Raises:
        ValueError: picture and labels differ in size.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"a picture of {image.shape[:2]} and labels of {labels.shape} cannot be one sample")
    plan = plan_crop(labels.shape, draws.geometric, crop_size)
    pixels = render_crop(image, plan, draws.photometric, blur_kernel=blur_kernel)
    semantic = crop_labels(labels, plan, ignore_index)
    return Sample(pixels, semantic, np.zeros((0, crop_size, crop_size), np.bool_), ())


def crop_labels(labels: np.ndarray, plan: CropPlan, ignore_index: int) -> np.ndarray:
    """The crop of a label map, `ignore_index` around it: int16, (S, S).

    Nearest neighbours are those of pixel centres (Pillow), as ReCo+ was trained; the masks of other recipes follow
    another rule, see `geometric.nearest_indices`.
    """
    content = crop_mask(labels, plan, nearest=lambda length, source: nearest_positions(source, length))
    return pad_crop(content.astype(np.int16), plan, ignore_index)
