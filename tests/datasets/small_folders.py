"""Small dataset folders for the tests: pictures and labels written where a benchmark expects them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, array: np.ndarray) -> Path:
    """Write an array as PNG, whatever the file's name ends in; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, format="PNG")
    return path


def picture(height: int, width: int) -> np.ndarray:
    """Noise, uint8, (height, width, 3)."""
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


def blocks(values: list[int], side: int = 4) -> np.ndarray:
    """A label map with a square of each value from left to right, uint8, (side, side * n)."""
    return np.repeat(np.repeat(np.array([values], np.uint8), side, axis=0), side, axis=1)


def write_voc(root: Path, labels: dict[str, np.ndarray], split: str = "val") -> Path:
    """A VOC2012 folder whose split lists these labels with a picture each; returns the folder."""
    for name, label in labels.items():
        write(root / "JPEGImages" / f"{name}.jpg", picture(*label.shape))
        write(root / "SegmentationClass" / f"{name}.png", label)
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    listing.write_text("".join(f"{name}\n" for name in labels))
    return root


def write_cityscapes(root: Path, labels: dict[str, np.ndarray], split: str = "val") -> Path:
    """A Cityscapes folder with these raw label maps, by `<city>/<name>`; returns the folder."""
    for name, label in labels.items():
        write(root / "leftImg8bit" / split / f"{name}_leftImg8bit.png", picture(*label.shape))
        write(root / "gtFine" / split / f"{name}_gtFine_labelIds.png", label)
    return root
