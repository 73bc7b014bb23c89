"""ImageNet-S with 50, 300 or 919 categories: validation is scored, test is exported as label PNGs.

Layout below the dataset folder: `ImageNetS<n>/validation/<wnid>/*.JPEG`,
`ImageNetS<n>/validation-segmentation/<wnid>/*.png`, `ImageNetS<n>/test/<wnid>/*.JPEG`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.base import Benchmark
from datasets.label_files import check_labels, read_label_png
from datasets.metadata import imagenet_s_table
from datasets.pairing import pair_named, require_dir
from utils.errors import DataError
from utils.files import atomic_write

LONG_EDGE_LIMIT = 1024
_SPLITS = {"val": "validation", "validation": "validation", "test": "test", "train-semi": "train-semi"}


class ImageNetSBenchmark(Benchmark):
    """ImageNet-S, in the order of the sorted picture paths.

    Args:
        root: folder that holds `ImageNetS<n>`.
        split: "val" (or "validation"), "train-semi", or "test", which has no labels.
        num_categories: 50, 300 or 919, background not counted.

    Raises:
        DataError: unknown split, missing folder, missing label PNGs, or label PNGs without a picture.
    """

    def __init__(self, root: str | Path, split: str = "val", *, num_categories: int = 919) -> None:
        table = imagenet_s_table(num_categories)
        if split not in _SPLITS:
            raise DataError(
                f"ImageNet-S has the splits {', '.join(map(repr, _SPLITS))} here, got {split!r} "
                "(of the training pictures only those of 'train-semi' have labels)."
            )
        folder, base = _SPLITS[split], Path(root) / f"ImageNetS{num_categories}"
        layout = f"ImageNetS{num_categories}/{folder}/<wnid>/*.JPEG"
        image_dir = require_dir(base / folder, "the ImageNet-S pictures", layout)
        image_paths = sorted(image_dir.glob("*/*.JPEG"), key=Path.as_posix)
        label_paths = None
        if folder != "test":
            names = [f"{path.parent.name}/{path.stem}.png" for path in image_paths]
            label_paths = pair_named(names, base / f"{folder}-segmentation", image_dir, what="label PNGs")
        super().__init__(name="imagenet-s", split=split, table=table, image_paths=image_paths, label_paths=label_paths)
        self.num_categories = num_categories

    @property
    def protocol(self) -> dict[str, str]:
        """What a score depends on; here the network's picture is limited in size."""
        limit = f"full resolution, longer side at most {LONG_EDGE_LIMIT}; scored at the label's size"
        return {**super().protocol, "image size": limit}

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Category ids of an RGB label PNG, int16, (H, W)."""
        colours = read_label_png(path)
        if colours.ndim != 3:
            raise DataError(f"{path}: expected an RGB label PNG (label = R + 256 G), got shape {colours.shape}.")
        labels = decode_imagenet_s_label(colours)
        check_labels(labels, path, self.num_classes, self.ignore_index)
        return labels

    def fit(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """The picture with its longer side at most 1024 (Pillow's bilinear filter); scored at full resolution."""
        full = (image.shape[0], image.shape[1])
        height, width = self.fitted_size(full)
        if (height, width) != full:
            image = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        return image, label, full

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) with the longer side at most 1024."""
        return network_size(size)

    def export_path(self, output_dir: str | Path, image_path: Path) -> Path:
        """Where the label PNG of a picture belongs below a submission folder: `<wnid>/<stem>.png`."""
        return Path(output_dir) / image_path.parent.name / f"{image_path.stem}.png"


def network_size(size: tuple[int, int], limit: int = LONG_EDGE_LIMIT) -> tuple[int, int]:
    """(height, width) of the network's picture: longer side at most `limit`, the other truncated, at least 1."""
    longer = max(size)
    if longer <= limit:
        return size
    height, width = (limit if side == longer else max(int(limit * side / longer), 1) for side in size)
    return height, width


def decode_imagenet_s_label(colours: np.ndarray) -> np.ndarray:
    """R + 256 G of an RGB label PNG (H, W, 3 or more), as int16 (H, W)."""
    return colours[..., 0].astype(np.int16) + 256 * colours[..., 1].astype(np.int16)


def write_imagenet_s_label(path: str | Path, labels: np.ndarray) -> None:
    """Write a label map for the benchmark's server: RGB PNG with R = id mod 256, G = id div 256, B = 0, atomically.

    Args:
        path: PNG file.
        labels: category ids 0 ... 65535, whole numbers, (H, W).

    Raises:
        ValueError: labels outside that range, or another shape.
        utils.errors.UserError: the file cannot be written.
    """
    if labels.ndim != 2 or (labels.size and (labels.min() < 0 or labels.max() > 65535)):
        raise ValueError(f"expected labels 0 ... 65535 with shape (H, W), got shape {labels.shape}")
    colours = np.zeros((*labels.shape, 3), np.uint8)
    colours[..., 0], colours[..., 1] = labels % 256, labels // 256
    with atomic_write(path, sync=False) as file:
        Image.fromarray(colours).save(file, format="PNG")
