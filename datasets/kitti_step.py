"""KITTI-STEP: frames of videos at their own size, 19 classes.

Layout below the dataset folder: `<split>/<video>/<frame>.png`, `panoptic_maps/<split>/<video>/<frame>.png` (the red
channel is the class).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np

from datasets.base import Benchmark
from datasets.label_files import read_label_png, relabel
from datasets.metadata import category_table
from datasets.pairing import find_labels, list_relative, pair_named, require_dir
from utils.errors import DataError

LAYOUT = "<split>/<video>/*.png, panoptic_maps/<split>/<video>/*.png"
SPLITS = ("train", "val")


class KittiStepBenchmark(Benchmark):
    """KITTI-STEP in the order of the sorted frames.

    Args:
        root: dataset folder.
        split: "val" or "train".
        with_labels: read panoptic maps; None: where the split's folder of them exists.

    Raises:
        DataError: unknown split, missing folder, missing maps, or maps without a frame.

    Source: ReCo spec 8.
    """

    trains_on_squares: ClassVar[bool] = True

    def __init__(self, root: str | Path, split: str = "val", *, with_labels: bool | None = True) -> None:
        root = Path(root)
        if split not in SPLITS:
            raise DataError(f"KITTI-STEP has the splits {', '.join(map(repr, SPLITS))} here, got {split!r}.")
        image_dir = require_dir(root / split, "the frames", LAYOUT)
        names = sorted(list_relative(image_dir, ".png", depth=1))
        label_dir = find_labels(root / "panoptic_maps" / split, with_labels, LAYOUT)
        label_paths = None if label_dir is None else pair_named(names, label_dir, image_dir, what="panoptic maps")
        super().__init__(
            name="kitti_step",
            split=split,
            table=category_table("kitti_step19"),
            image_paths=[image_dir / name for name in names],
            label_paths=label_paths,
        )

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """The red channel of a panoptic map, -1 for void; int16, (H, W)."""
        colours = read_label_png(path)
        if colours.ndim != 3:
            raise DataError(f"{path}: expected an RGB panoptic map (red = class), got shape {colours.shape}.")
        return relabel(colours[..., 0], self.table, path)

    def export_path(self, output_dir: str | Path, image_path: Path) -> Path:
        """Where the predicted label PNG of a frame belongs: `<video>/<frame>.png`."""
        return Path(output_dir) / image_path.parent.name / image_path.name
