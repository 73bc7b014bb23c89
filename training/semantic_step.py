"""The training step of segmenters that give logits on a small grid (DeepLabv3+): cross-entropy of enlarged logits.

Next: ``losses.py`` (the loss, which never keeps full-size logits), ``optimizers.py``, ``loop.py`` (who calls it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from datasets.batch import TrainingBatch
from training.loop_settings import Step
from training.losses import resized_cross_entropy
from utils.normalisation import normalise_images


@dataclass(frozen=True)
class SemanticStep:
    """One training step: batch -> loss.

    Attributes:
        ignore_index: label that the loss leaves out.
    """

    ignore_index: int

    def __call__(self, network: nn.Module, batch: TrainingBatch, step: Step) -> dict[str, Tensor]:
        """Losses of a batch on the device.

        Args:
            network: ImageNet-normalised pictures (B, 3, S, S) -> logits (B, C, h, w).
            batch: pictures and labels; instances are not used.
            step: its ``mean_counts`` are those of ``counts``.

        Returns:
            "loss": a scalar, to be minimised; 0 if every pixel is left out.
        """
        logits = network(normalise_images(batch.images))
        return {"loss": semantic_loss(logits, batch.semantic, self.ignore_index, step.mean_counts)}

    def counts(self, batch: TrainingBatch) -> Tensor:
        """What the loss of a whole step is divided by: the number of pixels that are not left out, (1,)."""
        return (batch.semantic != self.ignore_index).sum()[None]


def semantic_loss(logits: Tensor, labels: Tensor, ignore_index: int, num_pixels: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of logits enlarged bilinearly (align_corners false) to the labels.

    Args:
        logits: (B, C, h, w), any floating-point type.
        labels: (B, H, W), any integer type: classes below C, or ``ignore_index``.
        ignore_index: label that is left out.
        num_pixels: what the sum is divided by; None: the number of pixels that are not left out.

    Returns:
        Scalar, float32; 0 if every pixel is left out.

    Raises:
        DataError: if a label is neither a class nor ``ignore_index``.

    Source: NamedMask and ReCo+ (the same loss in both releases).
    """
    with torch.autocast(logits.device.type, enabled=False):
        return resized_cross_entropy(logits.float().permute(0, 2, 3, 1), labels, ignore_index, num_pixels)
