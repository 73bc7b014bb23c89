"""The way from ImageNet-normalised pictures to pictures normalised for another network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from utils.normalisation import IMAGENET_MEAN, IMAGENET_STD


class FromImagenet(nn.Module):
    """Turns ImageNet-normalised pictures into pictures normalised with another mean and deviation.

    Args:
        mean, std: per channel, for values in [0, 1]; with ImageNet's own the pictures pass unchanged.
    """

    def __init__(self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> None:
        super().__init__()
        self.changes = (tuple(mean), tuple(std)) != (IMAGENET_MEAN, IMAGENET_STD)
        mean, std, old_mean, old_std = (torch.tensor(values) for values in (mean, std, IMAGENET_MEAN, IMAGENET_STD))
        self.register_buffer("factor", (old_std / std)[:, None, None], persistent=False)
        self.register_buffer("shift", ((old_mean - mean) / std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map ImageNet-normalised pictures (B, 3, H, W) to the other normalisation."""
        return torch.addcmul(self.shift, images, self.factor) if self.changes else images
