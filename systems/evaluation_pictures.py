"""Panels of some pictures, drawn while they are predicted: picture, truth, prediction. What they show lies in them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from datasets.base import Benchmark, EvaluationItem
from evaluation.evaluate import Prediction
from evaluation.report_sections import PredictionPanel, label_colours, prediction_panel
from training.run_folder import RunFolder
from utils.annotated_png import read_annotated, write_annotated
from utils.errors import UnreadableImageError
from utils.spread import spread_rows

NUM_PICTURES = 12
PICTURE, TRUTH, PREDICTION, REFINED = "picture", "truth", "prediction", "prediction with CRF"
_NAME, _PARTS, _COLOURS = "name", "parts", "colours"  # texts in a panel


class EvaluationPictures:
    """Draws some pictures of a benchmark, evenly spread over it, while it is evaluated.

    Args:
        folder: where `<number>_<stem>.png` go.
        benchmark: the reader.
        number: how many pictures are drawn.
    """

    def __init__(self, folder: Path, benchmark: Benchmark, number: int = NUM_PICTURES) -> None:
        self.folder, self.colours, self.names = folder, benchmark.palette, benchmark.category_names
        self.chosen = {benchmark.image_paths[row]: row for row in spread_rows(len(benchmark), number)}

    def add(self, item: EvaluationItem, prediction: Prediction) -> None:
        """Write the panel of a picture, if it is one of the chosen."""
        row = self.chosen.get(item.path)
        if row is None or prediction.labels is None:
            return
        refined = None if prediction.refined is None else prediction.refined.numpy()
        labels = prediction.labels.cpu().numpy()
        drawn = prediction_panel(item.image, item.label, labels, self.colours, refined)
        parts = (PICTURE, *[TRUTH] * (item.label is not None), PREDICTION, *[REFINED] * (refined is not None))
        colours = label_colours((item.label, labels, refined), self.names, self.colours)
        write_panel(self.folder, row, PredictionPanel(item.path.name, drawn, parts, colours))


def write_panel(folder: Path, number: int, panel: PredictionPanel) -> None:
    """Write a panel as `<number>_<stem of the picture>.png`, with what it shows."""
    texts = {_NAME: panel.name, _PARTS: json.dumps(panel.parts), _COLOURS: json.dumps(list(panel.colours.items()))}
    write_annotated(folder / f"{number:06d}_{Path(panel.name).stem}.png", panel.image, texts)


def read_panel(path: Path) -> PredictionPanel:
    """A panel; one that does not say what it shows is called after its file.

    Raises:
        UnreadableImageError: if it cannot be read.
    """
    image, texts = read_annotated(path)
    colours = {label: (name, tuple(colour)) for label, (name, colour) in json.loads(texts.get(_COLOURS, "[]"))}
    name = texts.get(_NAME) or path.stem.partition("_")[2]
    return PredictionPanel(name, image, tuple(json.loads(texts.get(_PARTS, "[]"))), colours)


def last_panels(run: RunFolder, *, of_training: bool | None = None) -> list[PredictionPanel]:
    """Panels of the run's last evaluation; empty if there was none, without those that cannot be read.

    Args:
        run: the run folder.
        of_training: only those that training left, or only others; None: training's if there are any.
    """
    folders = sorted(folder for folder in run.pictures_dir.glob("*") if folder.is_dir())
    if of_training and not folders:
        return []
    folder = folders[-1] if folders and of_training is not False else run.pictures_dir
    panels = []
    for path in sorted(folder.glob(f"{'[0-9]' * 6}_*.png")):
        with contextlib.suppress(UnreadableImageError):
            panels.append(read_panel(path))
    return panels
