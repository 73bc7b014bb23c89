"""ReCo's pictures and pages: what co-segmentation found in retrieved pictures, and the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from evaluation.report import Figure, Section, write_report
from evaluation.report_sections import curves_section, predictions_section
from pseudo_labels.cosegmentation import Cosegmentation
from pseudo_labels.reference_building import SYNONYMS
from systems import reco_places
from systems.evaluation_pictures import last_panels
from systems.reco_results import LABEL_RESULTS, results_files
from systems.run_report import results_sections
from training.metric_log import read_metrics
from training.run_folder import RunFolder
from utils.annotated_png import read_annotated, read_texts, write_annotated
from utils.drawing import outline, panel
from utils.errors import UnreadableImageError
from utils.log import get_logger
from utils.naming import category_file_name, category_file_name_with_digest
from utils.settings import RecoSettings

logger = get_logger(__name__)
NUM_SHOWN = 5
SEED_COLOUR = (255, 0, 200)
CATEGORY, NUM_DRAWN, NUM_PICTURES = "category", "drawn", "pictures"  # texts in a drawing


@dataclass(frozen=True)
class SeedPictures:
    """Draws the first pictures of every category: their seeds, and how much every place counts as a match.

    Attributes:
        folder: where `coseg_<category>.png` go, as in the release. The category's name lies in the file.
    """

    folder: Path

    def __call__(self, name: str, pictures: Tensor, found: Cosegmentation) -> None:
        """Write the drawing of one category.

        Args:
            name: of the category.
            pictures: (k, 3, S, S), uint8.
            found: what co-segmentation found in them.
        """
        weights, seeds = found.weights[:NUM_SHOWN].cpu().numpy(), found.seeds[:NUM_SHOWN].tolist()
        images = pictures[:NUM_SHOWN].permute(0, 2, 3, 1).numpy()  # (k, 3, S, S) -> (k, S, S, 3)
        drawn = [draw_seed(*parts) for parts in zip(images, weights, seeds, strict=True)]
        texts = {CATEGORY: name, NUM_DRAWN: str(len(drawn)), NUM_PICTURES: str(len(pictures))}
        write_annotated(self._path(name), panel(drawn), texts)

    def _path(self, name: str) -> Path:
        """The category's file; one with a digest where another category has the release's name for it."""
        path = self.folder / f"coseg_{category_file_name(name)}.png"
        if read_texts(path).get(CATEGORY, name) == name:
            return path
        return self.folder / f"coseg_{category_file_name_with_digest(name)}.png"


def draw_seed(image: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    """A picture, darker where places count less, with its seed outlined.

    Args:
        image: RGB, uint8, (S, S, 3).
        weights: of the places, (h, w), in [0, 1].
        seed: row-major index of the place that was chosen.
    """
    (height, width), (rows, columns) = image.shape[:2], weights.shape
    light = cv2.resize(weights.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    light = 0.35 + 0.65 * light / max(float(light.max()), 1e-6)
    row, column = divmod(seed, columns)
    is_seed = np.zeros((height, width), bool)
    is_seed[
        row * height // rows : (row + 1) * height // rows, column * width // columns : (column + 1) * width // columns
    ] = True
    return outline((image * light[..., None]).astype(np.uint8), is_seed, SEED_COLOUR)


def write_reco_report(run: RunFolder, settings: RecoSettings, *, title: str, subtitle: str) -> None:
    """Write the report of a run: scores, curves, predictions, co-segmented pictures; whatever there is.

    Scores of all methods that were scored in the folder stand side by side.

    Args:
        run: the run folder.
        settings: of the run.
        title: heading.
        subtitle: below the heading.
    """
    sections = results_sections(results_files(run))
    sections += results_sections({"": run.path / LABEL_RESULTS}, title="Label PNGs, compared with the truth")
    if run.metrics_path.is_file():
        sections.append(curves_section(read_metrics(run.metrics_path)))
    if panels := last_panels(run, of_training=settings.trains):
        sections.append(predictions_section(panels))
    if settings.uses_references and (seeds := drawings_section(settings)) is not None:
        sections.append(seeds)
    if sections:
        write_report(run.report_path, title=title, subtitle=subtitle, sections=sections)
        logger.info("report: %s", run.report_path)


def drawings_section(settings: RecoSettings) -> Section | None:
    """What a run's references were made of; None if nothing was drawn."""
    names = reco_places.category_names(settings)
    context = settings.context_categories if settings.context_elimination else ()
    return seed_section(reco_places.seed_pictures(settings), names, context)


def seed_section(seed_dir: Path, names: Sequence[str], context: Sequence[str] = ()) -> Section | None:
    """The drawings of `SeedPictures` in a folder; None if there are none.

    Args:
        seed_dir: the folder.
        names: that ReCo looked for; they come first, in this order.
        context: categories that were eliminated; they come after them. Drawings of other names, which an earlier run
            had, are left out.
    """
    drawings = _read_drawings(seed_dir, [*names, *context])
    # A name of the same meaning as one of the context has its reference, and so its pictures.
    drawn_as = {name: name if name in drawings else SYNONYMS.get(name, name) for name in names}
    captions = {name: name if name == known else f"{name} (drawn as {known})" for name, known in drawn_as.items()}
    around = [name for name in context if name not in drawn_as.values()]
    captions |= {name: f"{name} (context)" for name in around}
    drawn_as |= {name: name for name in around}
    shown_names = [name for name in captions if drawn_as[name] in drawings]
    if not shown_names:
        return None
    figures = []
    for number, name in enumerate(shown_names):
        image, texts = drawings[drawn_as[name]]
        of_all = _count(texts.get(NUM_DRAWN), texts.get(NUM_PICTURES))
        figures.append(Figure(f"coseg_{number:03d}", image, f"{captions[name]}{of_all}"))
    text = (
        f"The best pictures of each category, {NUM_SHOWN} at most. The outlined place finds its like in all of the "
        "category's pictures; dark places count less, because they fit the name less or show what is everywhere."
    )
    if set(around) & set(shown_names):
        text += " Categories of the context are none of the run's names: places that look like them count less."
    return Section("Retrieved pictures and what they have in common", (text,), (), figures)


def _count(shown: str | None, total: str | None) -> str:
    """How many pictures a drawing shows, where it says so."""
    if shown is None:
        return ""
    return f": {shown} of {total} pictures" if shown != total else f": {shown} picture{'s' * (shown != '1')}"


def _read_drawings(seed_dir: Path, names: Sequence[str]) -> dict[str, tuple[np.ndarray, dict[str, str]]]:
    """Drawings and their texts by category; one that does not say its category is called after its file."""
    known = {f"coseg_{category_file_name(name)}": name for name in names}
    drawings = {}
    for path in sorted(seed_dir.glob("coseg_*.png")):
        try:
            image, texts = read_annotated(path)
        except UnreadableImageError as error:
            logger.warning("not in the report: %s", error)
            continue
        drawings[texts.get(CATEGORY) or known.get(path.stem) or path.stem.removeprefix("coseg_")] = (image, texts)
    return drawings
