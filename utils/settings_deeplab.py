"""Settings of systems that train a DeepLabv3+: NamedMask and its experts, ReCo+."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from utils.setting_blocks import RunSettings
from utils.setting_types import Block, NonNegativeFloat, PathOrName, PositiveFloat, Problem

SegmenterName = Literal["deeplabv3plus_resnet50", "deeplabv3plus_resnet101", "deeplabv3plus_mobilenet"]
SEGMENTER_PREFIX = "deeplabv3plus_"
NEEDS_BENCHMARK = "a benchmark (dataset_name) and its folder (dir_val_dataset)"


class DeepLabOptimiserSettings(Block):
    """Adam with a polynomial schedule: lr(t) = max(lr * (1 - t / T) ** power, min_lr)."""

    backbone_lr: PositiveFloat = 5e-5
    head_lr: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 2e-4  # L2 in the gradient, on everything
    min_lr: NonNegativeFloat = 1e-6
    power: NonNegativeFloat = 0.9


class DeepLabSettings(RunSettings):
    """A DeepLabv3+ and how it is trained."""

    segmenter: SegmenterName = Field(default="deeplabv3plus_resnet50", alias="segmenter_name")
    # What the backbone starts from: a file, dino (downloaded), torchvision, timm:<name>, or null for random values.
    backbone_weights: PathOrName | None = "dino"
    optimiser: DeepLabOptimiserSettings = Field(default_factory=DeepLabOptimiserSettings)
    sync_batch_norm: bool = True  # several GPUs: statistics of the whole batch, as on one
    select_on: Literal["last", "val"] = "last"  # val: also keep the weights that score best (uses validation labels)

    @property
    def backbone(self) -> str:
        """Name of the backbone, as networks know it."""
        return self.segmenter.removeprefix(SEGMENTER_PREFIX)

    def check_selection(self, *, is_scored: bool) -> list[Problem]:
        """A problem if the best weights are to be kept of a training without scores."""
        if self.select_on != "val" or is_scored:
            return []
        text = f"val, but the training has no scores to choose by; expected {NEEDS_BENCHMARK}"
        return [Problem(("select_on", "dataset_name"), text)]
