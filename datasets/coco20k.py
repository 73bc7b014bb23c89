"""COCO-20K: 19,817 pictures of COCO train2014, scored by instance annotations; the subset file is made when missing.

Layout below the dataset folder: `train2014/`, `annotations/instances_train2014.json` (or the ready subset,
`annotations/instances_train2014_sel20k.json`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets.base import Benchmark
from datasets.coco import read_annotations
from datasets.metadata import category_table, coco20k_image_ids
from datasets.pairing import require_dir, require_files
from utils.errors import DataError
from utils.files import write_json
from utils.log import get_logger

LAYOUT = "train2014/*.jpg, annotations/instances_train2014.json"
SUBSET_NAME = "instances_train2014_sel20k.json"
logger = get_logger(__name__)


class Coco20kBenchmark(Benchmark):
    """COCO-20K, in the order of the subset file; no semantic labels.

    Args:
        root: dataset folder.
        cache_dir: where the subset file is kept if it has to be made and the dataset folder cannot be written.
        image_ids: ids of the subset in order; the published list if None.

    Raises:
        DataError: annotations or pictures are missing, or the annotations lack pictures of the list.
    """

    def __init__(
        self, root: str | Path, *, cache_dir: str | Path | None = None, image_ids: Sequence[int] | None = None
    ) -> None:
        root = Path(root)
        require_dir(root, "the COCO dataset", LAYOUT)
        annotations_path = find_or_make_subset(root, cache_dir, image_ids or coco20k_image_ids())
        images = read_annotations(annotations_path)["images"]
        image_dir = require_dir(root / "train2014", "the pictures", LAYOUT)
        image_paths = [image_dir / image["file_name"] for image in images]
        require_files(image_paths, "pictures", f"They are listed in {annotations_path}.")
        super().__init__(
            name="coco20k",
            split="train2014_sel20k",
            table=category_table("coco20k"),
            image_paths=image_paths,
            image_ids=[image["id"] for image in images],
            annotations_path=annotations_path,
        )


def build_coco20k_subset(annotations: Mapping[str, Any], image_ids: Iterable[int]) -> dict[str, Any]:
    """The pictures of a list and their annotations out of a COCO document.

    Args:
        annotations: COCO instance document.
        image_ids: ids of the pictures wanted.

    Returns:
        Document with images and annotations in the order of the list (the annotations of one picture in the document's
        order), and all categories.

    Raises:
        DataError: pictures of the list are not in the document.
    """
    image_ids = list(image_ids)
    images = {image["id"]: image for image in annotations["images"]}
    missing = [image_id for image_id in image_ids if image_id not in images]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(image_ids)} pictures of COCO-20K are not in the annotations (the first has id "
            f"{missing[0]}). The list belongs to annotations/instances_train2014.json of COCO 2014."
        )
    by_image: dict[int, list[Any]] = defaultdict(list)
    for annotation in annotations["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return {
        "images": [images[image_id] for image_id in image_ids],
        "annotations": [annotation for image_id in image_ids for annotation in by_image[image_id]],
        "categories": annotations["categories"],
    }


def parse_coco20k_list(text: str) -> list[int]:
    """Image ids of a file list, one file name per line: the digits after the last underscore.

    Raises:
        DataError: a line has no such digits.
    """
    image_ids = []
    for number, line in enumerate(text.splitlines(), start=1):
        name = line.strip()
        if not name:
            continue
        digits = name.rsplit("_", 1)[-1].split(".", 1)[0]
        if not digits.isdecimal():
            raise DataError(
                f"line {number} of the file list: expected a name like COCO_train2014_<id>.jpg, got {name!r}."
            )
        image_ids.append(int(digits))
    return image_ids


def find_or_make_subset(root: Path, cache_dir: str | Path | None, image_ids: Sequence[int]) -> Path:
    """Path of the subset file: the ready one, or a new one in the dataset folder or, if that is read-only, the cache.

    Raises:
        DataError: nothing to make it from, or nowhere to put it.
    """
    folders = [root / "annotations", *([Path(cache_dir)] if cache_dir is not None else [])]
    for folder in folders:
        if (folder / SUBSET_NAME).is_file():
            return folder / SUBSET_NAME
    source = root / "annotations" / "instances_train2014.json"
    target = next((folder for folder in folders if _is_writable(folder)), None)
    if target is None:
        raise DataError(
            f"{root / 'annotations' / SUBSET_NAME}: cannot be written and there is no other folder for it. "
            "Give dir_ckpt a folder that can be written."
        )
    subset = build_coco20k_subset(read_annotations(source), image_ids)
    write_json(target / SUBSET_NAME, subset, indent=False)
    logger.info("made the COCO-20K subset, %d pictures: %s", len(subset["images"]), target / SUBSET_NAME)
    return target / SUBSET_NAME


def _is_writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK)
