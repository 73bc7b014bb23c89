"""COCO-Stuff: 171 categories are predicted and scored as 27; validation on COCO 2017, training pictures of 10K.

Layout below the dataset folder: `curated/val2017/Coco164kFull_Stuff_Coarse.txt`, `images/val2017/<id>.jpg`,
`annotations/val2017/<id>.png`. The training set lies beside it, in a folder of the same name with `10k` appended:
`imageLists/train.txt`, `images/<name>.jpg`, `annotations/<name>.mat`.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from datasets.central_square import CentralSquareBenchmark
from datasets.label_files import read_index_png, relabel
from datasets.metadata import category_table
from datasets.pairing import find_labels, pair_listed, require_dir
from utils.errors import DataError, UnreadableImageError

VAL_LAYOUT = "curated/val2017/Coco164kFull_Stuff_Coarse.txt, images/val2017/*.jpg, annotations/val2017/*.png"
TRAIN_LAYOUT = "imageLists/train.txt, images/*.jpg, annotations/*.mat"
# What SciPy raises, besides its own error, for files that are cut off, damaged or of another format.
_BAD_MAT = (OSError, ValueError, TypeError, LookupError, ArithmeticError, NotImplementedError, MemoryError, zlib.error)


class CocoStuffBenchmark(CentralSquareBenchmark):
    """COCO-Stuff in the order of the split's list.

    Args:
        root: dataset folder; the training split is read from its neighbour `<root>10k`.
        split: "val" (164k, curated list, 0-based label PNGs) or "train" (10K, 1-based `.mat` files).
        with_labels: read labels; None: where the split's label folder exists.

    Raises:
        DataError: unknown split, missing list, pictures or labels, or labels without a picture.

    Source: ReCo spec 8; pictures and labels are paired by name, which the release does not do (ReCo spec 16-17).
    """

    def __init__(self, root: str | Path, split: str = "val", *, with_labels: bool | None = True) -> None:
        root = Path(root)
        if split == "val":
            image_dir, label_dir, ending = root / "images" / "val2017", root / "annotations" / "val2017", ".png"
            like = r"\d+"
            list_path, layout = root / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse.txt", VAL_LAYOUT
        elif split == "train":
            base = root.with_name(f"{root.name}10k")
            image_dir, label_dir, ending = base / "images", base / "annotations", ".mat"
            like = r"COCO_(train|val)2014_\d+"
            list_path, layout = base / "imageLists" / "train.txt", TRAIN_LAYOUT
        else:
            raise DataError(f"COCO-Stuff has the splits 'train', 'val' here, got {split!r}.")
        require_dir(image_dir, "the COCO-Stuff pictures", layout)
        label_dir = find_labels(label_dir, with_labels, layout)
        image_paths, label_paths = pair_listed(list_path, image_dir, label_dir, ending=ending, like=like)
        super().__init__(
            name="coco_stuff",
            split=split,
            table=category_table("coco_stuff27"),
            prediction_table=category_table("coco_stuff171"),
            image_paths=image_paths,
            label_paths=label_paths,
        )

    @property
    def protocol(self) -> dict[str, str]:
        """What a score depends on; here also that finer categories may be predicted."""
        fine = f"{self.prediction_table.num_classes} predicted by name count as the {self.num_classes} that are scored"
        return {**super().protocol, "finer categories": fine}

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """One of the 27 labels at each pixel, -1 for void; int16, (H, W)."""
        values = read_stuff_mat(path) if path.suffix == ".mat" else read_index_png(path)
        return relabel(values, self.table, path)


def read_stuff_mat(path: Path) -> np.ndarray:
    """Raw ids of a COCO-Stuff 10K label file, counted from 0, 255 for unlabelled pixels; uint8, (H, W).

    Raises:
        UnreadableImageError: missing or damaged file.
        DataError: the file has no map `S` of ids 0 ... 182.
    """
    from scipy.io import loadmat  # slow to import, and needed for these files only
    from scipy.io.matlab import MatReadError

    try:
        content = loadmat(path, variable_names=["S"])
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: this label file does not exist. Check the dataset folder.") from error
    except (*_BAD_MAT, MatReadError) as error:
        raise UnreadableImageError(f"{path}: this label file is damaged ({error}). Download it again.") from error
    values = content.get("S")
    if values is None or values.ndim != 2 or values.min(initial=0) < 0 or values.max(initial=0) > 182:
        found = "none" if values is None else f"shape {values.shape}, largest {values.max(initial=0)}"
        raise DataError(f"{path}: expected a map 'S' of ids 0 (unlabelled) to 182, found {found}.")
    return values.astype(np.uint8) - np.uint8(1)  # 0 becomes 255
