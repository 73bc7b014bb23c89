"""COCO mask AP of instance records.

faster-coco-eval computes pycocotools' precision and recall tables (equal to 2e-16 in our tests) in half the time; the
statistics are read from those tables here, so that other numbers of detections than 100 have an AP too.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from datasets.coco import read_annotations
from utils.errors import DataError
from utils.log import get_logger

logger = get_logger(__name__)

_SIZES = ("all", "small", "medium", "large")


def check_annotations(document: Any, source: str = "annotations") -> None:
    """Raise `DataError` unless the document is a COCO instance annotation document that can be scored against."""
    if not isinstance(document, Mapping):
        raise DataError(
            f"{source}: expected a COCO annotation document (a JSON object), found {type(document).__name__}"
        )
    missing = [part for part in ("images", "annotations", "categories") if not isinstance(document.get(part), list)]
    if missing:
        raise DataError(f"{source}: this COCO annotation document has no list of {', '.join(missing)}")
    images, categories = _ids(document["images"], "image", source), _ids(document["categories"], "category", source)
    for annotation in document["annotations"]:
        lacking = [key for key in ("id", "image_id", "category_id", "segmentation", "area") if key not in annotation]
        if lacking:
            raise DataError(f"{source}: annotation {annotation.get('id', '?')} has no {', '.join(lacking)}")
        if annotation["image_id"] not in images:
            raise DataError(f"{source}: annotation {annotation['id']} is of image {annotation['image_id']}, not listed")
        if annotation["category_id"] not in categories:
            raise DataError(
                f"{source}: annotation {annotation['id']} is of category {annotation['category_id']}, not listed"
            )


def evaluate_coco(
    annotations: Mapping[str, Any] | str | Path,
    records: Iterable[Mapping[str, Any]],
    *,
    use_categories: bool = True,
    max_dets: Sequence[int] = (1, 10, 100),
    image_ids: Collection[int] | None = None,
) -> dict[str, float]:
    """Score instance masks against COCO annotations.

    Args:
        annotations: COCO document, or the path of one.
        records: as `instances_to_records` makes them; a `bbox` in them is not looked at, areas come from the masks.
        use_categories: False compares masks whatever their category (class-agnostic).
        max_dets: three numbers of detections per image, ascending; AP uses the last one.
        image_ids: score these images only; all if not given.

    Returns:
        Fractions: AP, AP_50, AP_75, AP_small, AP_medium, AP_large, AR_<max_dets> (three), AR_small, AR_medium,
        AR_large; -1 where no such object is annotated. Without a single record every one that exists is 0.

    Raises:
        DataError: unreadable annotations, or records of images or categories that they do not list.
    """
    source = "annotations"
    if isinstance(annotations, (str, Path)):
        annotations, source = read_annotations(Path(annotations)), str(annotations)
    check_annotations(annotations, source)
    results = [{key: record[key] for key in ("image_id", "category_id", "segmentation", "score")} for record in records]
    wanted = None if image_ids is None else set(image_ids)
    if wanted is not None:
        results = [result for result in results if result["image_id"] in wanted]
    _check_records(results, annotations, source, use_categories)
    if not results:
        logger.warning("no instance was predicted on any image: AP is 0 (not an error of the evaluation)")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(annotations)
        found = truth.loadRes(results) if results else _index({**annotations, "annotations": []})
        evaluation = COCOeval_faster(truth, found, "segm")
        evaluation.params.useCats = int(use_categories)
        evaluation.params.maxDets = list(max_dets)
        if wanted is not None:
            evaluation.params.imgIds = sorted(wanted)
        evaluation.evaluate()
        evaluation.accumulate()
    return _statistics(evaluation.eval["precision"], evaluation.eval["recall"], max_dets)


def _index(document: Mapping[str, Any]) -> COCO:
    """A COCO object of a document; the library adds keys to annotations, so they are copied one level deep."""
    coco = COCO()
    copies = [{"iscrowd": 0, **annotation} for annotation in document["annotations"]]
    coco.dataset = {**document, "annotations": copies}
    coco.createIndex()
    return coco


def _ids(entries: Sequence[Any], what: str, source: str) -> set[int]:
    if any(not isinstance(entry, Mapping) or "id" not in entry for entry in entries):
        raise DataError(f"{source}: an entry of its {what} list has no id")
    return {entry["id"] for entry in entries}


def _check_records(
    results: Sequence[Mapping[str, Any]], annotations: Mapping[str, Any], source: str, use_categories: bool
) -> None:
    images = {image["id"] for image in annotations["images"]}
    strangers = sorted({result["image_id"] for result in results} - images)
    if strangers:
        raise DataError(
            f"{source}: {len(strangers)} predicted image ids are not annotated (first: {strangers[:3]}). "
            f"The annotations must be those of the images that were segmented."
        )
    known = {category["id"] for category in annotations["categories"]}
    strangers = sorted({result["category_id"] for result in results} - known)
    if strangers and use_categories:
        raise DataError(
            f"{source}: predicted category ids {strangers[:10]} are not among its {len(known)} categories. "
            f"The category list of the config must be that of the annotations, in the same order."
        )


def _statistics(precision: np.ndarray, recall: np.ndarray, max_dets: Sequence[int]) -> dict[str, float]:
    """Means over the tables.

    Args:
        precision: (T thresholds 0.50:0.05:0.95, R recalls, K categories, 4 sizes, M max_dets), -1 where undefined.
        recall: (T, K, 4, M).
    """
    num_categories = precision.shape[2] if precision.ndim == 5 else 1
    precision = np.asarray(precision).reshape(10, -1, num_categories, len(_SIZES), len(max_dets))
    recall = np.asarray(recall).reshape(10, num_categories, len(_SIZES), len(max_dets))
    stats = {
        "AP": _mean(precision[..., 0, -1]),
        "AP_50": _mean(precision[0, ..., 0, -1]),
        "AP_75": _mean(precision[5, ..., 0, -1]),
    }
    stats |= {f"AP_{size}": _mean(precision[..., index, -1]) for index, size in enumerate(_SIZES) if index}
    stats |= {f"AR_{number}": _mean(recall[..., 0, index]) for index, number in enumerate(max_dets)}
    stats |= {f"AR_{size}": _mean(recall[..., index, -1]) for index, size in enumerate(_SIZES) if index}
    return stats


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0
