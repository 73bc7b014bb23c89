"""Settings of NamedMask. YAML keys are those of the published configurations where these have one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from utils.model_names import backbone_problems
from utils.naming import CATEGORY_SUFFIX
from utils.setting_blocks import TrainLoaderSettings
from utils.setting_types import AnyPath, Block, CountInt, NameList, PositiveInt, Problem, Task, needs_dir
from utils.settings_deeplab import SEGMENTER_PREFIX, DeepLabSettings, SegmenterName
from utils.settings_recipe import RecipeSettings

_BENCHMARKS = ("voc2012", "coco2017", "coca", "cityscapes_object", "imagenet-s")


class NamedMaskTrainLoaderSettings(TrainLoaderSettings):
    """The training loader of the segmenter."""

    batch_size: PositiveInt = 16
    num_workers: CountInt = 16


class ExpertTrainLoaderSettings(TrainLoaderSettings):
    """The training loader of one expert."""

    num_workers: CountInt = 4


class ExpertMaskStage(Block):
    """Masks by trained experts: pictures per batch, and worker processes that read and write."""

    batch_size: PositiveInt = 1
    num_workers: CountInt = 4


class ExpertSettings(Block):
    """One segmenter of object and background per category, or per group of categories."""

    segmenter: SegmenterName | None = Field(default=None, alias="segmenter_name")  # null: as the segmenter
    weights_dir: AnyPath | None = Field(default=None, alias="dir_weights")  # holds expert_<category>.pt; null: train
    mask_dir: AnyPath | None = Field(default=None, alias="dir_masks")  # null: the published places
    num_iterations: PositiveInt = Field(default=5000, alias="n_iters")
    # Iterations between scores of experts trained for a `_category` benchmark; null: they are not scored.
    eval_interval: PositiveInt | None = Field(default=1000, alias="iter_eval")
    train_image_size: PositiveInt | None = None  # null: as the segmenter
    train_loader: ExpertTrainLoaderSettings = Field(
        default_factory=ExpertTrainLoaderSettings, alias="train_dataloader_kwargs"
    )
    num_clusters: PositiveInt | None = Field(default=None, alias="n_clusters")  # null: one expert per category
    clustering_type: Literal["kmeans"] = "kmeans"  # of CLIP's text embeddings of the names
    at_once: PositiveInt | Literal["auto"] = "auto"  # experts trained side by side on one device
    masks: ExpertMaskStage = Field(default_factory=ExpertMaskStage)


class NamedMaskSettings(DeepLabSettings, RecipeSettings):
    """NamedMask: a DeepLabv3+ trained with SelfMask's or category experts' masks of pictures found by CLIP."""

    ineffective: ClassVar[frozenset[str]] = frozenset({"lr", "momentum", "weight_decay", "betas", "category_agnostic"})
    benchmarks: ClassVar[tuple[str, ...]] = (
        *_BENCHMARKS,
        *(f"{name}{CATEGORY_SUFFIX}" for name in _BENCHMARKS),
    )
    stages: ClassVar[tuple[str, ...]] = ("retrieval", "pseudo_masks", "experts", "training")

    system: Literal["namedmask"]
    max_objects: PositiveInt = Field(default=2, alias="max_n_masks")  # a sample holds 1 to this many pasted pictures
    train_loader: NamedMaskTrainLoaderSettings = Field(
        default_factory=NamedMaskTrainLoaderSettings, alias="train_dataloader_kwargs"
    )
    use_expert_masks: bool = Field(default=False, alias="use_expert_pseudo_masks")
    single_category: NameList | None = None  # the experts to train (stop_after: experts) or to score; null: all
    experts: ExpertSettings = Field(default_factory=ExpertSettings)

    @property
    def scores_single_categories(self) -> bool:
        """Whether the benchmark scores one category against everything else: the one of experts."""
        return self.dataset_name is not None and self.dataset_name.endswith(CATEGORY_SUFFIX)

    @property
    def evaluates_in_training(self) -> bool:
        """See `RetrievalSettings`; experts may be trained without scores."""
        is_wanted = self.experts.eval_interval is not None or not self.scores_single_categories
        return is_wanted and super().evaluates_in_training

    @property
    def trains_experts(self) -> bool:
        """Whether experts are trained, unless all their masks exist already."""
        uses_experts = self.use_expert_masks or self.stop_after == "experts"
        return uses_experts and self.goes_on_after("pseudo_masks") and self.experts.weights_dir is None

    @property
    def base_dataset(self) -> str | None:
        """The benchmark whose categories these are."""
        return None if self.dataset_name is None else self.dataset_name.removesuffix(CATEGORY_SUFFIX)

    def check(self, task: Task | None) -> list[Problem]:
        """See `RunSettings.check`."""
        problems = super().check(task)
        if task == "train":
            problems += self._check_batches() + self._check_backbones()
            if self.goes_on_after("experts") or self.scores_single_categories:
                problems += self.check_selection(is_scored=self.evaluates_in_training)
            if self.experts.weights_dir is not None:
                purpose = "experts' weights, one expert_<category>.pt each"
                problems += needs_dir("experts.dir_weights", self.experts.weights_dir, purpose)
            if self.scores_single_categories and self.goes_on_after("experts"):
                text = f"{self.dataset_name} scores single experts; expected stop_after: experts"
                problems.append(Problem(("stop_after", "dataset_name"), text))
            elif self.single_category is not None and self.goes_on_after("experts"):
                text = "chooses experts, but the segmenter needs those of all categories; expected stop_after: experts"
                problems.append(Problem(("single_category", "stop_after"), text))
        if task == "evaluate" and self.scores_single_categories and len(self.single_category or ()) != 1:
            text = f"received {self.single_category}, expected the one category that the expert was trained for"
            problems.append(Problem(("single_category",), text))
        return problems

    def _check_backbones(self) -> list[Problem]:
        """What the segmenters start from, those of experts that are to be trained as well."""
        segmenters = {self.segmenter} if self.goes_on_after("experts") else set()
        if self.trains_experts:
            segmenters.add(self.experts.segmenter or self.segmenter)
        backbones = sorted(name.removeprefix(SEGMENTER_PREFIX) for name in segmenters)
        problems = [problem for name in backbones for problem in backbone_problems(self.backbone_weights, name)]
        return list(dict.fromkeys(problems))

    def _check_batches(self) -> list[Problem]:
        """Batch norm of the pooled branch needs two samples, in every pass."""
        problems = []
        if self.train_loader.batch_size // self.accumulate_steps < 2:
            text = "expected at least 2 samples in every pass: batch norm has no statistics of one"
            problems.append(Problem(("train_dataloader_kwargs", "accumulate_steps"), text))
        uses_experts = self.use_expert_masks or self.stop_after == "experts"
        if uses_experts and self.experts.train_loader.batch_size // self.accumulate_steps < 2:
            text = "expected a batch_size of at least 2: batch norm has no statistics of one"
            problems.append(Problem(("experts.train_dataloader_kwargs", "accumulate_steps"), text))
        return problems
