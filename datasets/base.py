"""What every benchmark reader offers: pictures as the network gets them, labels as they are scored.

Readers: `coco.py`, `voc.py`, `cityscapes.py`, ...; `build_benchmark` in the package picks one by name. What they share
lies in `pairing.py` (which files belong together) and `label_files.py` (what label files hold).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch.utils.data import Dataset

from datasets.metadata import BACKGROUND, CategoryTable
from utils.errors import DataError
from utils.images import read_rgb


@dataclass(frozen=True)
class EvaluationItem:
    """One picture of a benchmark.

    Attributes:
        image: the network's input picture, RGB, uint8, (h, w, 3); mostly, not always, of the label's size.
        label: category ids and the ignore index, int16, (H, W); None where the benchmark has none.
        size: (H, W), the label's size, at which predictions are scored.
        image_id: id in the annotation file, or the position in the benchmark.
        path: the picture's file.
    """

    image: np.ndarray
    label: np.ndarray | None
    size: tuple[int, int]
    image_id: int
    path: Path


class Benchmark(Dataset[EvaluationItem]):
    """A dataset to evaluate on.

    Attributes:
        name: as in configurations ("coco2017", "coca", "imagenet-s", "coco20k", ...).
        split: of the dataset ("val", ...).
        table: the facts about its categories.
        prediction_table: the categories to predict; others than those of `table` where finer ones are predicted, which
            its `scored_as` turns into the scored ones.
        category_names: prompts in label order, background first where there is one.
        palette: colour of each label, uint8, (C, 3).
        label_colours: colour of every label value up to the ignore index, uint8, as in `CategoryTable`.
        ignore_index: label of pixels that are not scored.
        binary: whether one category is scored against everything else, picture by picture.
        trains_on_squares: whether labels of its pictures are learnt on central squares (ReCo+).
        has_labels: whether items carry a label.
        annotations_path: COCO annotation file for instance scores, or None.
        raw_category_ids: annotation id of each label, or None.
        image_paths: the pictures in order.
        image_ids: their ids in the same order.
        protocol: one line per fact that a score depends on.
    """

    binary: ClassVar[bool] = False
    trains_on_squares: ClassVar[bool] = False

    def __init__(
        self,
        *,
        name: str,
        split: str,
        table: CategoryTable,
        prediction_table: CategoryTable | None = None,
        image_paths: Sequence[Path],
        label_paths: Sequence[Path] | None = None,
        image_ids: Sequence[int] | None = None,
        annotations_path: Path | None = None,
    ) -> None:
        if not image_paths:
            raise DataError(f"{name} {split}: the split holds no picture.")
        self.name, self.split = name, split
        self.table, self.prediction_table = table, prediction_table or table
        self.category_names = list(table.names)
        self.palette, self.label_colours = table.palette, table.label_colours
        self.ignore_index = table.ignore_index
        self.image_paths = list(image_paths)
        self.label_paths = list(label_paths) if label_paths is not None else None
        self.image_ids = list(image_ids) if image_ids is not None else list(range(len(self.image_paths)))
        self.annotations_path = annotations_path
        self.raw_category_ids = table.raw_category_ids if annotations_path is not None else None

    def __len__(self) -> int:
        return len(self.image_paths)

    def __iter__(self) -> Iterator[EvaluationItem]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: int) -> EvaluationItem:
        """Read one picture and its label.

        Raises:
            DataError: a file is damaged, sizes differ, or a label is none of the benchmark's; names the file.
        """
        path = self.image_paths[index]
        image = self.read_image(path)
        label = None
        if self.label_paths is not None:
            label = self.read_label(self.label_paths[index], path)
            if label.shape != image.shape[:2]:
                size = image.shape
                raise DataError(
                    f"{self.label_paths[index]}: this label is {label.shape[0]}x{label.shape[1]}, but its picture "
                    f"{path} is {size[0]}x{size[1]} (height x width). Make or download the label again."
                )
        image, label, size = self.fit(image, label)
        return EvaluationItem(image, label, size, self.image_ids[index], path)

    @property
    def num_classes(self) -> int:
        """Number of labels, background included."""
        return len(self.category_names)

    @property
    def has_labels(self) -> bool:
        """Whether items carry a label map."""
        return self.label_paths is not None

    @property
    def protocol(self) -> dict[str, str]:
        """What a score on this benchmark depends on, to be printed beside it."""
        return {
            "benchmark": f"{self.name} {self.split}, {len(self)} images",
            "classes": f"{self.num_classes}{' with background' if self.category_names[0] == BACKGROUND else ''}",
            "ignore index": str(self.ignore_index),
            "image size": "full resolution, one image at a time",
        }

    def read_image(self, path: Path) -> np.ndarray:
        """The picture at full resolution, RGB, uint8, (H, W, 3)."""
        return read_rgb(path)

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """The label map of a picture, int16, (H, W); subclasses with labels define it."""
        raise TypeError(f"{type(self).__name__} has no labels")

    def fit(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """The network's input, the label, and the scored (height, width), made of a picture and a label as read.

        They stay as they are unless a benchmark limits or changes the size.
        """
        return image, label, (image.shape[0], image.shape[1])

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the network's input that `fit` makes of a picture of `size`."""
        return size

    def export_path(self, output_dir: str | Path, image_path: Path) -> Path:
        """Where the predicted label PNG of a picture belongs below a folder."""
        return Path(output_dir) / f"{image_path.stem}.png"
