"""What the demonstrations share: the world, its truth, the clock, and short scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from datasets.shapes.world import World, make_world, read_truth
from evaluation.report_sections import IndexTruth
from pseudo_labels.rle import decode
from utils.log import format_seconds, get_logger

logger = get_logger("demo")
CONFIGS = Path(__file__).parents[2] / "configs"
NUM_INDEX, NUM_VALIDATION, IMAGE_SIZE = 3000, 500, 160  # pictures of each index dataset, of the benchmark, side
SHORT_NAMES = {"mean_iou": "miou", "pixel_accuracy": "pixel_accuracy", "AP": "ap", "AP_50": "ap50", "AP_75": "ap75"}
SHORT_NAMES |= {"mean_iou_crf": "miou_crf", "pixel_accuracy_crf": "pixel_accuracy_crf"}


@dataclass
class Stopwatch:
    """Seconds of every stage, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and say that it begins."""
        logger.info("--- %s", name)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)

    def summary(self) -> str:
        """Seconds altogether and of every stage, in one line."""
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in self.seconds.items())
        return f"{format_seconds(sum(self.seconds.values()))} altogether ({parts})"


class WorldTruth(IndexTruth):
    """What the index pictures of a made world show."""

    def __init__(self, world: World) -> None:
        self._things = {**read_truth(world, "ImageNet2012"), **read_truth(world, "pass")}

    def categories(self, path: Path) -> set[str]:
        """Names of the categories in a picture."""
        return {thing["category"] for thing in self._things[path.name]}

    def mask(self, path: Path, category: str) -> np.ndarray:
        """All pixels of a category in a picture, bool, (H, W)."""
        things = [thing for thing in self._things[path.name] if thing["category"] == category]
        return np.any([decode(thing) for thing in things], axis=0)

    @cached_property
    def category_shares(self) -> dict[str, float]:
        """Share of all pictures that show a category: the precision of a random choice."""
        names = [{thing["category"] for thing in things} for things in self._things.values()]
        return {name: float(np.mean([name in found for found in names])) for name in set().union(*names)}


def make_demo_world(output_dir: Path) -> World:
    """The pictures of the demonstrations of things, made once."""
    sizes = {"num_imagenet": NUM_INDEX, "num_pass": NUM_INDEX, "num_val": NUM_VALIDATION, "image_size": IMAGE_SIZE}
    return make_world(output_dir / "world", **sizes)


def long_names(rows: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Scores by the names of `results.json`, for reports: the other way round than `short_scores`."""
    names = {short: name for name, short in SHORT_NAMES.items()}
    return {method: {names.get(short, short): value for short, value in row.items()} for method, row in rows.items()}


def short_scores(scores: Mapping[str, float]) -> dict[str, float]:
    """Those of the scores of `results.json` that there are, by their short names."""
    return {short: scores[name] for name, short in SHORT_NAMES.items() if name in scores}
