"""A first look at pseudo-masks while a long run goes on: the first few, drawn over their pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from pseudo_labels.picture_stream import MaskJob
from pseudo_labels.store import read_mask
from utils.drawing import overlay, palette, panel
from utils.files import atomic_write
from utils.images import read_rgb
from utils.log import get_logger

logger = get_logger(__name__)
_PANEL_HEIGHT = 240


class MaskPreview:
    """Draws the first few masks over their pictures, once.

    Args:
        path: PNG to write; None for no preview.
        wanted: masks to wait for.
    """

    def __init__(self, path: str | Path | None, wanted: int) -> None:
        self.path, self.wanted = path, wanted
        self.jobs: list[MaskJob] = []

    def add(self, job: MaskJob) -> None:
        """Note a finished mask; the preview is written when enough are there."""
        if self.path is not None and len(self.jobs) < self.wanted:
            self.jobs.append(job)
            if len(self.jobs) == self.wanted:
                self.write()

    def write(self) -> None:
        """Write what is there, if it has not been written yet."""
        if self.path is None or not self.jobs:
            return
        drawn = []
        for job in self.jobs:
            image = read_rgb(job.image_path)
            mask = read_mask(job.mask_path, image.shape[:2])
            drawn.append(overlay(image, mask.astype(np.int64), palette(2)))
        with atomic_write(self.path) as file:
            Image.fromarray(panel(drawn, height=_PANEL_HEIGHT)).save(file, format="PNG")
        logger.info("preview of the first %d pseudo-masks: %s", len(drawn), self.path)
        self.path = None
