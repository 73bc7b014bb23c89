"""COCO2017 and datasets in its layout: all pictures of a split, semantic label PNGs, instance annotations.

Layout below the dataset folder: `<split>2017/`, `annotations/instances_<split>2017.json`,
`annotations/semantic_segmentation_masks/<image stem>.png`. `datasets/coco_masks.py` makes the PNGs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import Benchmark
from datasets.label_files import check_labels, read_index_png
from datasets.metadata import BACKGROUND, CategoryTable, bit_palette, category_table
from datasets.pairing import list_relative, refuse_extra, require_dir, require_files
from utils.errors import ConfigError, DataError
from utils.files import read_json

LAYOUT = "val2017/*.jpg, annotations/instances_val2017.json, annotations/semantic_segmentation_masks/*.png"
LABEL_DIR = Path("annotations", "semantic_segmentation_masks")
CUSTOM_IGNORE_INDEX = 255


class CocoBenchmark(Benchmark):
    """COCO2017, or a dataset in its layout with categories of its own.

    Args:
        root: dataset folder.
        split: "val" or "train" ("val2017" means the same).
        categories: background and the names to score, in label order; COCO's own 80 if None. With names given, their
            ids are looked up in the annotation file.
        with_labels: read semantic label PNGs; without them only instance scores are possible.
        with_instances: read instance annotations; without them the pictures are those of the split's folder, in the
            order of their names, and only semantic scores are possible.

    Raises:
        ConfigError: more categories than label PNGs can hold.
        DataError: annotations, pictures or label PNGs are missing, label PNGs have no picture, or the annotations lack
            a category.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "val",
        *,
        categories: Sequence[str] | None = None,
        with_labels: bool = True,
        with_instances: bool = True,
    ) -> None:
        root, year_split = Path(root), split_name(split)
        if with_labels and categories is not None and len(categories) > CUSTOM_IGNORE_INDEX:
            raise ConfigError(
                f"categories: received {len(categories)} names with background, but label PNGs in COCO's layout take "
                f"{CUSTOM_IGNORE_INDEX} at most: {CUSTOM_IGNORE_INDEX} in them stands for no label. Leave some out, or "
                "merge them."
            )
        require_dir(root, "the COCO dataset", LAYOUT)
        annotations_path = root / "annotations" / f"instances_{year_split}.json" if with_instances else None
        annotations = None if annotations_path is None else read_annotations(annotations_path)
        image_dir = require_dir(root / year_split, "the pictures", LAYOUT)
        if annotations is None:
            image_paths = [image_dir / name for name in sorted(list_relative(image_dir, ".jpg"))]
            image_ids = None
        else:
            images = sorted(annotations["images"], key=lambda image: image["id"])
            image_paths = [image_dir / image["file_name"] for image in images]
            image_ids = [image["id"] for image in images]
            require_files(image_paths, "pictures", f"They are listed in {annotations_path}.")
        super().__init__(
            name="coco2017",
            split=year_split.removesuffix("2017"),
            table=choose_table(annotations, annotations_path, categories),
            image_paths=image_paths,
            label_paths=_pair_labels(root, year_split, image_paths) if with_labels else None,
            image_ids=image_ids,
            annotations_path=annotations_path,
        )

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """Category ids stored in a one-channel PNG, int16, (H, W)."""
        labels = read_index_png(path, "Make the label PNGs with python -m datasets.coco_masks.")
        hint = "Ids above may be raw COCO ids: label PNGs hold training ids, see python -m datasets.coco_masks."
        check_labels(labels, path, self.num_classes, self.ignore_index, hint)
        return labels.astype(np.int16)


def _pair_labels(root: Path, year_split: str, image_paths: Sequence[Path]) -> list[Path]:
    """The label PNG of every picture; DataError if some are missing or belong to no picture."""
    label_paths = [root / LABEL_DIR / f"{path.stem}.png" for path in image_paths]
    command = f"python -m datasets.coco_masks --dir_dataset {root} --split {year_split}"
    require_files(label_paths, "semantic label PNGs", f"Make them with: {command}")
    # The folder holds the labels of both splits. The other split's pictures tell which those are; where they are not
    # kept but their annotations are, the rest of the folder is taken to be theirs.
    other = "train2017" if year_split == "val2017" else "val2017"
    if (root / other).is_dir() or not (root / "annotations" / f"instances_{other}.json").is_file():
        expected = {path.name for path in label_paths}
        expected |= {f"{Path(name).stem}.png" for name in list_relative(root / other, ".jpg")}
        remedy = f"Take them away, or put their pictures into {year_split} or {other}."
        refuse_extra(list_relative(root / LABEL_DIR, ".png"), expected, root / LABEL_DIR, remedy)
    return label_paths


def split_name(split: str) -> str:
    """The folder name of a split: "val" -> "val2017"; DataError for anything but val and train."""
    name = split if split.endswith("2017") else f"{split}2017"
    if name not in ("val2017", "train2017"):
        raise DataError(f"COCO2017 has the splits 'val' and 'train' here, got {split!r}.")
    return name


def read_annotations(path: Path) -> dict[str, Any]:
    """A COCO instance annotation document.

    Raises:
        DataError: missing file, no JSON, or one of images, annotations and categories is missing in it.
    """
    document = read_json(path, what="COCO annotation file")
    required = ("images", "annotations", "categories")
    missing = [key for key in required if not isinstance(document, Mapping) or not isinstance(document.get(key), list)]
    if missing:
        raise DataError(
            f"{path}: not a COCO instance annotation file, it has no list {' and no list '.join(map(repr, missing))}."
        )
    return document


def annotated_names(root: Path, split: str) -> list[str] | None:
    """Names of a dataset in COCO's layout that has categories of its own.

    Args:
        root: dataset folder.
        split: "val" or "train".

    Returns:
        Background and the annotation file's names by ascending id; None if there is no file, or if the file is COCO's:
        at least half of its ids have the name that COCO gives them, or names are only numbers.
    """
    path = root / "annotations" / f"instances_{split_name(split)}.json"
    if not path.is_file():
        return None
    names = {int(category["id"]): str(category["name"]) for category in read_annotations(path)["categories"]}
    table = category_table("coco2017")
    coco_names = dict(zip(table.raw_category_ids, table.names, strict=True))
    num_alike = sum(coco_names.get(number) == name or name.isdecimal() for number, name in names.items())
    if 2 * num_alike >= len(names):
        return None
    return [BACKGROUND, *(names[number] for number in sorted(names))]


def choose_table(
    annotations: Mapping[str, Any] | None, path: Path | None, categories: Sequence[str] | None
) -> CategoryTable:
    """COCO's own category table, or one for other names with their ids in the annotation file.

    Args:
        annotations: COCO document, or None: labels need no ids.
        path: its file, for messages.
        categories: background and names in label order, or None.

    Raises:
        DataError: a name does not occur in the annotation file, or the first is not the background.
    """
    coco = category_table("coco2017")
    if categories is None or tuple(categories) == coco.names:
        return coco
    if not categories or categories[0] != BACKGROUND:
        raise DataError(f"the first category has to be {BACKGROUND!r} (label 0), got {list(categories[:1])}.")
    raw_ids = None if annotations is None else _find_ids(annotations, path, categories)
    palette = bit_palette(len(categories))
    label_colours = bit_palette(CUSTOM_IGNORE_INDEX + 1)
    label_colours[CUSTOM_IGNORE_INDEX] = 255
    return CategoryTable(
        name="custom",
        names=tuple(categories),
        palette=palette,
        ignore_index=CUSTOM_IGNORE_INDEX,
        label_colours=label_colours,
        raw_category_ids=raw_ids,
    )


def _find_ids(annotations: Mapping[str, Any], path: Path, categories: Sequence[str]) -> tuple[int, ...]:
    raw_ids = {category["name"]: int(category["id"]) for category in annotations["categories"]}
    missing = [name for name in categories[1:] if name not in raw_ids]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(categories) - 1} categories are not among its {len(raw_ids)}: "
            f"{', '.join(map(repr, missing[:10]))}. It has {', '.join(map(repr, list(raw_ids)[:10]))}, ..."
        )
    return (0, *(raw_ids[name] for name in categories[1:]))
