"""The report of a run: one HTML page with its pictures beside it.

What a section shows is put together by the system that ran (it knows its stages); this module knows only tables,
figures and how to write them. Pictures are drawn with `utils/drawing.py`, curves here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from PIL import Image

from utils.files import atomic_write

TEMPLATE_PATH = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Table:
    """Rows of already formatted cells; `strong_rows` are printed bold. Texts, unlike numbers, are wrapped."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong_rows: Sequence[int] = ()
    of_texts: bool = False


@dataclass(frozen=True)
class Figure:
    """One picture of the report: uint8 RGB, shape (H, W, 3), stored as `<name>.png`."""

    name: str
    image: np.ndarray
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, tables, the meaning of colours (RGB) and figures, shown in that order."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = field(default_factory=list)
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()


def write_report(path: Path, *, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Write the page to `path` and its pictures into the folder `<stem>_pictures` beside it.

    Args:
        path: the HTML file; replaced atomically, after its pictures are complete.
        title: heading of the page.
        subtitle: one sentence below it.
        sections: shown in order; figure names must be unique over all sections.

    Raises:
        ValueError: if two figures share a name.
        UserError: if a file cannot be written.
    """
    names = [figure.name for section in sections for figure in section.figures]
    if len(set(names)) != len(names):
        raise ValueError(f"figures share a name: {sorted({name for name in names if names.count(name) > 1})}")
    folder = path.with_name(f"{path.stem}_pictures")
    page_sections = []
    for section in sections:
        sources = []
        for figure in section.figures:
            with atomic_write(folder / f"{figure.name}.png") as file:
                Image.fromarray(figure.image).save(file, format="PNG")
            sources.append({"source": quote(f"{folder.name}/{figure.name}.png"), "caption": figure.caption})
        page_sections.append(
            {
                "title": section.title,
                "paragraphs": section.paragraphs,
                "tables": section.tables,
                "figures": sources,
                "legend": [{"name": name, "colour": f"rgb{tuple(colour)}"} for name, colour in section.legend],
            }
        )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE_PATH.read_text(encoding="utf-8"))
    page = template.render(title=title, subtitle=subtitle, sections=page_sections)
    with atomic_write(path) as file:
        file.write(page.encode("utf-8"))


def draw_curves(records: Iterable[dict[str, float]], names: Sequence[str], *, title: str) -> np.ndarray:
    """Draw values of `metrics.jsonl` over iterations.

    Args:
        records: parsed lines with `iteration` and any other numbers; a line without a name is skipped for it.
        names: which values to draw, one curve each; names that never occur are left out.
        title: heading of the figure.

    Returns:
        uint8 RGB picture, shape (H, W, 3).
    """
    # Figure and canvas are used directly: no pyplot state, no display, safe in worker threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Plot

    records = list(records)
    plot = Plot(figsize=(8, 3), dpi=110)
    canvas = FigureCanvasAgg(plot)
    axes = plot.add_subplot()
    for name in names:
        points = [(record["iteration"], record[name]) for record in records if record.get(name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
    axes.set_title(title)
    axes.set_xlabel("iteration")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    plot.tight_layout()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def contact_sheet(
    images: Sequence[np.ndarray],
    *,
    columns: int = 8,
    cell: int = 128,
    borders: Sequence[tuple[int, int, int] | None] | None = None,
) -> np.ndarray:
    """Arrange pictures of any size in a grid of square cells.

    Args:
        images: uint8 RGB pictures, each (H, W, 3); shrunk or enlarged to fit, aspect ratio kept.
        columns: pictures per row.
        cell: side of a cell in pixels, border included.
        borders: RGB colour of each picture's 3-pixel border, None for no border.

    Returns:
        uint8 RGB, shape (rows · cell, columns · cell, 3), white where empty; one empty row for no pictures.
    """
    rows = max(1, -(-len(images) // columns))
    sheet = np.full((rows * cell, min(columns, max(len(images), 1)) * cell, 3), 255, np.uint8)
    for position, image in enumerate(images):
        colour = borders[position] if borders else None
        top, left = (position // columns) * cell, (position % columns) * cell
        if colour is not None:
            sheet[top + 1 : top + cell - 1, left + 1 : left + cell - 1] = colour
        height, width = image.shape[:2]
        scale = (cell - 8) / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        y, x = top + (cell - size[1]) // 2, left + (cell - size[0]) // 2
        sheet[y : y + size[1], x : x + size[0]] = small
    return sheet
