"""Settings of ReCo and ReCo+. The keys of the published configurations are understood besides those of all systems."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from utils.model_names import backbone_problems, clip_problems, encoder_problems
from utils.setting_blocks import LoaderSettings, PhotometricBlock
from utils.setting_types import (
    AnyPath,
    Block,
    CountInt,
    Fraction,
    NameList,
    NonNegativeFloat,
    PathList,
    PathOrName,
    PositiveFloat,
    PositiveInt,
    Probability,
    Problem,
    Switchable,
    Task,
    listing,
    needs_dir,
    needs_file,
    one_of,
)
from utils.settings_deeplab import NEEDS_BENCHMARK, DeepLabSettings, SegmenterName
from utils.settings_retrieval import RetrievalSettings

PLAIN_FOLDER, CRF_FOLDER = "dt", "dt_crf"  # of label PNGs without and with the CRF, as in the release
_SYNONYMS = {
    "dir_dataset": "dir_val_dataset",
    "dir_imagenet": "dir_train_dataset",
    "n_imgs": "n_images",
    "iter_val": "iter_eval",
    "clip_arch": "retrieval_clip",
    "segmentor_name": "segmenter_name",
}
_LOADER_KEYS = {"batch_size": "batch_size", "n_workers": "num_workers"}
ZoomRange = Annotated[
    tuple[PositiveFloat, PositiveFloat], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
]


class CrfBlock(Block):
    """Dense CRF: constants as in `pseudo_labels.dense_crf.DenseCrfSettings`, and how many pictures at a time."""

    gaussian_sxy: PositiveFloat = 1.0
    gaussian_weight: NonNegativeFloat = 3.0
    bilateral_sxy: PositiveFloat = 67.0
    bilateral_srgb: PositiveFloat = 3.0
    bilateral_weight: NonNegativeFloat = 4.0
    iterations: PositiveInt = 10
    min_probability: Fraction = 1e-5
    num_threads: PositiveInt | None = None  # pictures at a time, beside the network; null: one per processor
    device: Literal["auto", "cpu"] = "auto"  # auto: the GPU that the network is on, if it is on one

    def constants(self) -> dict[str, float]:
        """What results depend on, by the names of `DenseCrfSettings`."""
        return self.model_dump(exclude={"num_threads", "device"})


class PredictionLoaderSettings(LoaderSettings):
    """How ReCo's pictures are read: nothing is trained, so batches are larger than elsewhere in evaluation."""

    batch_size: PositiveInt = 16
    num_workers: CountInt = 16


class RecoPhotometricBlock(PhotometricBlock):
    """The same changes of colour, but none to grey: the release has it and leaves it off."""

    greyscale_probability: Probability = 0.0


class RecoSettings(DeepLabSettings, RetrievalSettings):
    """ReCo: classifying pixels by what retrieved pictures have in common; ReCo+: a DeepLabv3+ trained on its labels.

    The third method, dense CLIP alone, is what ReCo is compared with: it retrieves nothing and trains nothing.
    """

    ineffective: ClassVar[frozenset[str]] = frozenset({"patch_size", "gpu_id", "debug", "size"})
    # coco_layout: a folder in COCO's layout with categories of its own, without background
    benchmarks: ClassVar[tuple[str, ...]] = ("cityscapes", "coco_stuff", "kitti_step", "pascal_context", "coco_layout")
    stages: ClassVar[tuple[str, ...]] = ("retrieval", "references", "prediction", "training")

    system: Literal["reco"]
    method: Literal["reco", "reco_plus", "dense_clip"] = "reco"
    # reference embeddings
    num_images: PositiveInt = Field(default=50, alias="n_images")  # per category
    imagenet_split: Literal["train", "val"] | None = None  # index folders that have such a subfolder stand for that one
    reference_path: AnyPath | None = None  # a published .pkl, or a .safetensors of an earlier run; null: computed
    encoder_arch: PathOrName = "DeiT-S/16-SIN"  # or another encoder, timm:MODEL, a CLIP, a weight file
    encoder_weights: AnyPath | None = None  # a file in place of the download for encoder_arch
    text_attention: bool = True
    context_elimination: bool = True
    context_categories: NameList = Field(default_factory=lambda: ["tree", "sky", "building", "road", "person"])
    seed_window: Literal["published", "own"] = "published"  # own: as the paper describes it
    reference_image_size: PositiveInt = 224  # side to which retrieved pictures are brought
    # prediction
    dense_clip_arch: PathOrName = "RN50x16"  # CLIP of text_attention and dense_clip_inference
    dense_clip_inference: bool = True
    temperature: PositiveFloat = 10.0  # factor of the text cosines inside the sigmoid
    crf: Annotated[CrfBlock | None, Switchable] = Field(default_factory=CrfBlock)
    val_loader: PredictionLoaderSettings = Field(
        default_factory=PredictionLoaderSettings, alias="val_dataloader_kwargs"
    )
    picture_long_edge: PositiveInt | None = 512  # users' larger pictures are shrunk for the networks; null: never
    # pseudo-labels
    write_pseudo_labels: bool | None = None  # label PNGs of the split; null: for the split train
    pseudo_label_folders: NameList = Field(default_factory=lambda: [PLAIN_FOLDER, CRF_FOLDER])
    pseudo_label_dir: AnyPath | None = Field(default=None, alias="dir_pseudo_masks")  # null: where ReCo writes them
    picture_dirs: PathList = Field(default_factory=list, alias="dir_pictures")  # to label and train from; []: the index
    picture_shorter_side: PositiveInt = 320  # to which they are shrunk for that
    # training of ReCo+
    segmenter: SegmenterName = Field(default="deeplabv3plus_resnet101", alias="segmenter_name")
    backbone_weights: PathOrName | None = "torchvision"
    log_interval: PositiveInt = Field(default=100, alias="iter_log")
    train_image_size: PositiveInt = 320
    scale_range: ZoomRange = (0.5, 2.0)
    photometric: RecoPhotometricBlock = Field(default_factory=RecoPhotometricBlock)
    validate_with_crf: bool = False  # true: as published, which takes most of the time; else at the end alone

    @classmethod
    def synonyms(cls, values: Mapping[str, Any]) -> Mapping[str, str]:
        """The published keys; batch_size and n_workers are those of ReCo's predictions, or of ReCo+'s training."""
        loader = "train" if values.get("method") == "reco_plus" else "val"
        return _SYNONYMS | {key: f"{loader}_dataloader_kwargs.{name}" for key, name in _LOADER_KEYS.items()}

    @field_validator("scale_range")
    @classmethod
    def _ordered_zoom(cls, scale_range: tuple[float, float]) -> tuple[float, float]:
        if scale_range[0] > scale_range[1]:
            raise ValueError("expected [smallest, largest] with 0 < smallest <= largest")
        return scale_range

    @field_validator("pseudo_label_folders")
    @classmethod
    def _known_folders(cls, names: list[str]) -> list[str]:
        return [one_of(name, (PLAIN_FOLDER, CRF_FOLDER)) for name in names]

    @property
    def trains(self) -> bool:
        """Whether the run is one of ReCo+."""
        return self.method == "reco_plus"

    @property
    def uses_references(self) -> bool:
        """Whether there are references: all but dense CLIP alone have them."""
        return self.method != "dense_clip"

    @property
    def trained_names(self) -> list[str] | None:
        """See `RetrievalSettings`; other words for a benchmark's names do not change its labels."""
        has_table = self.dataset_name not in (None, "coco_layout")
        return None if has_table or not self.trains or self._has_too_many_names else self.categories

    @property
    def _has_too_many_names(self) -> bool:
        """Whether label PNGs cannot hold the labels: those of coco_layout, or those that ReCo+ learns from."""
        count = len(self.categories or ())
        if self.dataset_name == "coco_layout":
            return count > 254
        return self.dataset_name is None and self.trains and count > 255

    @property
    def writes_pseudo_labels(self) -> bool:
        """Whether ReCo leaves label PNGs of the split."""
        return self.split == "train" if self.write_pseudo_labels is None else self.write_pseudo_labels

    def check(self, task: Task | None) -> list[Problem]:
        """See `RunSettings.check`."""
        problems = super().check(task)
        if task is not None and self._has_too_many_names:
            limit, no_name = (254, "0 and 255 stand") if self.dataset_name == "coco_layout" else (255, "255 stands")
            text = f"received {len(self.categories or ())} names, expected {limit} at most: label PNGs hold bytes, of "
            problems.append(Problem(("categories", "dataset_name"), f"{text}which {no_name} for no name"))
        problems += self._check_networks(task)
        if not self.uses_references:
            return problems + (self._check_scoring() if task == "train" else [])
        problems += needs_file("reference_path", self.reference_path) if task is not None else []
        if task != "train":
            return problems
        return problems + (self._check_training() if self.trains else self._check_labelling())

    def _check_networks(self, task: Task | None) -> list[Problem]:
        """Names and files of the networks that a task needs, which are loaded after stages that take hours."""
        makes_labels = self.goes_on_after("retrieval") and not (self.trains and self.pseudo_label_dir is not None)
        problems = []
        if (task == "train" and makes_labels) or (task == "evaluate" and not self.trains):
            if self.uses_references:
                problems += encoder_problems(self.encoder_arch, self.encoder_weights)
            makes_references = task == "train" and self.text_attention
            if not self.uses_references or self.dense_clip_inference or makes_references:
                problems += clip_problems("dense_clip_arch", self.dense_clip_arch)
        if task == "train" and self.trains and self.goes_on_after("prediction"):
            problems += backbone_problems(self.backbone_weights, self.backbone)
        return problems

    def _check_scoring(self) -> list[Problem]:
        """What dense CLIP alone needs: it is there to be scored."""
        problems = []
        if self.dataset_name is None:
            text = f"dense_clip is scored on a benchmark, expected one of {listing(self.benchmarks)}"
            problems.append(Problem(("dataset_name", "method"), text))
        elif self.benchmark_dir is None:
            problems += needs_dir("dir_val_dataset", None, f"the benchmark {self.dataset_name}")
        if self.writes_pseudo_labels:
            text = "dense_clip writes no label PNGs (method=reco does); expected another split, or"
            problems.append(Problem(("split", "method"), f"{text} write_pseudo_labels=false to score {self.split}"))
        if not self.goes_on_after("references"):
            text = f"dense_clip has no stage {self.stop_after}; expected prediction, or to leave it out"
            problems.append(Problem(("stop_after", "method"), text))
        return problems

    def _check_labelling(self) -> list[Problem]:
        """What ReCo needs to label or to score a split."""
        if self.benchmark_dir is not None and self.dataset_name is not None:
            return []
        if not self.goes_on_after("references") or not (self.write_pseudo_labels or self.split != "val"):
            return []
        key, value = ("write_pseudo_labels", "true") if self.write_pseudo_labels else ("split", self.split)
        text = f"{value}, but there is no benchmark whose pictures ReCo could label; expected {NEEDS_BENCHMARK}, or "
        text += "method=reco_plus, which labels pictures of yours (dir_pictures)"
        return [Problem((key, "dataset_name"), text)]

    def _check_scores(self) -> list[Problem]:
        """What only a training with scores can do."""
        problems = self.check_selection(is_scored=self.evaluates_in_training)
        if self.validate_with_crf and not self.evaluates_in_training:
            text = f"true, but the training has no scores; expected {NEEDS_BENCHMARK}"
            problems.append(Problem(("validate_with_crf", "dataset_name"), text))
        return problems

    def _check_training(self) -> list[Problem]:
        problems = self._check_scores() if self.goes_on_after("prediction") else []
        if self.train_loader.batch_size // self.accumulate_steps < 2:
            text = "expected at least 2 samples in every pass: batch norm has no statistics of one"
            problems.append(Problem(("train_dataloader_kwargs", "accumulate_steps"), text))
        if self.split == "train":
            text = "train is what ReCo+ learns from; expected val, where it is scored"
            problems.append(Problem(("split", "method"), text))
        if self.dataset_name is not None and self.benchmark_dir is None:
            problems += needs_dir("dir_val_dataset", None, f"the benchmark {self.dataset_name}")
        if self.pseudo_label_dir is not None:
            problems += needs_dir("dir_pseudo_masks", self.pseudo_label_dir, "label PNGs to train from")
        if self.dataset_name is None and not self.picture_dirs and not self.index_dirs:
            text = "not set; expected pictures to learn from (or an index, dir_train_dataset, that holds them)"
            problems.append(Problem(("dir_pictures",), text))
        for path in self.picture_dirs:
            problems += needs_dir("dir_pictures", path, "pictures to label and train from")
        return problems

    def _check_index(self) -> list[Problem]:
        """Pictures are retrieved only where references have to be computed."""
        has_none_to_make = not self.uses_references or (self.trains and self.pseudo_label_dir is not None)
        if has_none_to_make or (self.reference_path is not None and self.reference_path.is_file()):
            return []
        return super()._check_index() + self._check_imagenet_split()

    def _check_imagenet_split(self) -> list[Problem]:
        """The split is in names of folders and files, too: nothing else may be searched under the name of this one."""
        if self.imagenet_split is None:
            return []
        split, other = self.imagenet_split, "val" if self.imagenet_split == "train" else "train"
        remedy = f"expected imagenet_split={other}, another {{}}, or imagenet_split=null for pictures that are no split"
        problems = []
        for path in self.index_dirs:
            if (path.name == other or (path / other).is_dir()) and not (path / split).is_dir():
                text = f"{split}, but {path} holds ImageNet's split {other}; {remedy.format('dir_train_dataset')}"
                problems.append(Problem(("imagenet_split", "dir_train_dataset"), text))
        for path in self.embedding_paths:
            if f"_{other}_img_embedding" in path.name:
                key = "p_filename_to_image_embedding"
                text = f"{split}, but {path} holds embeddings of {other}; {remedy.format(key)}"
                problems.append(Problem(("imagenet_split", key), text))
        return problems
