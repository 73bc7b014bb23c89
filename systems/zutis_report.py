"""Pictures and the report of a ZUTIS run. The page's parts are in `evaluation/report_sections.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.base import Benchmark, EvaluationItem
from evaluation.evaluate import Prediction
from evaluation.report import Section, Table, write_report
from evaluation.report_sections import (
    IndexTruth,
    archive_section,
    curves_section,
    prediction_panel,
    predictions_section,
)
from systems.stages import Archive, MaskStore
from training.metric_log import read_metrics
from training.run_folder import RunFolder
from utils.files import atomic_write, read_json
from utils.log import get_logger
from utils.settings import ZutisSettings

logger = get_logger(__name__)
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
        drawn = prediction_panel(item.image, item.label, prediction.labels.cpu().numpy(), self.colours)
        with atomic_write(self.folder / f"{row:06d}_{item.path.stem}.png") as file:
            Image.fromarray(drawn).save(file, format="PNG")


def write_training_report(
    settings: ZutisSettings,
    names: Sequence[str],
    run: RunFolder,
    archive: Archive,
    masks: MaskStore,
    *,
    truth: IndexTruth | None = None,
    first_sections: Sequence[Section] = (),
    page: Path | None = None,
    title: str | None = None,
) -> None:
    """Write the report of a run: scores, curves, predictions, retrieved pictures with their masks.

    Args:
        settings: of the run.
        names: categories, background first.
        run: the run folder; whatever it holds already is shown.
        archive: category -> retrieved pictures.
        masks: their pseudo-masks.
        truth: of the index pictures, where it is known.
        first_sections: shown in place of the run's own scores.
        page: the file; None: `report.html` in the run folder.
        title: heading; None: system and benchmark.
    """
    records = read_metrics(run.metrics_path)
    sections = list(first_sections) or _score_sections(run)
    sections.append(curves_section(records))
    panels = last_panels(run)
    if panels:
        sections.append(predictions_section(panels))
    sections.append(archive_section(archive, masks.read, truth=truth))
    page = page or run.report_path
    write_report(
        page,
        title=title or f"ZUTIS: {settings.dataset_name or 'your own categories'}",
        subtitle=f"{len(names) - 1} categories, {settings.clip_arch}, {settings.num_iterations} iterations",
        sections=sections,
    )
    logger.info("report: %s", page)


def last_panels(run: RunFolder) -> list[np.ndarray]:
    """Panels of the run's last evaluation, uint8 RGB; empty if there was none."""
    folders = sorted(folder for folder in run.pictures_dir.glob("*") if folder.is_dir())
    return (
        [np.asarray(Image.open(path).convert("RGB")) for path in sorted(folders[-1].glob("*.png"))] if folders else []
    )


def _score_sections(run: RunFolder) -> list[Section]:
    """The last evaluation's scores, IoU per category and protocol."""
    path = run.path / "results.json"
    if not path.is_file():
        return []
    results = read_json(path)
    scores = [[name, f"{100 * value:.2f}" if value != -1 else "-"] for name, value in results["scores"].items()]
    tables = [Table(["score", "%"], scores)]
    if "class_iou" in results:
        per_class = results["class_iou"].items()
        tables.append(Table(["category", "IoU %"], [[n, "-" if v is None else f"{100 * v:.1f}"] for n, v in per_class]))
    protocol = [[name, str(value)] for name, value in results["protocol"].items() if name != "category_names"]
    return [Section("Scores", (), [*tables, Table(["protocol", ""], protocol)])]
