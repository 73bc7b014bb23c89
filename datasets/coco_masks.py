"""Makes COCO2017's semantic label PNGs from its instance annotations: `python -m datasets.coco_masks --help`.

One-channel palette PNGs with training ids (0 background, 1 ... 80) in `annotations/semantic_segmentation_masks/`, as
`datasets/coco.py` reads them. Files that exist are kept, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.coco import LABEL_DIR, LAYOUT, choose_table, read_annotations, split_name
from datasets.pairing import require_dir
from utils.errors import DataError, UserError
from utils.files import atomic_write
from utils.log import get_logger, progress, setup_logging

logger = get_logger(__name__)


def paint_instances(
    annotations: Sequence[Mapping[str, Any]],
    size: tuple[int, int],
    labels: Mapping[int, int],
    *,
    crowd_label: int | None,
) -> np.ndarray:
    """One label map of the instances of a picture; smaller objects lie over larger ones, all objects over crowds.

    Args:
        annotations: COCO instance annotations of one picture.
        size: its (height, width).
        labels: raw category id -> label.
        crowd_label: label of crowd regions; None for that of their category.

    Returns:
        uint8, (H, W), 0 where no instance is.

    Raises:
        DataError: an annotation has an unknown category or a damaged segmentation; names its id.
    """
    canvas = np.zeros(size, np.uint8)
    drawn = []
    for annotation in annotations:
        mask = _decode(annotation, size)
        is_crowd = bool(annotation.get("iscrowd", 0))
        drawn.append((not is_crowd, -int(mask.sum()), len(drawn), mask, _label(annotation, labels, crowd_label)))
    for _, _, _, mask, label in sorted(drawn, key=lambda entry: entry[:3]):
        canvas[mask] = label
    return canvas


def make_semantic_masks(
    root: str | Path,
    split: str,
    *,
    categories: Sequence[str] | None = None,
    crowd: str = "category",
    num_workers: int = 0,
) -> int:
    """Write the label PNGs of a split that are missing.

    Args:
        root: dataset folder, in the layout of `datasets/coco.py`.
        split: "val2017" or "train2017".
        categories: background and names in label order; COCO's own if None.
        crowd: crowd regions get the label of their "category", or are left out of scores ("ignore").
        num_workers: processes; 0 works in this one.

    Returns:
        Number of PNGs written.

    Raises:
        UserError: annotations are missing or wrong, or a file cannot be written.
    """
    root, split = Path(root), split_name(split)
    require_dir(root, "the COCO dataset", LAYOUT)
    path = root / "annotations" / f"instances_{split}.json"
    document = read_annotations(path)
    table = choose_table(document, path, categories)
    labels = {raw_id: label for label, raw_id in enumerate(table.raw_category_ids or ())}
    by_image: dict[int, list[Any]] = defaultdict(list)
    for annotation in document["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    jobs = []
    for image in document["images"]:
        target = root / LABEL_DIR / f"{Path(image['file_name']).stem}.png"
        if not target.exists():
            jobs.append((target, by_image[image["id"]], (image["height"], image["width"])))
    crowd_label = table.ignore_index if crowd == "ignore" else None
    paint = partial(_write_one, labels=labels, crowd_label=crowd_label, palette=table.label_colours.tobytes())
    kept = len(document["images"]) - len(jobs)
    logger.info("%s: %d label PNGs to make, %d are there; into %s", split, len(jobs), kept, root / LABEL_DIR)
    _run(paint, jobs, num_workers)
    return len(jobs)


def _run(paint: Any, jobs: list[tuple[Path, list[Any], tuple[int, int]]], num_workers: int) -> None:
    if num_workers == 0:
        for job in progress(jobs, description="label PNGs", unit="image"):
            paint(job)
        return
    with ProcessPoolExecutor(num_workers) as pool:
        results = pool.map(paint, jobs, chunksize=16)
        for _ in progress(results, total=len(jobs), description="label PNGs", unit="image"):
            pass


def _write_one(
    job: tuple[Path, list[Any], tuple[int, int]], *, labels: Mapping[int, int], crowd_label: int | None, palette: bytes
) -> None:
    target, annotations, size = job
    image = Image.fromarray(paint_instances(annotations, size, labels, crowd_label=crowd_label))
    image.putpalette(palette)
    with atomic_write(target, sync=False) as file:
        image.save(file, format="PNG")


def _label(annotation: Mapping[str, Any], labels: Mapping[int, int], crowd_label: int | None) -> int:
    if annotation.get("iscrowd", 0) and crowd_label is not None:
        return crowd_label
    try:
        return labels[annotation["category_id"]]
    except KeyError as error:
        raise DataError(
            f"annotation {annotation.get('id')} has the category id {annotation.get('category_id')}, which is none of "
            f"the {len(labels) - 1} categories. Is this the instance annotation file of this dataset?"
        ) from error


def _decode(annotation: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Bool mask (H, W) of polygons, or of a run-length code, compressed or not."""
    segmentation = annotation["segmentation"]
    height, width = size
    try:
        if isinstance(segmentation, list):
            code = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)) if segmentation else None
        elif isinstance(segmentation["counts"], list):
            code = coco_mask.frPyObjects(segmentation, height, width)
        else:
            code = segmentation
        mask = coco_mask.decode(code) if code is not None else np.zeros(size, np.uint8)
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"annotation {annotation.get('id')}: damaged segmentation ({error}).") from error
    if mask.shape != tuple(size):
        raise DataError(
            f"annotation {annotation.get('id')}: its mask is {mask.shape[0]}x{mask.shape[1]}, the picture "
            f"{height}x{width} (height x width)."
        )
    return mask.astype(bool)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m datasets.coco_masks", description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("--dir_dataset", required=True, metavar="DIR", help="COCO folder (val2017/, annotations/)")
    parser.add_argument("--split", default="val2017", help="val2017 (default) or train2017")
    parser.add_argument("--crowd", choices=("category", "ignore"), default="category", help="label of crowd regions")
    parser.add_argument("--num_workers", type=int, default=0, help="processes (default: 0, this one)")
    options = parser.parse_args(arguments)
    setup_logging()
    try:
        written = make_semantic_masks(
            options.dir_dataset, options.split, crowd=options.crowd, num_workers=options.num_workers
        )
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    logger.info("done: %d written to %s", written, Path(options.dir_dataset) / LABEL_DIR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
