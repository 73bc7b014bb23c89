"""Cityscapes, twice: its 14 object classes against everything else, and 27 classes on the central square.

Layout below the dataset folder: `leftImg8bit/<split>/<city>/<name>_leftImg8bit.png`,
`gtFine/<split>/<city>/<name>_gtFine_labelIds.png`. Label files hold raw ids.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import Benchmark
from datasets.central_square import CentralSquareBenchmark
from datasets.label_files import read_index_png, relabel
from datasets.metadata import category_table
from datasets.pairing import find_labels, list_relative, pair_named, require_dir
from utils.errors import DataError

LAYOUT = "leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png"
SPLITS = ("train", "val")
IMAGE_ENDING = "_leftImg8bit.png"
LABEL_ENDING = "_gtFine_labelIds.png"


class CityscapesObjectBenchmark(Benchmark):
    """The 14 object classes of Cityscapes at full resolution, in the order of the sorted picture paths.

    Args:
        root: dataset folder.
        split: "val" or "train".

    Raises:
        DataError: unknown split, missing folder, missing labels, or labels without a picture.

    Source: NamedMask spec 5. # Kept for published scores: void pixels count as background (NamedMask spec 6-19).
    """

    def __init__(self, root: str | Path, split: str = "val") -> None:
        image_paths = find_images(Path(root), split)
        super().__init__(
            name="cityscapes_object",
            split=split,
            table=category_table("cityscapes_object"),
            image_paths=image_paths,
            label_paths=pair_labels(Path(root), split, image_paths, True),
        )

    @property
    def protocol(self) -> dict[str, str]:
        """What a score depends on; here also what becomes of pixels outside the classes."""
        return {**super().protocol, "other pixels": "stuff and void count as background, nothing is ignored"}

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Labels of raw ids, int16, (H, W)."""
        return relabel(read_index_png(path), self.table, path)


class CityscapesBenchmark(CentralSquareBenchmark):
    """27 classes of Cityscapes, in the order of the sorted picture paths.

    Args:
        root: dataset folder.
        split: "val" or "train".
        with_labels: read labels; None: where the split's label folder exists.

    Raises:
        DataError: as `CityscapesObjectBenchmark`.

    Source: ReCo spec 8; pictures and labels are paired by name, which the release does not do (ReCo spec 16-16).
    """

    def __init__(self, root: str | Path, split: str = "val", *, with_labels: bool | None = True) -> None:
        root = Path(root)
        image_paths = find_images(root, split)
        super().__init__(
            name="cityscapes",
            split=split,
            table=category_table("cityscapes27"),
            image_paths=image_paths,
            label_paths=pair_labels(root, split, image_paths, with_labels),
        )

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Labels of raw ids, -1 for void; int16, (H, W)."""
        return relabel(read_index_png(path), self.table, path)

    def export_path(self, output_dir: str | Path, image_path: Path) -> Path:
        """Where the predicted label PNG of a picture belongs: flat, by the name of its label file."""
        return Path(output_dir) / label_name(image_path.name)


def find_images(root: Path, split: str) -> list[Path]:
    """The pictures of a split, sorted by path; DataError for an unknown split or a missing folder."""
    if split not in SPLITS:
        raise DataError(f"Cityscapes has the splits {', '.join(map(repr, SPLITS))} here, got {split!r}.")
    folder = require_dir(root / "leftImg8bit" / split, "the Cityscapes pictures", LAYOUT)
    return [folder / name for name in sorted(list_relative(folder, IMAGE_ENDING, depth=1))]


def label_name(image_name: str) -> str:
    """File name of a picture's label: `x_leftImg8bit.png` -> `x_gtFine_labelIds.png`."""
    return image_name.removesuffix(IMAGE_ENDING) + LABEL_ENDING


def pair_labels(root: Path, split: str, image_paths: list[Path], with_labels: bool | None) -> list[Path] | None:
    """The label file of every picture, found by name; DataError if some are missing or belong to no picture."""
    label_dir = find_labels(root / "gtFine" / split, with_labels, LAYOUT)
    if label_dir is None:
        return None
    names = [f"{path.parent.name}/{label_name(path.name)}" for path in image_paths]
    return pair_named(names, label_dir, root / "leftImg8bit" / split, ending=LABEL_ENDING)
