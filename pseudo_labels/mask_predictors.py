"""Networks that find the object of a picture, behind one interface: what the pseudo-mask stage runs.

`SaliencyPredictor` knows no names; `ExpertPredictor` was trained for one category or a group of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from networks.deeplab_prediction import predict_labels
from networks.selfmask import SelfMask
from pseudo_labels.network_input import padded_size, predict_masks


class MaskPredictor(Protocol):
    """From pictures to masks.

    Attributes:
        network: moved to the device by the stage.
    """

    network: nn.Module

    def batch_key(self, size: tuple[int, int]) -> Hashable:
        """What the sizes (height, width) of pictures in one batch have in common."""

    def predict(self, images: Sequence[Tensor], device: torch.device, precision: str) -> list[Tensor]:
        """One bool mask (H, W) on the device per picture (H, W, 3), uint8, on the CPU."""


@dataclass(frozen=True)
class SaliencyPredictor:
    """SelfMask: the salient object; pictures are padded to whole patches."""

    network: SelfMask

    def batch_key(self, size: tuple[int, int]) -> Hashable:
        """See `MaskPredictor`."""
        return padded_size(size, self.network.patch_size)

    def predict(self, images: Sequence[Tensor], device: torch.device, precision: str) -> list[Tensor]:
        """See `MaskPredictor`."""
        return predict_masks(self.network, images, device=device, precision=precision)


@dataclass(frozen=True)
class ExpertPredictor:
    """A segmenter with two classes, background and object; pictures of one size share a batch."""

    network: nn.Module

    def batch_key(self, size: tuple[int, int]) -> Hashable:
        """See `MaskPredictor`."""
        return size

    @torch.inference_mode()
    def predict(self, images: Sequence[Tensor], device: torch.device, precision: str) -> list[Tensor]:
        """See `MaskPredictor`."""
        batch = torch.stack([image.to(device, non_blocking=True) for image in images])
        return list(predict_labels(self.network, batch, tuple(batch.shape[1:3]), precision=precision) == 1)
