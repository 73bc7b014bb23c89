"""The report of a training run: scores, curves, predictions, retrieved pictures with their masks.

The page's parts are in `evaluation/report_sections.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.report import Section, Table, write_report
from evaluation.report_sections import (
    IndexTruth,
    ReadMask,
    archive_section,
    curves_section,
    predictions_section,
)
from systems.evaluation_pictures import last_panels
from systems.stages import Archive
from training.metric_log import read_metrics
from training.run_folder import RunFolder
from utils.files import read_json
from utils.log import get_logger

logger = get_logger(__name__)


def write_training_report(
    run: RunFolder,
    archive: Archive,
    masks: Mapping[str, ReadMask],
    *,
    title: str,
    subtitle: str = "",
    truth: IndexTruth | None = None,
    first_sections: Sequence[Section] = (),
    page: Path | None = None,
) -> None:
    """Write the report of a run.

    Args:
        run: the run folder; whatever it holds already is shown.
        archive: category -> retrieved pictures.
        masks: name of a maker of pseudo-masks ("SelfMask", "experts") -> reader of its masks.
        title: heading.
        subtitle: below the heading.
        truth: of the index pictures, where it is known.
        first_sections: shown in place of the run's own scores.
        page: the file; None: `report.html` in the run folder.
    """
    sections = list(first_sections) or score_sections(run)
    sections.append(curves_section(read_metrics(run.metrics_path)))
    panels = last_panels(run)
    if panels:
        sections.append(predictions_section(panels))
    sections.append(archive_section(archive, masks, truth=truth))
    page = page or run.report_path
    write_report(page, title=title, subtitle=subtitle, sections=sections)
    logger.info("report: %s", page)


def score_sections(run: RunFolder) -> list[Section]:
    """The last evaluation's scores, IoU per category and protocol."""
    path = run.path / "results.json"
    if not path.is_file():
        return []
    results = read_json(path)
    scores = [[name, f"{100 * value:.2f}" if value != -1 else "-"] for name, value in results["scores"].items()]
    tables = [Table(["score", "%"], scores)]
    if "class_iou" in results:
        columns = [results[key] for key in results if key.startswith("class_iou")]  # before and after a refiner
        heads = ["IoU %", *(f"{key.removeprefix('class_iou_')}, %" for key in results if key.startswith("class_iou_"))]
        rows = [[name, *(_shown(column[name]) for column in columns)] for name in results["class_iou"]]
        tables.append(Table(["category", *heads], rows))
    protocol = [[name, str(value)] for name, value in results["protocol"].items() if name != "category_names"]
    return [Section("Scores", (), [*tables, Table(["protocol", ""], protocol)])]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
