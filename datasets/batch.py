"""Batches of training samples: stacked bytes until the device, normalised there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from utils.normalisation import IMAGENET_MEAN, IMAGENET_STD, normalise_images

if TYPE_CHECKING:
    from datasets.synthesis import Sample


@dataclass(frozen=True)
class TrainingBatch:
    """B training samples of side S.

    Attributes:
        images: (B, 3, S, S), uint8 (as loaded) or normalised float32 (after `normalised`), channels last in memory.
        semantic: category ids and the ignore index, (B, S, S), int16 as loaded, int64 after `to`.
        instance_masks: one bool tensor (n, S, S) per sample.
        category_ids: one int64 tensor (n,) per sample.
    """

    images: Tensor
    semantic: Tensor
    instance_masks: list[Tensor]
    category_ids: list[Tensor]

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> TrainingBatch:
        """The batch on a device, labels widened to int64 there (fewer bytes are moved)."""
        return TrainingBatch(
            self.images.to(device, non_blocking=non_blocking),
            self.semantic.to(device, non_blocking=non_blocking).long(),
            [masks.to(device, non_blocking=non_blocking) for masks in self.instance_masks],
            [ids.to(device, non_blocking=non_blocking) for ids in self.category_ids],
        )

    def pin_memory(self) -> TrainingBatch:
        """The batch in page-locked memory (called by the data loader)."""
        return TrainingBatch(
            self.images.pin_memory(),
            self.semantic.pin_memory(),
            [masks.pin_memory() for masks in self.instance_masks],
            [ids.pin_memory() for ids in self.category_ids],
        )

    def normalised(self) -> TrainingBatch:
        """The batch with `images` as the network expects them."""
        return replace(self, images=normalise_images(self.images))


def collate_samples(samples: Sequence[Sample]) -> TrainingBatch:
    """Stack samples of one size.

    Args:
        samples: at least one; all with the same side.

    Returns:
        A batch that shares no memory with the samples' pictures and maps.
    """
    images = torch.from_numpy(np.stack([sample.image for sample in samples]))  # (B, S, S, 3)
    return TrainingBatch(
        images.permute(0, 3, 1, 2),  # (B, S, S, 3) -> (B, 3, S, S), channels last in memory
        torch.from_numpy(np.stack([sample.semantic for sample in samples])),
        [torch.from_numpy(sample.instance_masks) for sample in samples],
        [torch.tensor(sample.category_ids, dtype=torch.int64) for sample in samples],
    )


def unnormalise_image(image: np.ndarray) -> np.ndarray:
    """A normalised picture (3, H, W), float, back to RGB uint8 (H, W, 3), clipped and truncated (spec 10)."""
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = np.clip((image * std + mean) * 255, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (3, H, W) -> (H, W, 3)
