"""The report of a training run: scores, curves, predictions, retrieved pictures with their masks.

The page's parts are in `evaluation/report_sections.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.protocol import Protocol, shown_name
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
    return results_sections({"": run.path / "results.json"})


def results_sections(files: Mapping[str, Path], *, title: str = "Scores") -> list[Section]:
    """Scores, IoU per category and protocol of results files side by side; no section if there is no file.

    Args:
        files: method -> file; the name of a single one is not shown.
        title: of the section.
    """
    results = {method: read_json(path) for method, path in files.items() if path.is_file()}
    if not results:
        return []
    heads = list(results) if len(results) > 1 else [""]
    scores = [[shown_name(name), *cells] for name, cells in _rows([found["scores"] for found in results.values()], 2)]
    tables = [Table(["score", *(_head(head) for head in heads)], scores)]
    columns = {
        ", ".join(part for part in (head, key.removeprefix("class_iou").lstrip("_").upper()) if part): found[key]
        for head, found in zip(heads, results.values(), strict=True)
        for key in sorted(found)  # without a refiner first
        if key.startswith("class_iou")
    }
    if columns:
        rows = [[name, *cells] for name, cells in _rows(list(columns.values()), 1)]
        tables.append(Table(["category, IoU", *(_head(head) for head in columns)], rows))
    told = [dict(Protocol.from_dict(found["protocol"]).rows()) for found in results.values()]
    names = dict.fromkeys(name for facts in told for name in facts)
    protocol = [[name, *(facts.get(name, "-") for facts in told)] for name in names]
    tables.append(Table(["protocol", *heads], protocol, of_texts=True))
    return [Section(title, (), tables)]


def _rows(columns: Sequence[Mapping[str, float | None]], digits: int) -> list[tuple[str, list[str]]]:
    """Fractions of several columns by name, as cells in per cent."""
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [_shown(column.get(name), digits) for column in columns]) for name in names]


def _head(name: str) -> str:
    return f"{name}, %" if name else "%"


def _shown(value: float | None, digits: int) -> str:
    return "-" if value is None or value != value or value == -1 else f"{100 * value:.{digits}f}"
