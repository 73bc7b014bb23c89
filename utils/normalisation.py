"""Bytes to what networks trained on ImageNet expect: the one place of its constants for pictures as tensors."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise_images(images: Tensor) -> Tensor:
    """Bytes to what every network here is trained on.

    Args:
        images: RGB, uint8 0-255, (..., 3, H, W).

    Returns:
        (x / 255 - mean) / std with the ImageNet constants, float32, same shape, device and memory format.

    Source: # Kept for released weights: ImageNet constants also before a CLIP encoder (ZUTIS spec 12-1).
    """
    mean, std = _constants(images.device)
    return images.float().div_(255.0).sub_(mean).div_(std)


@lru_cache(maxsize=16)
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation on a device, (3, 1, 1) each; kept there, because moving them waits for the device."""
    with torch.inference_mode(False):  # they may first be asked for during an evaluation, and then in training
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std
