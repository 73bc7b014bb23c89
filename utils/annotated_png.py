"""Pictures for reports as PNG files that say themselves what they show: texts lie in the file, beside the pixels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from utils.errors import UnreadableImageError
from utils.files import atomic_write


def write_annotated(path: Path, image: np.ndarray, texts: Mapping[str, str]) -> None:
    """Write a picture, RGB, uint8, (H, W, 3), with named texts in it; replaced atomically.

    Raises:
        UserError: if it cannot be written.
    """
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_itxt(key, text)
    with atomic_write(path, sync=False) as file:
        Image.fromarray(image).save(file, format="PNG", pnginfo=info)


def read_texts(path: Path) -> dict[str, str]:
    """The texts of a PNG; empty where it has none or cannot be read."""
    try:
        with Image.open(path) as image:
            return {key: str(text) for key, text in getattr(image, "text", {}).items()}
    except (OSError, ValueError):
        return {}


def read_annotated(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """A picture, RGB, uint8, (H, W, 3), and its texts (none in files of other origin).

    Raises:
        UnreadableImageError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB")), {
                key: str(text) for key, text in getattr(image, "text", {}).items()
            }
    except (OSError, ValueError) as error:
        raise UnreadableImageError(f"{path}: cannot be read as a picture ({error}).") from error
