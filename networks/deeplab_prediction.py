"""From pictures to label maps with any network that gives logits on a small grid (DeepLabv3+).

Next: ``deeplab.py`` (the network), ``resized_argmax.py`` (labels without full-size logits).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from networks.interpolation import resize
from networks.resized_argmax import resized_argmax
from utils.device import autocast
from utils.normalisation import normalise_images


@torch.no_grad()
def predict_labels(network: nn.Module, images: Tensor, size: tuple[int, int], *, precision: str = "fp32") -> Tensor:
    """Label every pixel with its best class.

    Args:
        network: ImageNet-normalised pictures (B, 3, h, w) -> logits (B, C, h', w'); in evaluation mode.
        images: RGB, uint8, (B, h, w, 3), on the network's device.
        size: (H, W) of the result.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        (B, H, W), int64: arg-max of the bilinearly resized logits (align_corners false); the first of equal ones. The
        full-size logits of all classes never exist.
    """
    return label_pixels(compute_logits(network, images, precision=precision), size)


@torch.no_grad()
def predict_logits(network: nn.Module, images: Tensor, size: tuple[int, int], *, precision: str = "fp32") -> Tensor:
    """Logits of every pixel, for those who need all of them (a CRF).

    Args:
        network, images, size, precision: as in ``predict_labels``.

    Returns:
        (B, C, H, W), float32: 4·B·C·H·W bytes.
    """
    return resize(compute_logits(network, images, precision=precision), size)


@torch.no_grad()
def compute_logits(network: nn.Module, images: Tensor, *, precision: str = "fp32") -> Tensor:
    """Logits on the network's own grid: pictures (B, h, w, 3), uint8 -> (B, C, h', w'), float32."""
    pixels = normalise_images(images.permute(0, 3, 1, 2))  # (B, h, w, 3) -> (B, 3, h, w)
    with autocast(pixels.device, precision):
        return network(pixels).float()


def label_pixels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Arg-max of logits (B, C, h, w), float32, resized bilinearly to (H, W): (B, H, W), int64."""
    return resized_argmax(logits.permute(0, 2, 3, 1), tuple(size))
