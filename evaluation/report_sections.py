"""The parts of a run's report that every system shares: archive, pseudo-masks, curves, predictions, scores.

Each function turns plain data into one `Section` of `evaluation/report.py`. Where the truth of the index pictures is
known (the built-in world), precision and IoU are reported beside the pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol as Interface

import numpy as np

from evaluation.protocol import Protocol, shown_name
from evaluation.report import Figure, Section, Table, contact_sheet, draw_curves
from utils.drawing import colourise, outline, panel
from utils.images import read_rgb

GREEN, RED, GREY = (40, 160, 80), (210, 60, 50), (150, 150, 150)
Archive = Mapping[str, Sequence[Path]]
ReadMask = Callable[[Path, str], np.ndarray]  # (picture, category) -> its pseudo-mask, (H, W), non-zero is object


class IndexTruth(Interface):
    """What is really in the pictures of an index dataset; known for made pictures only."""

    def categories(self, path: Path) -> set[str]:
        """Names of the categories in a picture."""

    def mask(self, path: Path, category: str) -> np.ndarray:
        """All pixels of a category in a picture, bool, (H, W)."""


@dataclass(frozen=True)
class MaskScores:
    """How well pseudo-masks cover the category that their picture was retrieved for."""

    mean_iou: float
    category_iou: dict[str, float]
    num_masks: int


def retrieval_precision(archive: Archive, truth: IndexTruth) -> dict[str, float]:
    """Share of each category's pictures that show the category."""
    return {name: float(np.mean([name in truth.categories(path) for path in paths])) for name, paths in archive.items()}


def pseudo_mask_iou(archive: Archive, read_mask: ReadMask, truth: IndexTruth) -> MaskScores:
    """IoU of every correctly retrieved picture's mask with all pixels of its category.

    Args:
        archive: category -> pictures.
        read_mask: (picture, category) -> its pseudo-mask, (H, W).
        truth: of the index pictures; pictures without the category (wrongly retrieved) are not scored here.
    """
    values: dict[str, list[float]] = {}
    for name, paths in archive.items():
        values[name] = []
        for path in paths:
            if name in truth.categories(path):
                found, wanted = read_mask(path, name) > 0, truth.mask(path, name)
                values[name].append(float((found & wanted).sum() / max((found | wanted).sum(), 1)))
    flat = [value for rows in values.values() for value in rows]
    means = {name: float(np.mean(rows)) if rows else float("nan") for name, rows in values.items()}
    return MaskScores(float(np.mean(flat)) if flat else float("nan"), means, len(flat))


def archive_section(
    archive: Archive,
    masks: Mapping[str, ReadMask],
    *,
    truth: IndexTruth | None = None,
    num_shown: int = 8,
    max_categories: int = 40,
) -> Section:
    """Retrieved pictures with the outline of their pseudo-masks: per category one row of pictures for every maker.

    With a truth, borders are green (the category is in the picture) or red, and a table lists precision and IoU.

    Args:
        archive: category -> pictures.
        masks: name of a maker of pseudo-masks -> reader of its masks.
        truth: of the index pictures, where it is known.
        num_shown: pictures per category.
        max_categories: so many categories are shown.
    """
    counts = sorted(len(paths) for paths in archive.values())
    rows = f" (rows: {', '.join(masks)})" if len(masks) > 1 else ""
    paragraphs = [
        f"{len(archive)} categories with {counts[0]} to {counts[-1]} retrieved pictures each, "
        f"{len({path for paths in archive.values() for path in paths})} different ones; the best {num_shown} of each "
        f"are shown with the outline of their pseudo-mask{rows}."
    ]
    tables = []
    if truth is not None:
        tables.append(_archive_table(archive, masks, truth))
        paragraphs.append(
            "Green border: the picture shows the category. IoU is measured between the pseudo-mask and all pixels of "
            "the category, on the pictures that show it."
        )
    figures = []
    for index, (name, paths) in enumerate(list(archive.items())[:max_categories]):
        shown, borders = list(paths[:num_shown]), None
        pictures = [read_rgb(path) for path in shown]
        drawn = [
            outline(picture, read_mask(path, name) > 0, (255, 0, 200))
            for read_mask in masks.values()
            for path, picture in zip(shown, pictures, strict=True)
        ]
        if truth is not None:
            borders = [GREEN if name in truth.categories(path) else RED for path in shown] * len(masks)
        sheet = contact_sheet(drawn, columns=len(shown), borders=borders)
        figures.append(Figure(f"archive_{index:03d}", sheet, name))
    if len(archive) > max_categories:
        paragraphs.append(f"Pictures of the first {max_categories} of {len(archive)} categories are shown.")
    return Section("Retrieved pictures and pseudo-masks", paragraphs, tables, figures)


def _archive_table(archive: Archive, masks: Mapping[str, ReadMask], truth: IndexTruth) -> Table:
    """Precision of the retrieval and IoU of every maker's masks, per category and altogether."""
    precision = retrieval_precision(archive, truth)
    scores = {maker: pseudo_mask_iou(archive, read_mask, truth) for maker, read_mask in masks.items()}
    rows = [
        [name, f"{precision[name]:.3f}", *(f"{found.category_iou[name]:.3f}" for found in scores.values())]
        for name in archive
    ]
    mean = f"{np.mean(list(precision.values())):.3f}"
    rows.append(["all", mean, *(f"{found.mean_iou:.3f}" for found in scores.values())])
    heads = ["pseudo-mask IoU"] if len(masks) == 1 else [f"IoU of {maker}" for maker in masks]
    return Table(["category", "precision", *heads], rows, strong_rows=[len(rows) - 1])


def curves_section(records: Iterable[Mapping[str, float]]) -> Section:
    """Losses and scores (in per cent) of `metrics.jsonl` over iterations."""
    records = [dict(record) for record in records]
    names = {name for record in records for name in record}
    losses = sorted(name for name in names if name == "loss" or name.endswith("_loss"))
    figures = [Figure("losses", draw_curves(records, losses, title="training losses"), "losses")]
    scores = [name for name in ("mean_iou", "mean_iou_crf", "iou", "pixel_accuracy", "AP", "AP_50") if name in names]
    if scores:
        shown = [
            {"iteration": record["iteration"]}
            | {shown_name(name): 100 * record[name] for name in scores if record.get(name, -1) != -1}
            for record in records
        ]
        curves = draw_curves(shown, list(map(shown_name, scores)), title="validation scores, %")
        figures.append(Figure("scores", curves, "scores"))
    return Section("Training", (), (), figures)


@dataclass(frozen=True)
class PredictionPanel:
    """A panel of a page's predictions.

    Attributes:
        name: of the picture.
        image: RGB, uint8, (H, W, 3), of `prediction_panel`.
        parts: what its pictures are, from left to right.
        colours: label -> its name and colour, of the labels in it.
    """

    name: str
    image: np.ndarray
    parts: tuple[str, ...] = ()
    colours: Mapping[int, tuple[str, tuple[int, int, int]]] = field(default_factory=dict)


def label_colours(
    maps: Iterable[np.ndarray | None], names: Sequence[str], colours: np.ndarray
) -> dict[int, tuple[str, tuple[int, int, int]]]:
    """Names and colours of the labels in some label maps, as `PredictionPanel` has them.

    Args:
        maps: label maps; None is left out. Labels without a name are left out.
        names: of the labels.
        colours: uint8 colour of each label, (C, 3).
    """
    found = sorted({int(label) for labels in maps if labels is not None for label in np.unique(labels)})
    return {label: (names[label], tuple(map(int, colours[label]))) for label in found if 0 <= label < len(names)}


def prediction_panel(
    image: np.ndarray,
    truth: np.ndarray | None,
    predicted: np.ndarray,
    colours: np.ndarray,
    refined: np.ndarray | None = None,
) -> np.ndarray:
    """A picture, its truth (if known) and its prediction (before and after a refiner) side by side.

    Args:
        image: uint8 RGB, (h, w, 3); may be smaller than the label maps.
        truth: label map, (H, W); labels outside the colours are grey.
        predicted: label map, (H, W).
        colours: uint8 colour of each label, (C, 3).
        refined: label map, (H, W); None without a refiner.

    Returns:
        uint8 RGB, 192 pixels high.
    """
    parts = [
        image,
        *([] if truth is None else [colourise(truth, colours, default=GREY)]),
        colourise(predicted, colours),
        *([] if refined is None else [colourise(refined, colours)]),
    ]
    return panel(parts, height=192)


def predictions_section(panels: Sequence[PredictionPanel], *, title: str = "Predictions") -> Section:
    """Panels with the names of their pictures, below what their colours mean."""
    figures = [Figure(f"prediction_{index:03d}", one.image, one.name) for index, one in enumerate(panels)]
    kinds = list(dict.fromkeys(one.parts for one in panels if one.parts))
    paragraphs = [f"From left to right: {', '.join(parts)}." for parts in kinds[:1]]
    if kinds and "truth" in kinds[0]:
        paragraphs[0] += " Grey in the truth: not labelled, not scored."
    labels = {label: entry for one in panels for label, entry in one.colours.items()}
    return Section(title, paragraphs, (), figures, legend=[labels[label] for label in sorted(labels)])


def scores_section(
    rows: Mapping[str, Mapping[str, float]],
    protocol: Protocol,
    class_iou: Mapping[str, Mapping[str, float]],
    *,
    strong: str | None = None,
) -> Section:
    """Scores of one or more methods, IoU per category, and the protocol.

    Args:
        rows: method -> score name -> fraction.
        protocol: how all of them were measured.
        class_iou: method -> category -> IoU (NaN where absent).
        strong: method that is printed bold; the first if None.
    """
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores))
    body = [[method, *(_per_cent(scores.get(name)) for name in names)] for method, scores in rows.items()]
    categories = list(dict.fromkeys(name for values in class_iou.values() for name in values))
    per_class = [[name, *(_per_cent(values.get(name)) for values in class_iou.values())] for name in categories]
    tables = [
        Table(
            ["method, scores in %", *map(shown_name, names)],
            body,
            strong_rows=[0 if strong is None else list(rows).index(strong)],
        ),
        Table(["IoU per category, %", *class_iou], per_class),
        Table(["protocol", ""], [[name, text] for name, text in protocol.rows()]),
    ]
    return Section("Scores", (), tables, ())


def _per_cent(value: float | None) -> str:
    return "-" if value is None or value != value or value == -1 else f"{100 * value:.1f}"
