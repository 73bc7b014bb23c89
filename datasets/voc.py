"""PASCAL VOC2012: 20 classes and background, void outlines ignored.

Layout below the dataset folder: `ImageSets/Segmentation/<split>.txt`, `JPEGImages/<name>.jpg`,
`SegmentationClass/<name>.png` (palette indices).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import Benchmark
from datasets.label_files import check_labels, read_index_png
from datasets.metadata import category_table
from datasets.pairing import pair_listed, require_dir
from utils.errors import DataError

LAYOUT = "ImageSets/Segmentation/<split>.txt, JPEGImages/*.jpg, SegmentationClass/*.png"
SPLITS = ("train", "val", "trainval")


class VocBenchmark(Benchmark):
    """VOC2012, in the order of the split's list.

    Args:
        root: dataset folder (the one with `JPEGImages`).
        split: "train", "val" or "trainval".

    Raises:
        DataError: unknown split, missing list, pictures or labels, or labels without a picture.
    """

    def __init__(self, root: str | Path, split: str = "val") -> None:
        root = Path(root)
        if split not in SPLITS:
            raise DataError(f"VOC2012 has the splits {', '.join(map(repr, SPLITS))} here, got {split!r}.")
        image_dir = require_dir(root / "JPEGImages", "the VOC2012 pictures", LAYOUT)
        label_dir = require_dir(root / "SegmentationClass", "the VOC2012 labels", LAYOUT)
        list_path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        image_paths, label_paths = pair_listed(list_path, image_dir, label_dir)
        super().__init__(
            name="voc2012",
            split=split,
            table=category_table("voc2012"),
            image_paths=image_paths,
            label_paths=label_paths,
        )

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Palette indices, int16, (H, W)."""
        remedy = "VOC's labels are palette PNGs; this one was converted to colours."
        labels = read_index_png(path, remedy)
        check_labels(labels, path, self.num_classes, self.ignore_index)
        return labels.astype(np.int16)
