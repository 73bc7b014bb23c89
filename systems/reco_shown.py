"""A few pictures for the report of runs that are not scored: what ReCo or ReCo+ makes of them.

They are small, few and drawn last, so they cost seconds; whatever is wrong with them is told and the run goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from datasets.label_files import read_index_png
from evaluation.report_sections import PredictionPanel, label_colours, prediction_panel
from pseudo_labels.reference_building import needed_categories
from pseudo_labels.references import References
from systems import reco_places, stages
from systems.deeplab import read_deeplab
from systems.evaluation_pictures import PICTURE, PREDICTION, REFINED, TRUTH, write_panel
from systems.reco_labels import LabelFolder
from systems.reco_predict import (
    CrfRefiner,
    PixelSegmenter,
    RecoPlusSegmenter,
    make_refiner,
    segment_stream,
)
from systems.reco_references import RecoNetworks, index_settings, reference_settings
from systems.reco_stages import make_segmenter
from training.labelled_pictures import LabelledPictures
from training.run_folder import RunFolder
from utils.drawing import palette
from utils.errors import UserError
from utils.images import list_pictures, read_picture, shrink_to
from utils.log import get_logger
from utils.settings import RecoSettings
from utils.settings_reco import CRF_FOLDER, PLAIN_FOLDER
from utils.spread import spread_rows

logger = get_logger(__name__)
NUM_SHOWN, LONG_EDGE = 8, 512  # pictures, and pixels of their longer side
KINDS = {PLAIN_FOLDER: "label PNG", CRF_FOLDER: "label PNG with CRF"}
LEARNT = "label that it learnt from"
T, R = TypeVar("T"), TypeVar("R")
Shown = tuple[str, np.ndarray, np.ndarray | None]  # name, picture (H, W, 3), and its label (H, W) where there is one


def show_references(settings: RecoSettings, networks: RecoNetworks, references: References, run: RunFolder) -> None:
    """Segment some of the user's pictures by a run's names; the panels go to the run's pictures."""
    names = list(references.names)

    def draw() -> None:
        segmenter, refiner = make_segmenter(settings, networks, references)
        pictures = _readable(pictures_of(settings), _read_small)
        panels = _segment(pictures, segmenter, refiner, names, palette(len(names) + 1)[1:])
        _write(panels, run.pictures_dir)

    _go_on(draw)


def show_training(settings: RecoSettings, samples: LabelledPictures, device: torch.device, run: RunFolder) -> None:
    """Some pictures that ReCo+ learnt from: with their labels, and as it sees them now (with the CRF)."""

    def read(row: int) -> Shown:
        return samples.image_paths[row].name, *samples.read_pair(row)

    def draw() -> None:
        stored = read_deeplab(run.final_model_path)
        segmenter = RecoPlusSegmenter(stored.network.to(device), device, settings.precision)
        pictures = _readable(spread(range(len(samples))), read)
        names, colours = samples.pictures.category_names, samples.pictures.palette
        panels = _segment(pictures, segmenter, make_refiner(settings, device), names, colours)
        _write(panels, run.pictures_dir / f"{settings.num_iterations:06d}")

    _go_on(draw)


def show_labels(folder: LabelFolder, run: RunFolder, *, num_pictures: int | None = None) -> None:
    """Some pictures with the label PNGs that ReCo left for them, and with their truth where there is one.

    Args:
        folder: of the PNGs.
        run: the panels go to its pictures.
        num_pictures: only the first so many have PNGs; None: all.
    """
    pictures = folder.pictures
    total = len(pictures) if num_pictures is None else min(num_pictures, len(pictures))

    def panel_of(row: int) -> PredictionPanel:
        item, path = pictures[row], pictures.image_paths[row]
        maps = {kind: read_index_png(folder.file(kind, path)) for kind in folder.kinds}
        plain, refined = maps.get(PLAIN_FOLDER), maps.get(CRF_FOLDER)
        first, second = (refined, None) if plain is None else (plain, refined)
        drawn = prediction_panel(item.image, item.label, first, pictures.palette, second)
        parts = (PICTURE, *[TRUTH] * (item.label is not None), *(KINDS[kind] for kind in maps))
        colours = label_colours((item.label, *maps.values()), pictures.category_names, pictures.palette)
        return PredictionPanel(path.name, drawn, parts, colours)

    _go_on(lambda: _write(_readable(spread(range(total)), panel_of), run.pictures_dir))


def pictures_of(settings: RecoSettings) -> Iterator[Path]:
    """Pictures of a run without a benchmark, the best candidates first, as many as there are.

    Those that the settings give to be labelled, else retrieved ones: of each name in turn, each once.
    """
    if settings.picture_dirs:
        yield from spread(list_pictures(settings.picture_dirs))
        return
    names = reco_places.category_names(settings)
    needed = needed_categories(names, reference_settings(settings))
    found = stages.preview_archive(index_settings(settings), needed, RunFolder(reco_places.shared_path(settings)))
    archive = found or {}  # references of a file need none
    in_turn = chain.from_iterable(zip_longest(*(archive.get(name, ()) for name in names)))
    yield from dict.fromkeys(path for path in in_turn if path is not None)


def spread(items: Sequence[T]) -> list[T]:
    """The items, some that are evenly spread over them first."""
    rows = spread_rows(len(items), NUM_SHOWN)
    chosen = set(rows)
    return [items[row] for row in (*rows, *(row for row in range(len(items)) if row not in chosen))]


def _read_small(path: Path) -> Shown:
    return path.name, shrink_to(read_picture(path), LONG_EDGE), None


def _readable(items: Iterable[T], read: Callable[[T], R]) -> Iterator[R]:
    """The first so many that can be read."""

    def each() -> Iterator[R]:
        for item in items:
            try:
                yield read(item)
            except UserError as error:  # told by the stage that needed it
                logger.debug("not shown: %s", error)

    yield from islice(each(), NUM_SHOWN)


def _segment(
    pictures: Iterable[Shown],
    segmenter: PixelSegmenter,
    refiner: CrfRefiner | None,
    names: Sequence[str],
    colours: np.ndarray,
) -> Iterator[PredictionPanel]:
    """Panels of pictures, their labels, and what the segmenter sees in them."""
    under_way: deque[Shown] = deque()

    def take() -> Iterator[np.ndarray]:
        for shown in pictures:
            under_way.append(shown)
            yield shown[1]

    for found in segment_stream(segmenter, refiner, take(), long_edge=LONG_EDGE):
        (name, image, label), predicted = under_way.popleft(), found.labels - 1  # they count from 1
        drawn = prediction_panel(image, label, predicted, colours)
        parts = (PICTURE, *[LEARNT] * (label is not None), PREDICTION if refiner is None else REFINED)
        yield PredictionPanel(name, drawn, parts, label_colours((label, predicted), names, colours))


def _write(panels: Iterable[PredictionPanel], folder: Path) -> None:
    """Replace the panels in a folder by others."""
    made = list(panels)
    for path in folder.glob(f"{'[0-9]' * 6}_*.png"):
        path.unlink(missing_ok=True)
    for number, panel in enumerate(made):
        write_panel(folder, number, panel)


def _go_on(draw: Callable[[], None]) -> None:
    """Draw; the run is finished without its pictures as well."""
    try:
        draw()
    except UserError as error:
        logger.warning("no pictures of predictions in the report: %s", error)
