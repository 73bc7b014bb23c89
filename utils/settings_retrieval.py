"""Settings of every recipe that starts from names and unlabelled pictures: names, benchmark, retrieval, loaders.

`settings_recipe.py` (recipes with pseudo-masks of retrieved pictures) and `settings_reco.py` add what is theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from utils.model_names import clip_problems
from utils.setting_blocks import LoaderSettings, RunSettings, TrainLoaderSettings
from utils.setting_types import (
    AnyPath,
    Block,
    CountInt,
    NameList,
    PathList,
    PathOrName,
    PositiveInt,
    Problem,
    Task,
    TextList,
    check_names,
    check_prompts,
    listing,
    needs_dir,
    needs_file,
    one_of,
)


class EmbeddingStage(Block):
    """CLIP embeddings of the index images: pictures per batch, and worker processes that read."""

    batch_size: PositiveInt = 256
    num_workers: CountInt = 8
    skip_bad: bool = True  # list unreadable pictures in a file and go on
    extend: bool = False  # embed pictures that were added to the index folders since; false: that is an error


class RetrievalSettings(RunSettings):
    """Names, a benchmark, and an index dataset whose pictures are retrieved for the names."""

    benchmarks: ClassVar[tuple[str, ...]] = ()  # values of `dataset_name`
    stages: ClassVar[tuple[str, ...]] = ("retrieval", "training")  # values of `stop_after`

    # categories and benchmark
    categories: NameList | None = None  # null: the benchmark's own table
    dataset_name: str | None = None  # benchmark; null: train without evaluation
    split: Literal["train", "val", "test"] = "val"
    num_categories: PositiveInt | None = Field(default=None, alias="n_categories")
    ignore_index: CountInt = 255
    benchmark_dir: AnyPath | None = Field(default=None, alias="dir_val_dataset")
    # index dataset and retrieval
    index_dataset_name: Literal["index"] = "index"
    index_dirs: PathList = Field(default_factory=list, alias="dir_train_dataset")
    embedding_paths: PathList = Field(default_factory=list, alias="p_filename_to_image_embedding")
    archive_path: AnyPath | None = Field(default=None, alias="category_to_p_images_fp")  # made when it does not exist
    num_images: PositiveInt = Field(default=500, alias="n_images")  # per category
    path_map: dict[str, str] = Field(default_factory=dict)  # old path prefix -> new one, for foreign archive files
    retrieval_clip: PathOrName = "ViT-L/14@336px"
    prompts: TextList = Field(default_factory=lambda: ["retrieval_85"])  # name of a template list, or templates with {}
    embedding: EmbeddingStage = Field(default_factory=EmbeddingStage)
    # loaders
    train_loader: TrainLoaderSettings = Field(default_factory=TrainLoaderSettings, alias="train_dataloader_kwargs")
    val_loader: LoaderSettings = Field(default_factory=LoaderSettings, alias="val_dataloader_kwargs")
    stop_after: str = "training"  # last stage of `train.py`
    # users' pictures
    picture_long_edge: PositiveInt | None = 1024  # larger ones are shrunk for the network; null: never

    @field_validator("dataset_name")
    @classmethod
    def _known_benchmark(cls, name: str | None) -> str | None:
        return name if name is None else one_of(name, cls.benchmarks)

    @field_validator("stop_after")
    @classmethod
    def _known_stage(cls, name: str) -> str:
        return one_of(name, cls.stages)

    @field_validator("categories")
    @classmethod
    def _good_names(cls, names: list[str] | None) -> list[str] | None:
        return names if names is None else check_names(names)

    @field_validator("prompts")
    @classmethod
    def _templates(cls, prompts: list[str]) -> list[str]:
        return check_prompts(prompts)

    def check(self, task: Task | None) -> list[Problem]:
        """See `RunSettings.check`."""
        problems = self._check_categories()
        if task == "train":
            problems += self._check_index()
            if clash := self.ignore_index_clash(self.trained_names or ()):
                problems.append(Problem(("ignore_index", "categories"), clash))
        if task == "evaluate" and self.dataset_name is None:
            text = f"expected a benchmark to evaluate on: {listing(self.benchmarks)}"
            problems.append(Problem(("dataset_name",), text))
        if self.dataset_name is not None and (task == "evaluate" or (task == "train" and self.evaluates_in_training)):
            problems += needs_dir("dir_val_dataset", self.benchmark_dir, f"the benchmark {self.dataset_name}")
        return problems

    @property
    def base_dataset(self) -> str | None:
        """The benchmark whose categories these are."""
        return self.dataset_name

    @property
    def evaluates_in_training(self) -> bool:
        """Whether training stops for scores: a benchmark is chosen and its folder is given."""
        return self.dataset_name is not None and self.benchmark_dir is not None

    @property
    def trained_names(self) -> list[str] | None:
        """Names of the labels that are learnt, as far as the settings alone tell them."""
        return None

    def ignore_index_clash(self, names: Sequence[str]) -> str | None:
        """What is wrong with `ignore_index` for a training with these labels, in words; None: nothing."""
        if self.ignore_index >= len(names) or not self.goes_on_after(self.stages[-2]):
            return None
        free = max(len(names), 255)
        return (
            f"{self.ignore_index} is the label of {names[self.ignore_index]!r}, which would not be learnt; expected a "
            f"number that is no label, such as {free}"
        )

    def goes_on_after(self, stage: str) -> bool:
        """Whether `stop_after` lies behind a stage."""
        return self.stages.index(self.stop_after) > self.stages.index(stage)

    def _check_categories(self) -> list[Problem]:
        if self.categories is None:
            if self.dataset_name is None:
                text = "expected category names, or a benchmark (dataset_name) that has its own"
                return [Problem(("categories", "dataset_name"), text)]
            return []
        count = len(self.categories)
        if self.num_categories is not None and count not in (self.num_categories, self.num_categories + 1):
            text = f"{self.num_categories} does not fit the {count} names in categories"
            return [Problem(("n_categories", "categories"), text)]
        return []

    def _check_index(self) -> list[Problem]:
        """What retrieval needs."""
        problems = [
            problem
            for path in self.index_dirs
            for problem in needs_dir("dir_train_dataset", path, "the index images to train from")
        ]
        has_archive = self.archive_path is not None and self.archive_path.is_file()
        if not self.index_dirs and not has_archive:
            text = "expected at least one folder of index images (or category_to_p_images_fp, an existing file)"
            problems.append(Problem(("dir_train_dataset", "category_to_p_images_fp"), text))
        if self.embedding_paths and len(self.embedding_paths) != len(self.index_dirs):
            text = f"received {len(self.embedding_paths)}, expected one for each of the {len(self.index_dirs)} folders"
            text += " in dir_train_dataset"
            problems.append(Problem(("p_filename_to_image_embedding", "dir_train_dataset"), text))
        if not has_archive:
            problems += clip_problems("retrieval_clip", self.retrieval_clip)
            pickles = [path for path in self.embedding_paths if path.suffix == ".pkl"]
            key = "p_filename_to_image_embedding"
            instead = f"; with {key}=null embeddings are made of the pictures"
            problems += [p for path in pickles for p in needs_file(key, path, instead)]
        return problems
