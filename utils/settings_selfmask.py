"""Settings of SelfMask: spectral voting, then training of the saliency network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from utils.setting_blocks import LoaderSettings, RunSettings, SolverSettings, TrainLoaderSettings
from utils.setting_types import (
    AnyPath,
    Block,
    CountInt,
    NonNegativeFloat,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Problem,
    ScaleRange,
    Switchable,
    Task,
    check_order,
    listing,
    needs_dir,
    one_of,
)

SALIENCY_BENCHMARKS = ("duts-te", "dut-omron", "ecssd")


class FeatureSettings(Block):
    """One network whose features are clustered for voting, with its weights."""

    network: str  # mocov2_resnet50, swav_resnet50, dino_vits16, vit, clip, open_clip:<arch>/<weights>, timm:<arch>
    weights: PathOrName | None = None  # file (clip: or OpenAI's name); null: timm's or open_clip's own download
    block: int | None = None  # transformer block, counted from 1, or from the end if negative; null: the last


class EncoderSettings(Block):
    """SelfMask's vision transformer; with weights its sizes are read from them."""

    width: PositiveInt = 384  # one attention head per 64 channels
    depth: PositiveInt = 12
    patch_size: PositiveInt = 8
    table_size: PositiveInt = 224  # image size of the position table
    weights: PathOrName | None = None  # DINO file, timm:<vit>, or a CLIP (file, name, open_clip:...); null: random


class SelfMaskSettings(RunSettings):
    """SelfMask: a salient-object network trained on masks voted for by spectral clusters."""

    system: Literal["selfmask"]
    image_dir: AnyPath | None = Field(default=None, alias="dir_dataset")  # pictures to learn from
    pseudo_mask_path: AnyPath | None = None  # JSON of voted masks; null: made in the run folder
    features: list[FeatureSettings] = Field(default_factory=list)
    cluster_counts: list[Annotated[int, Field(ge=2)]] = Field(default_factory=lambda: [2, 3, 4])
    cluster_image_side: PositiveInt | None = None  # shorter side before features are taken; null: original size
    max_locations: PositiveInt | None = 40_000  # larger feature maps are avoided by shrinking the picture; null: never
    remove_long_masks: bool = True  # drop candidates that span the picture
    remove_by_area: bool = False  # drop candidates below 5 % of the picture or with a box above 95 % of it
    voting_workers: CountInt = 2  # processes that cluster and vote
    encoder: EncoderSettings = Field(default_factory=EncoderSettings)
    num_queries: PositiveInt = 20
    num_decoder_layers: PositiveInt = 6
    train_image_size: PositiveInt = 224
    scale_range: ScaleRange = (0.1, 1.0)
    ranking_sign: Literal["released", "corrected"] = "released"  # which mask gets the higher objectness
    learning_rate: PositiveFloat = 6e-6
    weight_decay: NonNegativeFloat = 0.01
    power: NonNegativeFloat = 0.9
    schedule: Literal["poly", "released"] = "poly"  # released: saw-tooth near the full rate, as the release ran
    num_iterations: PositiveInt = Field(default=15_840, alias="n_iters")  # 12 epochs of DUTS-TR at batch 8
    dataset_name: str | None = None
    benchmark_dir: AnyPath | None = Field(default=None, alias="dir_val_dataset")
    train_loader: TrainLoaderSettings = Field(default_factory=TrainLoaderSettings, alias="train_dataloader_kwargs")
    val_loader: LoaderSettings = Field(default_factory=LoaderSettings, alias="val_dataloader_kwargs")
    solver: Annotated[SolverSettings | None, Switchable] = Field(default_factory=SolverSettings)
    selfmask_shorter_side: PositiveInt = 512

    @field_validator("dataset_name")
    @classmethod
    def _known_benchmark(cls, name: str | None) -> str | None:
        return name if name is None else one_of(name, SALIENCY_BENCHMARKS)

    @field_validator("scale_range")
    @classmethod
    def _ordered(cls, scale_range: tuple[float, float]) -> tuple[float, float]:
        return check_order(scale_range)

    def check(self, task: Task | None) -> list[Problem]:
        """See `RunSettings.check`."""
        problems: list[Problem] = []
        if self.encoder.width % max(1, self.encoder.width // 64):
            text = f"{self.encoder.width} cannot be shared out over heads of 64 channels; use a multiple of 64"
            problems.append(Problem(("encoder.width",), text))
        if self.encoder.table_size % self.encoder.patch_size:
            text = f"{self.encoder.table_size} is not a multiple of patch_size={self.encoder.patch_size}"
            problems.append(Problem(("encoder.table_size", "encoder.patch_size"), text))
        if task == "train":
            problems += needs_dir("dir_dataset", self.image_dir, "the pictures to learn from")
            if not self.features and (self.pseudo_mask_path is None or not self.pseudo_mask_path.is_file()):
                text = "expected at least one network to cluster with (or pseudo_mask_path, an existing file)"
                problems.append(Problem(("features", "pseudo_mask_path"), text))
        if task == "train" and self.dataset_name is not None and self.benchmark_dir is not None:
            problems += needs_dir("dir_val_dataset", self.benchmark_dir, f"the benchmark {self.dataset_name}")
        if task == "evaluate":
            if self.dataset_name is None:
                text = f"expected a benchmark to evaluate on: {listing(SALIENCY_BENCHMARKS)}"
                problems.append(Problem(("dataset_name",), text))
            else:
                problems += needs_dir("dir_val_dataset", self.benchmark_dir, f"the benchmark {self.dataset_name}")
        return problems
