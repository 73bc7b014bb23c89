"""Pascal Context with 59 classes, on the central square of pictures that are smoothly resized.

Layout below the dataset folder: `ImageSets/SegmentationContext/<split>.txt`, `JPEGImages/<name>.jpg`,
`SegmentationClassContext/<name>.png` (0 is void, classes count from 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from datasets.central_square import CentralSquareBenchmark
from datasets.label_files import read_index_png, relabel
from datasets.metadata import category_table
from datasets.pairing import find_labels, pair_listed, require_dir
from utils.errors import DataError

LAYOUT = "ImageSets/SegmentationContext/<split>.txt, JPEGImages/*.jpg, SegmentationClassContext/*.png"
SPLITS = ("train", "val")


class PascalContextBenchmark(CentralSquareBenchmark):
    """Pascal Context in the order of the split's list.

    Args:
        root: dataset folder.
        split: "val" or "train".
        with_labels: read labels; None: where their folder exists.

    Raises:
        DataError: unknown split, missing list, pictures or labels, or labels without a picture.

    Source: ReCo spec 8.
    """

    image_filter: ClassVar[Image.Resampling] = Image.Resampling.BILINEAR

    def __init__(self, root: str | Path, split: str = "val", *, with_labels: bool | None = True) -> None:
        root = Path(root)
        if split not in SPLITS:
            raise DataError(f"Pascal Context has the splits {', '.join(map(repr, SPLITS))} here, got {split!r}.")
        image_dir = require_dir(root / "JPEGImages", "the Pascal Context pictures", LAYOUT)
        label_dir = find_labels(root / "SegmentationClassContext", with_labels, LAYOUT)
        list_path = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
        image_paths, label_paths = pair_listed(list_path, image_dir, label_dir)
        super().__init__(
            name="pascal_context",
            split=split,
            table=category_table("pascal_context59"),
            image_paths=image_paths,
            label_paths=label_paths,
        )

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Stored classes counted from 0, -1 for void; int16, (H, W)."""
        return relabel(read_index_png(path), self.table, path)
