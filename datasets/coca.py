"""CoCA: one object class per picture, binary masks in class folders.

Layout below the dataset folder: `image/<class>/<name>.jpg`, `binary/<class>/<name>.png`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import Benchmark
from datasets.label_files import read_label_png
from datasets.metadata import category_table
from datasets.pairing import pair_named, require_dir
from utils.errors import DataError
from utils.log import get_logger

LAYOUT = "image/<class>/*.jpg, binary/<class>/*.png"
logger = get_logger(__name__)


class CocaBenchmark(Benchmark):
    """CoCA, in the order of the sorted picture paths.

    Args:
        root: dataset folder.
        split: a word for the protocol; CoCA has one split.

    Raises:
        DataError: a folder is none of the classes, masks are missing, or masks have no picture.
    """

    def __init__(self, root: str | Path, split: str = "val") -> None:
        root = Path(root)
        table = category_table("coca")
        image_dir = require_dir(root / "image", "the CoCA pictures", LAYOUT)
        require_dir(root / "binary", "the CoCA masks", LAYOUT)
        image_paths = sorted(image_dir.glob("*/*.jpg"), key=Path.as_posix)
        unknown = sorted({path.parent.name for path in image_paths} - set(table.folders))
        if unknown:
            raise DataError(
                f"{image_dir}: {len(unknown)} folders are no CoCA classes: {', '.join(unknown[:10])}. "
                "Folder names have to be those of the published dataset."
            )
        names = [f"{path.parent.name}/{path.stem}.png" for path in image_paths]
        label_paths = pair_named(names, root / "binary", image_dir, what="masks")
        super().__init__(name="coca", split=split, table=table, image_paths=image_paths, label_paths=label_paths)
        self._has_warned = False

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """The picture's class where the mask is white, 0 elsewhere, int16, (H, W)."""
        mask = read_label_png(path)
        if mask.ndim != 2:
            raise DataError(f"{path}: expected a grey mask with one channel, got shape {mask.shape}.")
        labels, num_grey = label_coca_mask(mask, self.table.folders[image_path.parent.name])
        if num_grey and not self._has_warned:
            self._has_warned = True
            logger.warning(
                "%s: %d pixels are neither 0 nor 255. Such greys count as labels, as in the published scores; "
                "other masks may hold some, too.",
                path,
                num_grey,
            )
        return labels


def label_coca_mask(mask: np.ndarray, label: int) -> tuple[np.ndarray, int]:
    """Turn a mask into labels.

    Args:
        mask: grey values, uint8 or bool, (H, W).
        label: category id of the picture's class.

    Returns:
        int16 labels (255 becomes `label`), and the number of pixels that are neither 0 nor 255.

    Source: # Kept for published scores: other grey values stay what they are, as labels (ZUTIS spec 12-30).
    """
    values = mask.astype(np.int16) * (255 if mask.dtype == bool else 1)
    num_grey = int(np.count_nonzero((values != 0) & (values != 255)))
    return np.where(values == 255, np.int16(label), values), num_grey
