"""A folder in COCO's layout with categories of its own and no background: a label PNG names every pixel it can.

Layout: `<split>2017/*.jpg`, `annotations/semantic_segmentation_masks/<image stem>.png`. Stored values are 1 for the
first category, 2 for the second, ...; 0 and 255 where nothing has a name. COCO2017 itself, whose label 0 is the
background, is read by `coco.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.coco import CUSTOM_IGNORE_INDEX, LABEL_DIR, CocoBenchmark, split_name
from datasets.label_files import check_labels, read_index_png
from datasets.metadata import BACKGROUND, CategoryTable, bit_palette
from datasets.pairing import list_relative
from utils.errors import ConfigError


class CocoLayoutBenchmark(CocoBenchmark):
    """Pictures of a split in the order of their names; labels of stuff as well as things.

    Args:
        root: dataset folder.
        split: "val" or "train" ("val2017" means the same).
        categories: names in label order, the one stored as 1 first.
        with_labels: read label PNGs; None: where a picture of the split has one.

    Raises:
        ConfigError: no categories, or more than label PNGs can hold.
        DataError: as `CocoBenchmark`.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        *,
        categories: Sequence[str] | None = None,
        with_labels: bool | None = True,
    ) -> None:
        if not categories:
            raise ConfigError("the benchmark coco_layout needs the names of its labels in their order (categories).")
        if len(categories) >= CUSTOM_IGNORE_INDEX:
            raise ConfigError(
                f"categories: received {len(categories)} names, but the benchmark coco_layout takes "
                f"{CUSTOM_IGNORE_INDEX - 1} at most: its label PNGs hold bytes, of which 0 and {CUSTOM_IGNORE_INDEX} "
                "stand for no name. Leave some out, or merge them."
            )
        if with_labels is None:
            labels = list_relative(Path(root) / LABEL_DIR, ".png")
            pictures = list_relative(Path(root) / split_name(split), ".jpg")
            with_labels = any(f"{Path(name).stem}.png" in labels for name in pictures)
        # Names with a background in front are the form of the parent, whose files this one reads.
        super().__init__(
            root, split, categories=[BACKGROUND, *categories], with_labels=with_labels, with_instances=False
        )
        self.name = "coco_layout"
        self.table = self.prediction_table = _table(categories)
        self.category_names = list(categories)
        self.palette, self.label_colours = self.table.palette, self.table.label_colours
        self.ignore_index = self.table.ignore_index

    @property
    def protocol(self) -> dict[str, str]:
        """What a score depends on; here also what becomes of pixels without a name."""
        return {**super().protocol, "other pixels": "those without a name (stored 0 or 255) are not scored"}

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Stored values less one, the ignore index where nothing has a name; int16, (H, W)."""
        stored = read_index_png(path, "Label PNGs hold 0 for no name, then the names in their order.")
        check_labels(stored, path, self.num_classes + 1, self.ignore_index)
        is_named = (stored > 0) & (stored != self.ignore_index)
        return np.where(is_named, stored.astype(np.int16) - 1, self.ignore_index).astype(np.int16)


def _table(categories: Sequence[str]) -> CategoryTable:
    """Facts about the user's categories, with the colours of the VOC map but for black."""
    palette = bit_palette(len(categories) + 1)[1:]
    label_colours = bit_palette(CUSTOM_IGNORE_INDEX + 1)
    label_colours[: len(categories)], label_colours[CUSTOM_IGNORE_INDEX] = palette, 255
    return CategoryTable("custom", tuple(categories), palette, CUSTOM_IGNORE_INDEX, label_colours)
