"""Settings of ZUTIS. YAML keys are those of the published configurations where these have one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from utils.model_names import OPEN_CLIP, clip_problems
from utils.setting_blocks import OptimiserSettings
from utils.setting_types import (
    AnyPath,
    NonNegativeFloat,
    PositiveInt,
    Problem,
    Switchable,
    Task,
    needs_file,
    one_of,
)
from utils.settings_recipe import RecipeSettings

CLIP_ARCHITECTURES = (
    *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "dilatedRN50"),
)
CUSTOM_CLIP = "custom"  # any other CLIP in OpenAI's names, from the file clip_weights
NmsKind = Literal["hard", "linear", "gaussian"]


class ZutisSettings(RecipeSettings):
    """Zero-shot Unsupervised Transfer Instance Segmentation."""

    ineffective: ClassVar[frozenset[str]] = frozenset(
        {"use_archive_purifier", "use_advanced_copy_paste", "iter_label_update", "decoder_image_n_dims"}
    )
    benchmarks: ClassVar[tuple[str, ...]] = ("coca", "coco2017", "coco20k", "imagenet-s")

    system: Literal["zutis"]
    # network
    clip_arch: str = "ViT-B/16"  # OpenAI name, open_clip:<architecture>/<pretrained tag or path>, or custom
    clip_weights: AnyPath | None = None  # a file in place of the download for clip_arch; custom needs one
    text_precision: Literal["fp32", "fp16"] = "fp32"  # of the text tower; published scores were measured with fp16
    encoder_type: Literal["clip"] = "clip"
    frozen_bn: bool = True  # ResNet encoders: keep batch-norm statistics and weights
    stop_gradient: bool = True  # mask loss does not reach the encoder
    num_queries: PositiveInt = 100
    num_decoder_layers: PositiveInt = 6
    nms: Annotated[NmsKind | None, Switchable] = "hard"
    # training
    weight_ce_loss: NonNegativeFloat = 1.0
    optimiser: OptimiserSettings = Field(default_factory=OptimiserSettings)

    @field_validator("clip_arch")
    @classmethod
    def _known_clip(cls, name: str) -> str:
        return one_of(name, (*CLIP_ARCHITECTURES, CUSTOM_CLIP), prefix=OPEN_CLIP)

    def check(self, task: Task | None) -> list[Problem]:
        """See `RunSettings.check`."""
        problems = super().check(task)
        if task is not None:
            problems += needs_file("clip_weights", self.clip_weights)
            if self.clip_arch == CUSTOM_CLIP and self.clip_weights is None:
                text = "not set; expected the file with the weights of a custom CLIP"
                problems.append(Problem(("clip_weights", "clip_arch"), text))
        if task == "train" and self.clip_arch.startswith(OPEN_CLIP) and self.goes_on_after("pseudo_masks"):
            problems += clip_problems("clip_arch", self.clip_arch)
        if task == "train" and self.encoder_is_resnet and self.train_image_size < 32:
            problems.append(Problem(("train_image_size", "clip_arch"), "a ResNet encoder needs at least 32 pixels"))
        return problems

    @property
    def encoder_is_resnet(self) -> bool:
        """Whether the encoder is one of CLIP's ResNets."""
        return "RN" in self.clip_arch.removeprefix("open_clip:")[:9]
