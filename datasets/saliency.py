"""Readers of the salient-object benchmarks DUTS-TE, DUT-OMRON and ECSSD: a picture and one binary mask each.

Scores: `evaluation/saliency.py`. Pictures come as they are: original size, no resize.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from utils.errors import ConfigError, DataError
from utils.images import read_rgb


@dataclass(frozen=True)
class SaliencyLayout:
    """Where a benchmark keeps its pictures and masks, below its folder."""

    image_dir: str
    mask_dir: str
    folders: tuple[str, ...]  # names that the benchmark's folder may have below the given one


LAYOUTS = {
    "duts-te": SaliencyLayout("DUTS-TE-Image", "DUTS-TE-Mask", ("DUTS-TE", "DUTS", "DUTS/DUTS-TE")),
    # The release's README writes DUTS-OMRON, its code reads DUT-OMRON.
    "dut-omron": SaliencyLayout("DUT-OMRON-image", "pixelwiseGT-new-PNG", ("DUT-OMRON", "DUTS-OMRON")),
    "ecssd": SaliencyLayout("images", "ground_truth_mask", ("ECSSD",)),
}


@dataclass(frozen=True)
class SaliencyItem:
    """One picture of a benchmark.

    Attributes:
        image: RGB, (H, W, 3), uint8.
        truth: mask of the salient objects, (H, W), bool.
        path: the picture's file.
    """

    image: np.ndarray
    truth: np.ndarray
    path: Path


class SaliencyBenchmark:
    """A salient-object benchmark.

    Args:
        name: one of `LAYOUTS`.
        root: the benchmark's folder, or the one above it.
        max_images: only so many pictures, the first ones; None: all.

    Raises:
        ConfigError: if there is no such benchmark.
        DataError: if folders are missing, or pictures and masks do not belong together.

    Source: SelfMask, section 4.1: sorted pictures and masks in pairs; here their names have to agree, too.
    """

    def __init__(self, name: str, root: str | Path, *, max_images: int | None = None) -> None:
        if name not in LAYOUTS:
            raise ConfigError(f"dataset_name: received {name!r}, expected one of {', '.join(LAYOUTS)}")
        self.name = name
        folder = _find_folder(Path(root), LAYOUTS[name], name)
        images = sorted((folder / LAYOUTS[name].image_dir).glob("*.jpg"))
        masks = sorted((folder / LAYOUTS[name].mask_dir).glob("*.png"))
        _check_pairs(images, masks, folder)
        self.pairs = list(zip(images, masks, strict=True))[:max_images]

    @property
    def protocol(self) -> list[str]:
        """One line per fact that the scores depend on."""
        return [
            f"benchmark: {self.name}, {len(self)} pictures at original size, mask = ground truth > 0",
            "prediction: query of highest objectness, probabilities enlarged bilinearly, no refiner",
            "IoU, pixel accuracy, F-measure at probability > 0.5; F with beta² = 0.09; MAE, S-measure on probabilities",
            "ub_*: the query with the best IoU against the ground truth",
        ]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> SaliencyItem:
        """Read a picture and its mask.

        Raises:
            UnreadableImageError: if the picture cannot be read.
            DataError: if the mask cannot be read or has another size.
        """
        image_path, mask_path = self.pairs[index]
        image, truth = read_rgb(image_path), read_binary_mask(mask_path)
        if truth.shape != image.shape[:2]:
            raise DataError(f"{mask_path}: the mask is {truth.shape}, its picture {image.shape[:2]} (height, width)")
        return SaliencyItem(image, truth, image_path)


def read_binary_mask(path: str | Path) -> np.ndarray:
    """Read a mask picture: (H, W), bool, foreground where the grey value is above 0.

    Raises:
        DataError: if it is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L")) > 0
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such mask. Check dir_val_dataset.") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path}: the mask cannot be read ({error}). Download the benchmark again.") from error


def _find_folder(root: Path, layout: SaliencyLayout, name: str) -> Path:
    """The folder that holds pictures and masks: the given one or one below it."""
    for folder in (root, *(root / below for below in layout.folders)):
        if (folder / layout.image_dir).is_dir() and (folder / layout.mask_dir).is_dir():
            return folder
    raise DataError(
        f"{root}: expected the folders {layout.image_dir} and {layout.mask_dir} of {name} there or in "
        f"{' or '.join(layout.folders)}. Check dir_val_dataset."
    )


def _check_pairs(images: list[Path], masks: list[Path], folder: Path) -> None:
    """DataError unless there are pictures and each has the mask of the same name."""
    if not images:
        raise DataError(f"{folder}: there are no .jpg pictures. Check dir_val_dataset.")
    image_stems, mask_stems = ({path.stem for path in paths} for paths in (images, masks))
    if image_stems != mask_stems:
        lonely = sorted(image_stems ^ mask_stems)
        raise DataError(
            f"{folder}: {len(images)} pictures but {len(masks)} masks; without a partner: {', '.join(lonely[:3])}"
            + (f" and {len(lonely) - 3} more" if len(lonely) > 3 else "")
        )
