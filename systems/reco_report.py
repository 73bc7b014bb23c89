"""ReCo's pictures and pages: what co-segmentation found in retrieved pictures, and the report of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from evaluation.report import Figure, Section, write_report
from evaluation.report_sections import curves_section, predictions_section
from pseudo_labels.cosegmentation import Cosegmentation
from systems.evaluation_pictures import last_panels
from systems.run_report import score_sections
from training.metric_log import read_metrics
from training.run_folder import RunFolder
from utils.drawing import outline, panel
from utils.files import atomic_write
from utils.log import get_logger
from utils.naming import category_file_name

logger = get_logger(__name__)
NUM_SHOWN = 5
SEED_COLOUR = (255, 0, 200)


@dataclass(frozen=True)
class SeedPictures:
    """Draws the first pictures of every category: their seeds, and how much every place counts as a match.

    Attributes:
        folder: where `coseg_<category>.png` go, as in the release.
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
        with atomic_write(self.folder / f"coseg_{category_file_name(name)}.png", sync=False) as file:
            Image.fromarray(panel(drawn)).save(file, format="PNG")


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


def write_reco_report(run: RunFolder, seed_dir: Path | None, *, title: str, subtitle: str) -> None:
    """Write the report of a run: scores, curves, predictions, co-segmented pictures; whatever there is.

    Args:
        run: the run folder.
        seed_dir: folder of the drawings of `SeedPictures`; None: nothing was co-segmented.
        title: heading.
        subtitle: below the heading.
    """
    sections = score_sections(run)
    if run.metrics_path.is_file():
        sections.append(curves_section(read_metrics(run.metrics_path)))
    if panels := last_panels(run):
        sections.append(predictions_section(panels))
    if seed_dir is not None and (seeds := seed_section(seed_dir)) is not None:
        sections.append(seeds)
    if sections:
        write_report(run.report_path, title=title, subtitle=subtitle, sections=sections)
        logger.info("report: %s", run.report_path)


def seed_section(seed_dir: Path) -> Section | None:
    """The drawings of `SeedPictures` in a folder; None if there are none."""
    figures = [
        Figure(path.stem, np.asarray(Image.open(path).convert("RGB")), path.stem.removeprefix("coseg_"))
        for path in sorted(seed_dir.glob("coseg_*.png"))
    ]
    if not figures:
        return None
    text = (
        f"The {NUM_SHOWN} best pictures of each category. The outlined place finds its like in all of the category's "
        "pictures; dark places count less, because they fit the name less or show what is everywhere."
    )
    return Section("Retrieved pictures and what they have in common", (text,), (), figures)
