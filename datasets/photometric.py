"""Colour jitter, greyscale and blur of a picture, with the random decisions held apart from their application.

`draw_photometric` decides, `apply_photometric` does; the same split as in `datasets/geometric.py`. Users of both:
`datasets/synthesis.py` (training samples) and every training that augments whole pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from PIL import Image

from datasets.kernels import shift_hue

JitterStep = Literal["brightness", "contrast", "saturation", "hue"]
JITTER_STEPS: tuple[JitterStep, ...] = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class PhotometricSettings:
    """How often and how strongly colours change (spec 7.5-5)."""

    jitter_probability: float = 0.8
    brightness: float = 0.8  # factor in [max(0, 1 - x), 1 + x]; likewise contrast and saturation
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2  # shift in [-x, x] turns of the colour circle
    greyscale_probability: float = 0.2
    blur_probability: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    blur_kernel: int | None = None  # pixels, odd; None: a tenth of the side of the training image

    def kernel_width(self, image_size: int) -> int:
        """Width in pixels, odd, of the blur kernel for a square picture of `image_size` pixels (384 -> 39)."""
        return self.blur_kernel if self.blur_kernel is not None else int(0.1 * image_size // 2 * 2 + 1)


@dataclass(frozen=True)
class Jitter:
    """The four colour changes in the order in which they are applied, and their factors."""

    order: tuple[JitterStep, ...]
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclass(frozen=True)
class PhotometricDraws:
    """What happens to one picture; `None` means that this change does not happen."""

    jitter: Jitter | None = None
    greyscale: bool = False
    blur_sigma: float | None = None


def draw_photometric(rng: np.random.Generator, settings: PhotometricSettings | None = None) -> PhotometricDraws:
    """Decide the colour changes of one picture.

    Args:
        rng: source of randomness; advanced by a number of draws that depends on the outcome.
        settings: probabilities and ranges; the published ones if None.

    Returns:
        The decisions, to be given to `apply_photometric`.

    Source: ZUTIS spec 7.5-5; jitter as torchvision's ColorJitter (uniform factors, random order).
    """
    settings = settings or PhotometricSettings()
    jitter = None
    if rng.random() < settings.jitter_probability:
        order = tuple(JITTER_STEPS[i] for i in rng.permutation(len(JITTER_STEPS)))
        factors = {
            name: float(rng.uniform(max(0.0, 1.0 - strength), 1.0 + strength))
            for name, strength in (
                ("brightness", settings.brightness),
                ("contrast", settings.contrast),
                ("saturation", settings.saturation),
            )
        }
        jitter = Jitter(order, **factors, hue=float(rng.uniform(-settings.hue, settings.hue)))
    greyscale = bool(rng.random() < settings.greyscale_probability)
    blur_sigma = None
    if rng.random() < settings.blur_probability:
        low, high = settings.blur_sigma
        blur_sigma = float(low + (high - low) * rng.random())
    return PhotometricDraws(jitter, greyscale, blur_sigma)


def apply_photometric(image: np.ndarray, draws: PhotometricDraws, *, blur_kernel: int) -> np.ndarray:
    """Change the colours of a picture as decided: jitter, then greyscale, then blur.

    Args:
        image: RGB, uint8, (H, W, 3).
        draws: the decisions.
        blur_kernel: width of the blur kernel in pixels, odd.

    Returns:
        RGB, uint8, (H, W, 3); a new array unless nothing changes.

    Raises:
        ValueError: the picture is not RGB uint8, or the kernel is even.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected an RGB picture, uint8 (H, W, 3), got {image.dtype} {image.shape}")
    adjusted, _ = adjust_colours(Image.fromarray(image), draws)
    return blur(np.asarray(adjusted), draws.blur_sigma, blur_kernel)


def adjust_colours(
    image: Image.Image,
    draws: PhotometricDraws,
    *,
    fill: tuple[int, int, int] = (0, 0, 0),
    num_fill: int = 0,
    keep: tuple[int, int, int, int] | None = None,
) -> tuple[Image.Image, tuple[int, int, int]]:
    """Apply jitter and greyscale to a picture that is surrounded by a single colour, without painting that surround.

    Every change but contrast acts on pixels one by one, and contrast needs of the others only their mean brightness.
    So the surround is one pixel that counts `num_fill` times, and pixels outside `keep` are dropped as soon as the
    contrast is known; the kept pixels are those of the plain computation, bit for bit.

    Args:
        image: RGB picture without its surround.
        draws: the decisions; `blur_sigma` is ignored here.
        fill: colour of the surround.
        num_fill: number of pixels of the surround.
        keep: (left, top, right, bottom) of the part that is needed; everything if None.

    Returns:
        The changed picture (the kept part of it), and the changed colour of the surround.
    """
    surround = Image.new("RGB", (1, 1), fill)
    order = draws.jitter.order if draws.jitter is not None else ()
    for position, step in enumerate(order):
        if keep is not None and "contrast" not in order[position:]:
            image, keep = image.crop(keep), None
        factor = getattr(draws.jitter, step)
        if step == "contrast":
            grey = _mean_grey(image, surround, num_fill)
            image, surround = (
                _blend(Image.new("RGB", part.size, (grey,) * 3), part, factor) for part in (image, surround)
            )
        else:
            image, surround = (_PIXEL_STEPS[step](part, factor) for part in (image, surround))
    if keep is not None:
        image = image.crop(keep)
    if draws.greyscale:
        image, surround = (part.convert("L").convert("RGB") for part in (image, surround))
    return image, surround.getpixel((0, 0))


def blur(image: np.ndarray, sigma: float | None, kernel: int) -> np.ndarray:
    """Blur an uint8 picture (H, W, 3) with a Gaussian of `sigma` pixels, mirrored at the border; unchanged if None."""
    if sigma is None:
        return image
    if kernel % 2 == 0:
        raise ValueError(f"the blur kernel has to be odd, got {kernel}")
    return cv2.GaussianBlur(image, (kernel, kernel), sigma)


def _blend(degenerate: Image.Image, image: Image.Image, factor: float) -> Image.Image:
    return Image.blend(degenerate, image, factor)


def _mean_grey(image: Image.Image, surround: Image.Image, num_surround: int) -> int:
    """Mean brightness, rounded, of picture and surround together."""
    grey = cv2.sumElems(np.asarray(image.convert("L")))[0]  # a whole number: exact
    total = int(grey) + num_surround * surround.convert("L").getpixel((0, 0))
    return int(total / (image.width * image.height + num_surround) + 0.5)


def _scale_brightness(image: Image.Image, factor: float) -> Image.Image:
    return _blend(Image.new("RGB", image.size), image, factor)


def _scale_saturation(image: Image.Image, factor: float) -> Image.Image:
    return _blend(image.convert("L").convert("RGB"), image, factor)


def _shift_hue(image: Image.Image, factor: float) -> Image.Image:
    """Turn the hue by `factor` of the circle, in Pillow's 8-bit HSV (shift truncated towards zero, wrapping)."""
    return Image.fromarray(shift_hue(np.asarray(image), int(factor * 255)))


_PIXEL_STEPS = {"brightness": _scale_brightness, "saturation": _scale_saturation, "hue": _shift_hue}
