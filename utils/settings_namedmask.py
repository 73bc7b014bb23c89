"""Settings of NamedMask. YAML keys are those of the published configurations where these have one."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from utils.setting_blocks import TrainLoaderSettings
from utils.setting_types import (
    AnyPath,
    Block,
    NameList,
    NonNegativeFloat,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Problem,
    Task,
    needs_dir,
)
from utils.settings_recipe import RecipeSettings

SegmenterName = Literal["deeplabv3plus_resnet50", "deeplabv3plus_resnet101", "deeplabv3plus_mobilenet"]
VOC_CATEGORY = "voc2012_category"


class SegmenterOptimiserSettings(Block):
    """Adam with a polynomial schedule: lr(t) = max(lr * (1 - t / T) ** power, min_lr)."""

    backbone_lr: PositiveFloat = 5e-5
    head_lr: PositiveFloat = 5e-4
    weight_decay: NonNegativeFloat = 2e-4  # L2 in the gradient, on everything
    min_lr: NonNegativeFloat = 1e-6
    power: NonNegativeFloat = 0.9


class ExpertTrainLoaderSettings(TrainLoaderSettings):
    """The training loader of one expert."""

    num_workers: Annotated[int, Field(ge=0)] = 4


class ExpertMaskStage(Block):
    """Masks by trained experts: pictures per batch, and worker processes that read and write."""

    batch_size: PositiveInt = 1
    num_workers: Annotated[int, Field(ge=0)] = 4


class ExpertSettings(Block):
    """One segmenter of object and background per category, or per group of categories."""

    segmenter: SegmenterName | None = Field(default=None, alias="segmenter_name")  # null: as the segmenter
    weights_dir: AnyPath | None = Field(default=None, alias="dir_weights")  # holds expert_<category>.pt; null: train
    mask_dir: AnyPath | None = Field(default=None, alias="dir_masks")  # null: the published places
    num_iterations: PositiveInt = Field(default=5000, alias="n_iters")
    train_image_size: PositiveInt | None = None  # null: as the segmenter
    train_loader: ExpertTrainLoaderSettings = Field(
        default_factory=ExpertTrainLoaderSettings, alias="train_dataloader_kwargs"
    )
    num_clusters: PositiveInt | None = Field(default=None, alias="n_clusters")  # null: one expert per category
    clustering_type: Literal["kmeans"] = "kmeans"  # of CLIP's text embeddings of the names
    at_once: PositiveInt | Literal["auto"] = "auto"  # experts trained side by side on one device
    masks: ExpertMaskStage = Field(default_factory=ExpertMaskStage)


class NamedMaskSettings(RecipeSettings):
    """NamedMask: a DeepLabv3+ trained with SelfMask's or category experts' masks of pictures found by CLIP."""

    ineffective: ClassVar[frozenset[str]] = frozenset({"lr", "momentum", "weight_decay", "betas", "category_agnostic"})
    benchmarks: ClassVar[tuple[str, ...]] = (
        *("voc2012", VOC_CATEGORY, "coco2017", "coca", "cityscapes_object", "imagenet-s"),
    )
    stages: ClassVar[tuple[str, ...]] = ("retrieval", "pseudo_masks", "experts", "training")

    system: Literal["namedmask"]
    # network
    segmenter: SegmenterName = Field(default="deeplabv3plus_resnet50", alias="segmenter_name")
    # Initial weights of the backbone: a file, dino (downloaded), torchvision, timm:<name>, or null for random ones.
    backbone_weights: PathOrName | None = "dino"
    # training
    max_objects: PositiveInt = Field(default=2, alias="max_n_masks")  # pictures pasted together in a sample
    optimiser: SegmenterOptimiserSettings = Field(default_factory=SegmenterOptimiserSettings)
    train_loader: TrainLoaderSettings = Field(
        default_factory=lambda: TrainLoaderSettings(batch_size=16, num_workers=16), alias="train_dataloader_kwargs"
    )
    sync_batch_norm: bool = True  # several GPUs: statistics of the whole batch, as on one
    # experts
    use_expert_masks: bool = Field(default=False, alias="use_expert_pseudo_masks")
    single_category: NameList | None = None  # the experts to train (stop_after: experts) or to score; null: all
    experts: ExpertSettings = Field(default_factory=ExpertSettings)

    def check(self, task: Task | None) -> list[Problem]:
        """See `RunSettings.check`."""
        problems = super().check(task)
        if task == "train":
            problems += self._check_batches()
            if self.experts.weights_dir is not None:
                purpose = "experts' weights, one expert_<category>.pt each"
                problems += needs_dir("experts.dir_weights", self.experts.weights_dir, purpose)
            if self.dataset_name == VOC_CATEGORY and self.goes_on_after("experts"):
                text = f"{VOC_CATEGORY} is the benchmark of single experts; expected stop_after: experts"
                problems.append(Problem(("stop_after", "dataset_name"), text))
        if task == "evaluate" and self.dataset_name == VOC_CATEGORY and len(self.single_category or ()) != 1:
            text = f"received {self.single_category}, expected the one category that the expert was trained for"
            problems.append(Problem(("single_category",), text))
        return problems

    def _check_batches(self) -> list[Problem]:
        """Batch norm of the pooled branch needs two samples, in every process."""
        problems = []
        if self.train_loader.batch_size // self.accumulate_steps < 2:
            text = "expected at least 2 samples per step: batch norm has no statistics of one"
            problems.append(Problem(("train_dataloader_kwargs", "accumulate_steps"), text))
        uses_experts = self.use_expert_masks or self.stop_after == "experts"
        if uses_experts and self.experts.train_loader.batch_size // self.accumulate_steps < 2:
            text = "expected a batch_size of at least 2: batch norm has no statistics of one"
            problems.append(Problem(("experts.train_dataloader_kwargs", "accumulate_steps"), text))
        return problems
