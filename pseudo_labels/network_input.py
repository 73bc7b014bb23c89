"""Between pixels and the network: normalisation, the reference picture, and masks for pictures of several sizes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from networks.selfmask import SelfMask
from pseudo_labels.preparation import IMAGENET_MEAN, IMAGENET_STD
from utils.device import autocast


def normalise(image: Tensor) -> Tensor:
    """Map a picture (H, W, 3), uint8, on any device to the network's input (3, H, W), float32."""
    mean = torch.tensor(IMAGENET_MEAN, device=image.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=image.device).view(3, 1, 1)
    return (image.permute(2, 0, 1).float() / 255 - mean) / std


def rebuild_reference(normalised: Tensor) -> NDArray[np.uint8]:
    """Rebuild the solver's reference picture from a normalised one.

    Kept for released weights: the result is truncated, so a level can come back one too low.

    Args:
        normalised: ImageNet-normalised picture, (3, H, W), float32, on the CPU (other devices round differently).

    Returns:
        RGB picture, (H, W, 3), uint8.
    """
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    levels = torch.clamp((normalised * std + mean) * 255, 0, 255)
    return levels.permute(1, 2, 0).to(torch.uint8).contiguous().numpy()


@lru_cache(maxsize=1)
def reference_levels() -> NDArray[np.uint8]:
    """What `rebuild_reference` makes of every level: (256, 3), uint8; levels lose at most 1 on the way."""
    every_level = torch.arange(256, dtype=torch.uint8).view(256, 1, 1).expand(256, 1, 3)
    return rebuild_reference(normalise(every_level))[:, 0]


@torch.inference_mode()
def predict_masks(
    network: SelfMask, images: Sequence[Tensor], *, device: torch.device | str = "cpu", precision: str = "fp32"
) -> list[Tensor]:
    """Find the salient object of pictures that become equally large when padded to whole patches.

    Args:
        network: SelfMask in evaluation mode, on `device`.
        images: pictures (H, W, 3), uint8, on the CPU.
        device: where the network is.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        One bool mask (H, W) per picture, on `device`, before the bilateral solver.

    Raises:
        ValueError: if the padded sizes differ.
        torch.OutOfMemoryError: if the pictures do not fit the device.
    """
    padded = {padded_size((image.shape[0], image.shape[1]), network.patch_size) for image in images}
    if len(padded) != 1:
        raise ValueError(f"pictures of one batch must be equally large when padded, received {sorted(padded)}")
    [(height, width)] = padded
    batch = torch.zeros((len(images), 3, height, width), device=device)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[0], : image.shape[1]] = normalise(image.to(device, non_blocking=True))
    with autocast(torch.device(device), precision):
        masks = network.predict(batch).mask
    return [mask[: image.shape[0], : image.shape[1]] for mask, image in zip(masks, images, strict=True)]


def padded_size(size: tuple[int, int], patch_size: int) -> tuple[int, int]:
    """Size (height, width) after padding to whole patches."""
    return size[0] + -size[0] % patch_size, size[1] + -size[1] % patch_size
