"""Users' own pictures as a dataset without labels: found in folders of any depth, read upright, brought to one size.

What is predicted for them is written where `export_path` says, and found there again for training.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.base import Benchmark
from datasets.metadata import CategoryTable
from utils.drawing import palette
from utils.images import list_pictures, read_picture

MAX_ASPECT = 4  # of longer ones the longer side decides, so that nothing grows without bounds


class PictureFolder(Benchmark):
    """Pictures below folders, in natural order; nothing is read before it is asked for.

    Links stay what they are called; a picture that several names lead to is one picture, under the first of them.

    Args:
        folders: searched to any depth.
        names: the categories that are looked for, in label order.
        shorter_side: pixels to which the shorter side of every picture is brought (bilinear, antialiased).
        ignore_index: label of pixels without a category.

    Raises:
        DataError: a folder that does not exist, or no picture at all.
    """

    def __init__(
        self, folders: Sequence[str | Path], names: Sequence[str], *, shorter_side: int = 320, ignore_index: int = 255
    ) -> None:
        self.folders, self.shorter_side = [Path(folder).absolute() for folder in folders], shorter_side
        colours = palette(len(names) + 1)[1:]  # black stands for no category
        table = CategoryTable("pictures", tuple(names), colours, ignore_index, colours)
        super().__init__(
            name="pictures", split="train", table=table, image_paths=_each_once(list_pictures(self.folders))
        )

    @property
    def protocol(self) -> dict[str, str]:
        """What predictions depend on; here the size."""
        return {**super().protocol, "image size": f"shorter side {self.shorter_side} (bilinear)"}

    def read_image(self, path: Path) -> np.ndarray:
        """The picture at full resolution, upright, RGB, uint8, (H, W, 3)."""
        return read_picture(path)

    def fit(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """The picture at its common size; it is also the size of its label map."""
        size = self.fitted_size(image.shape[:2])
        if size != image.shape[:2]:
            image = np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        return image, label, size

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which a picture of `size` is brought."""
        scale = min(self.shorter_side / min(size), MAX_ASPECT * self.shorter_side / max(size))
        return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)

    def export_path(self, output_dir: str | Path, image_path: Path) -> Path:
        """Where the label PNG of a picture belongs: its path below its folder, with `.png` appended."""
        number, folder = next((n, f) for n, f in enumerate(self.folders) if f in image_path.parents)
        parts = [f"{number}_{folder.name}"] if len(self.folders) > 1 else []
        relative = image_path.relative_to(folder)
        return Path(output_dir, *parts, relative.with_name(f"{relative.name}.png"))


def _each_once(paths: Sequence[Path]) -> list[Path]:
    """The paths without those that lead to a file again, by a link or a second name."""
    found: dict[tuple[int, int], Path] = {}
    for path in paths:
        status = os.stat(path)
        found.setdefault((status.st_dev, status.st_ino), path)
    return list(found.values())
