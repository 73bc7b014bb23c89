"""What every benchmark reader offers: pictures as the network gets them, labels as they are scored.

Readers: `coco.py`, `coco20k.py`, `coca.py`, `imagenet_s.py`; `build_benchmark` in the package picks one by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from datasets.metadata import CategoryTable
from utils.errors import DataError, UnreadableImageError
from utils.images import read_rgb


@dataclass(frozen=True)
class EvaluationItem:
    """One picture of a benchmark.

    Attributes:
        image: the network's input picture, RGB, uint8, (h, w, 3); mostly, not always, of the label's size.
        label: category ids and the ignore index, int16, (H, W); None where the benchmark has none.
        size: (H, W) at which predictions are scored.
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
        name: as in configurations ("coco2017", "coca", "imagenet-s", "coco20k").
        split: of the dataset ("val", ...).
        category_names: prompts in label order, background first.
        palette: colour of each label, uint8, (C, 3).
        label_colours: colour of every label value up to the ignore index, uint8, (ignore_index + 1, 3).
        ignore_index: label of pixels that are not scored.
        has_labels: whether items carry a label.
        annotations_path: COCO annotation file for instance scores, or None.
        raw_category_ids: annotation id of each label, or None.
        image_paths: the pictures in order.
        image_ids: their ids in the same order.
        protocol: one line per fact that a score depends on.
    """

    def __init__(
        self,
        *,
        name: str,
        split: str,
        table: CategoryTable,
        image_paths: Sequence[Path],
        label_paths: Sequence[Path] | None = None,
        image_ids: Sequence[int] | None = None,
        annotations_path: Path | None = None,
    ) -> None:
        if not image_paths:
            raise DataError(f"{name} {split}: the split holds no picture.")
        self.name, self.split = name, split
        self.table = table
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
        size = image.shape[:2]
        label = None
        if self.label_paths is not None:
            label = self.read_label(self.label_paths[index], path)
            if label.shape != size:
                raise DataError(
                    f"{self.label_paths[index]}: this label is {label.shape[0]}x{label.shape[1]}, but its picture "
                    f"{path} is {size[0]}x{size[1]} (height x width). Make or download the label again."
                )
        return EvaluationItem(self.shrink(image), label, (int(size[0]), int(size[1])), self.image_ids[index], path)

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
            "classes": f"{self.num_classes} with background",
            "ignore index": str(self.ignore_index),
            "image size": "full resolution, one image at a time",
        }

    def read_image(self, path: Path) -> np.ndarray:
        """The picture at full resolution, RGB, uint8, (H, W, 3)."""
        return read_rgb(path)

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """The label map of a picture, int16, (H, W); subclasses with labels define it."""
        raise TypeError(f"{type(self).__name__} has no labels")

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """The network's input made of the full picture; the same unless a benchmark limits the size."""
        return image


def read_label_png(path: Path) -> np.ndarray:
    """Stored values of a label PNG: grey or palette indices (H, W), or colours (H, W, 3); uint8 or wider.

    Raises:
        UnreadableImageError: missing or damaged; names the file.
    """
    try:
        with Image.open(path) as image:
            return np.array(image)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: this label file does not exist. Check the dataset folder.") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UnreadableImageError(
            f"{path}: this label file is cut off or damaged ({error}). Make or download it again."
        ) from error


def require_dir(path: Path, what: str, layout: str) -> Path:
    """The folder, if it exists; DataError that says what it should hold if not."""
    if not path.is_dir():
        raise DataError(
            f"{path}: the folder with {what} does not exist. Expected layout below the dataset folder: {layout}."
        )
    return path


def require_files(paths: Sequence[Path], what: str, remedy: str) -> None:
    """DataError naming the first missing files and their number, unless all exist."""
    present: dict[Path, set[str]] = {}
    for parent in {path.parent for path in paths}:
        present[parent] = {entry.name for entry in parent.iterdir()} if parent.is_dir() else set()
    missing = [path for path in paths if path.name not in present[path.parent]]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{len(missing)} of {len(paths)} {what} are missing: {shown}. {remedy}")


def check_labels(labels: np.ndarray, path: Path, num_classes: int, ignore_index: int, hint: str = "") -> None:
    """DataError if a label map holds anything but 0 ... `num_classes` - 1 and the ignore index."""
    wrong = labels[(labels < 0) | ((labels >= num_classes) & (labels != ignore_index))]
    if wrong.size:
        values = np.unique(wrong)
        shown = ", ".join(map(str, values[:5].tolist())) + (", ..." if values.size > 5 else "")
        raise DataError(
            f"{path}: the label file holds {shown} in {wrong.size} pixels; expected 0 to {num_classes - 1}, or "
            f"{ignore_index} for pixels that are not scored.{' ' + hint if hint else ''}"
        )
