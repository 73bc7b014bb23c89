"""Pictures to inputs of CLIP's image towers. Next: ``clip.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipPreprocessing:
    """How a picture becomes the input of an image tower; can be sent to loader processes."""

    resolution: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    transform: Callable[[Image.Image], Tensor] | None = field(default=None, compare=False)

    def __call__(self, image: Image.Image | np.ndarray) -> Tensor:
        """(H, W, 3) uint8 array or PIL picture -> (3, R, R) float32."""
        if self.transform is None:
            return preprocess_image(image, self.resolution, mean=self.mean, std=self.std)
        return self.transform(image if isinstance(image, Image.Image) else Image.fromarray(image))


def preprocess_image(
    image: Image.Image | np.ndarray,
    resolution: int,
    *,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Prepare a picture for an image tower.

    Args:
        image: PIL picture of any mode, or RGB array (H, W, 3), uint8.
        resolution: side R of the network's input.
        mean, std: per channel, for values in [0, 1].

    Returns:
        (3, R, R), float32: shorter side resized to R (bicubic, antialiased), centre crop, RGB, normalised.

    Source: CLIP's own preprocessing; resizing and cropping come before the conversion to RGB.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    width, height = picture.size
    shorter = min(width, height)
    if shorter != resolution:
        width, height = (resolution if s == shorter else int(resolution * s / shorter) for s in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    picture = picture.crop((left, top, left + resolution, top + resolution)).convert("RGB")
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
