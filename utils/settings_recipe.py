"""Settings of every recipe that goes from retrieved pictures over pseudo-masks to a trained segmenter.

`settings_zutis.py` and `settings_namedmask.py` add what is theirs.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from utils.setting_blocks import PhotometricBlock, SolverSettings
from utils.setting_types import (
    AnyPath,
    Block,
    CountInt,
    PositiveInt,
    Problem,
    ScaleRange,
    Switchable,
    check_order,
    needs_file,
)
from utils.settings_retrieval import RetrievalSettings

BACKGROUND = "background"


class SaliencyStage(Block):
    """Pseudo-masks by SelfMask: pictures per batch, and worker processes that read, refine and write."""

    batch_size: PositiveInt = 8
    num_workers: CountInt = 4


class RecipeSettings(RetrievalSettings):
    """Pseudo-masks of the retrieved pictures, and copy-paste samples made of them."""

    stages: ClassVar[tuple[str, ...]] = ("retrieval", "pseudo_masks", "training")  # values of `stop_after`

    # pseudo-masks
    pseudo_mask_dir: AnyPath | None = Field(default=None, alias="dir_pseudo_masks")  # null: the published places
    selfmask_weights: AnyPath | None = None  # null: selfmask_nq20.pt, downloaded
    selfmask_shorter_side: PositiveInt = 512
    solver: Annotated[SolverSettings | None, Switchable] = Field(default_factory=SolverSettings)
    saliency: SaliencyStage = Field(default_factory=SaliencyStage)
    # training samples
    train_image_size: PositiveInt = 384
    scale_range: ScaleRange = (0.1, 1.0)
    max_objects: PositiveInt = 10  # a sample holds 1 to this many pasted pictures
    random_duplicate: bool = False  # half of the samples show one category only
    photometric: PhotometricBlock = Field(default_factory=PhotometricBlock)
    label_rule: Literal["last", "drawn"] = "last"  # label of a picture retrieved for several categories
    fast_decode: bool = False  # decode JPEGs at 1/2, 1/4 or 1/8 where the sample shrinks them anyway: other pixels

    @field_validator("scale_range")
    @classmethod
    def _ordered(cls, scale_range: tuple[float, float]) -> tuple[float, float]:
        return check_order(scale_range)

    @property
    def trained_names(self) -> list[str] | None:
        """See `RetrievalSettings`; label 0 is the background, listed or not."""
        if self.categories is None:
            return None
        return [BACKGROUND, *(name for name in self.categories if name != BACKGROUND)]

    def _check_index(self) -> list[Problem]:
        """What retrieval and pseudo-masks need."""
        return super()._check_index() + needs_file("selfmask_weights", self.selfmask_weights)
