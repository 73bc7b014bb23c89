"""Category tables of the benchmarks: names in label order, colours, raw ids, folders. The facts lie in `tables/`.

Benchmark readers (`datasets/coco.py`, ...) take everything that differs between benchmarks from here.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from types import MappingProxyType

import numpy as np

from utils.errors import ConfigError

BACKGROUND = "background"
IMAGENET_S_SIZES = (50, 300, 919)
_TABLES = ("coca", "coco2017", "coco20k", "imagenet_s50", "imagenet_s300", "imagenet_s919", "voc2012")
_WHITE = (255, 255, 255)
_ABOVE_IGNORE = {"coca": None, "coco20k": _WHITE}  # colour of the ignore index where the table names none


@dataclass(frozen=True)
class CategoryTable:
    """What is fixed about a benchmark's categories.

    Attributes:
        name: of the table.
        names: category names in label order, background first; these strings are the prompts.
        palette: colour of each label, uint8, (C, 3).
        ignore_index: label of pixels that are not scored.
        label_colours: colour of every label value up to and including `ignore_index`, uint8, (ignore_index + 1, 3).
        raw_category_ids: id of each label in the benchmark's annotation files; None where there are no such files.
        folders: class folder -> label, for benchmarks whose pictures lie in class folders; else empty.
    """

    name: str
    names: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int
    label_colours: np.ndarray
    raw_category_ids: tuple[int, ...] | None = None
    folders: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_classes(self) -> int:
        """Number of labels, background included."""
        return len(self.names)


def table_names() -> tuple[str, ...]:
    """Names that `category_table` knows."""
    return _TABLES


@cache
def category_table(name: str) -> CategoryTable:
    """The table of a benchmark.

    Args:
        name: one of `table_names()`; hyphens and upper case are accepted (`ImageNet-S50`).

    Raises:
        ConfigError: no such table; names the nearest.
    """
    key = name.lower().replace("-", "_")
    if key not in _TABLES:
        near = difflib.get_close_matches(key, _TABLES, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"there is no category table {name!r}{hint}. Known tables: {', '.join(_TABLES)}.")
    facts = read_facts(key)
    names = tuple(facts["classes"])
    ignore_index = facts["ignore_index"] if facts["ignore_index"] is not None else 255
    colours = np.array(facts["palette"], np.uint8) if "palette" in facts else bit_palette(len(names))
    raw_ids = None
    if facts.get("raw_to_train"):
        to_raw = {label: int(raw) for raw, label in facts["raw_to_train"].items()}
        raw_ids = tuple(to_raw[label] for label in range(len(names)))
    folders = facts.get("folder_to_train") or {w: i for i, w in enumerate(facts.get("wnids", [])) if w is not None}
    ignore_colour = facts.get("palette_ignore") or facts.get("ignore_colour") or _ABOVE_IGNORE.get(key)
    return CategoryTable(
        name=key,
        names=names,
        palette=_frozen(colours),
        ignore_index=ignore_index,
        label_colours=_frozen(_colour_labels(colours, ignore_index, ignore_colour)),
        raw_category_ids=raw_ids,
        folders=MappingProxyType(dict(folders)),
    )


def imagenet_s_table(num_categories: int) -> CategoryTable:
    """The table of ImageNet-S with 50, 300 or 919 categories (background not counted); ConfigError otherwise."""
    if num_categories not in IMAGENET_S_SIZES:
        raise ConfigError(
            f"ImageNet-S exists with 50, 300 and 919 categories (background not counted), "
            f"got n_categories={num_categories}."
        )
    return category_table(f"imagenet_s{num_categories}")


def benchmark_table(dataset_name: str, num_categories: int | None = None) -> CategoryTable:
    """The table of a benchmark by the name used in configurations (`imagenet-s` needs `num_categories`)."""
    if dataset_name == "imagenet-s":
        if num_categories is None:
            raise ConfigError("dataset_name 'imagenet-s' needs n_categories: 50, 300 or 919 (background not counted).")
        return imagenet_s_table(num_categories)
    return category_table(dataset_name)


def read_facts(name: str) -> dict:
    """The JSON document `tables/<name>.json` of this package, as stored."""
    return json.loads(resources.files("datasets").joinpath("tables", f"{name}.json").read_text(encoding="utf-8"))


def coco20k_image_ids() -> tuple[int, ...]:
    """The 19,817 image ids of COCO-20K, in the order of its list."""
    return tuple(read_facts("maskdistill_coco20k_ids")["image_ids"])


def bit_palette(num_colours: int) -> np.ndarray:
    """The Pascal VOC colour map: bits of the label spread over the channels; uint8, (num_colours, 3)."""
    labels = np.arange(num_colours)
    colours = np.zeros((num_colours, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colours[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return colours


def _colour_labels(palette: np.ndarray, ignore_index: int, ignore_colour: tuple[int, int, int] | None) -> np.ndarray:
    """Colours of all label values up to the ignore index; those between follow the VOC map, as in the release."""
    colours = bit_palette(ignore_index + 1)
    colours[: len(palette)] = palette
    if ignore_colour is not None:
        colours[ignore_index] = ignore_colour
    return colours


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
