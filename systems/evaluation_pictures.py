"""Panels of some pictures of a benchmark, drawn while it is evaluated: picture, truth, prediction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from datasets.base import Benchmark, EvaluationItem
from evaluation.evaluate import Prediction
from evaluation.report_sections import prediction_panel
from training.run_folder import RunFolder
from utils.files import atomic_write

NUM_PICTURES = 12


class EvaluationPictures:
    """Draws some pictures of a benchmark, evenly spread over it, while it is evaluated.

    Args:
        folder: where `<number>_<stem>.png` go.
        benchmark: the reader.
        number: how many pictures are drawn.
    """

    def __init__(self, folder: Path, benchmark: Benchmark, number: int = NUM_PICTURES) -> None:
        self.folder, self.colours = folder, benchmark.palette
        rows = np.unique(np.linspace(0, len(benchmark) - 1, min(number, len(benchmark))).astype(int))
        self.chosen = {benchmark.image_paths[row]: row for row in rows}

    def add(self, item: EvaluationItem, prediction: Prediction) -> None:
        """Write the panel of a picture, if it is one of the chosen."""
        row = self.chosen.get(item.path)
        if row is None or prediction.labels is None:
            return
        refined = None if prediction.refined is None else prediction.refined.numpy()
        drawn = prediction_panel(item.image, item.label, prediction.labels.cpu().numpy(), self.colours, refined)
        with atomic_write(self.folder / f"{row:06d}_{item.path.stem}.png") as file:
            Image.fromarray(drawn).save(file, format="PNG")


def last_panels(run: RunFolder) -> list[np.ndarray]:
    """Panels of the run's last evaluation, uint8 RGB; empty if there was none."""
    folders = sorted(folder for folder in run.pictures_dir.glob("*") if folder.is_dir())
    folder = folders[-1] if folders else run.pictures_dir  # of an evaluation without training
    return [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.glob(f"{'[0-9]' * 6}_*.png"))]
