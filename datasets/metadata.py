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
from utils.naming import CATEGORY_SUFFIX, category_file_name

BACKGROUND = "background"
IMAGENET_S_SIZES = (50, 300, 919)
_TABLES = (
    *("cityscapes27", "cityscapes_object", "coca", "coco2017", "coco20k", "coco_stuff27", "coco_stuff171"),
    *("imagenet_s50", "imagenet_s300", "imagenet_s919", "kitti_step19", "pascal_context59", "voc2012"),
)
_BENCHMARK_TABLES = {  # of benchmarks whose table is not called like them
    "cityscapes": "cityscapes27",
    "coco_stuff": "coco_stuff27",
    "kitti_step": "kitti_step19",
    "pascal_context": "pascal_context59",
}
# Tables whose `raw_to_train` is about the values stored in label files; that of the others is about annotation ids.
_STORED_VALUES = ("cityscapes27", "cityscapes_object", "coco_stuff27", "kitti_step19", "pascal_context59")
UNKNOWN_LABEL = -2
_WHITE = (255, 255, 255)
_ABOVE_IGNORE = {"coca": None, "coco20k": _WHITE}  # colour of the ignore index where the table names none


@dataclass(frozen=True)
class CategoryTable:
    """What is fixed about a benchmark's categories.

    Attributes:
        name: of the table.
        names: category names in label order, background first where there is one; these strings are the prompts.
        palette: colour of each label, uint8, (C, 3).
        ignore_index: label of pixels that are not scored.
        label_colours: colour of every label value up to and including `ignore_index`, uint8, (ignore_index + 1, 3), or
            (C, 3) where that is negative.
        raw_category_ids: id of each label in the benchmark's annotation files; None where there are no such files.
        folders: class folder -> label, for benchmarks whose pictures lie in class folders; else empty.
        label_map: label of every value that the benchmark's label files can hold, `UNKNOWN_LABEL` for values that they
            cannot; int16, (256,); None where they hold labels.
        scored_as: label that each of these labels has in the coarser table that is scored, int16, (C,); or None.
    """

    name: str
    names: tuple[str, ...]
    palette: np.ndarray
    ignore_index: int
    label_colours: np.ndarray
    raw_category_ids: tuple[int, ...] | None = None
    folders: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    label_map: np.ndarray | None = None
    scored_as: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """Number of labels, background included."""
        return len(self.names)

    def stored_values(self) -> list[int]:
        """The first value that label files hold for each label (`label_map` the other way round)."""
        if self.label_map is None:
            return list(range(self.num_classes))
        return [int(np.flatnonzero(self.label_map == label)[0]) for label in range(self.num_classes)]


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
    if facts.get("raw_to_train") and key.startswith("coco20"):
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
        label_map=_label_map(facts) if key in _STORED_VALUES else None,
        scored_as=_list_labels(facts["train_to_coarse27"]) if "train_to_coarse27" in facts else None,
    )


def single_category_table(table: CategoryTable, category: str) -> CategoryTable:
    """The table of one category against everything else: background 0, the category 1.

    Args:
        table: of the whole benchmark.
        category: one of its names, or the form of the name used in file names.

    Raises:
        ConfigError: the benchmark has no such category; names the nearest.
    """
    known = {name: name for name in table.names if name != BACKGROUND}
    known |= {category_file_name(name): name for name in known}
    if category not in known:
        near = difflib.get_close_matches(category, known, n=1, cutoff=0.3)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigError(f"{table.name} has no category {category!r}{hint}.")
    colours = table.palette[[0, table.names.index(known[category])]]
    label_colours = table.label_colours.copy()
    label_colours[:2] = colours
    return CategoryTable(
        name=f"{table.name}{CATEGORY_SUFFIX}",
        names=(BACKGROUND, known[category]),
        palette=_frozen(colours),
        ignore_index=table.ignore_index,
        label_colours=_frozen(label_colours),
    )


def imagenet_s_table(num_categories: int) -> CategoryTable:
    """The table of ImageNet-S with 50, 300 or 919 categories (background not counted); ConfigError otherwise."""
    if num_categories not in IMAGENET_S_SIZES:
        raise ConfigError(
            f"ImageNet-S exists with 50, 300 and 919 categories (background not counted), "
            f"got n_categories={num_categories}."
        )
    return category_table(f"imagenet_s{num_categories}")


def benchmark_table(dataset_name: str, num_categories: int | None = None, category: str | None = None) -> CategoryTable:
    """The table of a benchmark by the name used in configurations.

    Args:
        dataset_name: the benchmark.
        num_categories: 50, 300 or 919, for `imagenet-s`.
        category: the category that is scored, for `voc2012_category` and the like.

    Raises:
        ConfigError: no such benchmark or category, or what the benchmark needs is not given.
    """
    if dataset_name.endswith(CATEGORY_SUFFIX):
        if category is None:
            raise ConfigError(f"dataset_name {dataset_name!r} needs the category that is scored (single_category).")
        table = benchmark_table(dataset_name.removesuffix(CATEGORY_SUFFIX), num_categories)
        return single_category_table(table, category)
    if dataset_name == "imagenet-s":
        if num_categories is None:
            raise ConfigError("dataset_name 'imagenet-s' needs n_categories: 50, 300 or 919 (background not counted).")
        return imagenet_s_table(num_categories)
    return category_table(_BENCHMARK_TABLES.get(dataset_name, dataset_name))


def prediction_table(dataset_name: str) -> CategoryTable:
    """The categories to predict on a benchmark; the same as `benchmark_table` but for COCO-Stuff's 171 finer ones."""
    return category_table("coco_stuff171") if dataset_name == "coco_stuff" else benchmark_table(dataset_name)


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
    if ignore_index < 0:
        return palette
    colours = bit_palette(ignore_index + 1)
    colours[: len(palette)] = palette
    if ignore_colour is not None:
        colours[ignore_index] = ignore_colour
    return colours


def _label_map(facts: dict) -> np.ndarray:
    """Label of every stored value 0 ... 255; a stored -1 is the byte 255."""
    labels = np.full(256, facts.get("raw_default", UNKNOWN_LABEL), np.int16)
    for stored, label in facts["raw_to_train"].items():
        labels[int(stored) % 256] = label
    return _frozen(labels)


def _list_labels(mapping: dict[str, int]) -> np.ndarray:
    return _frozen(np.array([mapping[str(label)] for label in range(len(mapping))], np.int16))


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
