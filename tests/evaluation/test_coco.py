"""COCO AP: equal to pycocotools, areas from masks, nothing predicted, wrong files."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from evaluation.coco import check_annotations, evaluate_coco
from evaluation.instances import encode_masks
from utils.errors import DataError


def rectangle(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    top, left = generator.integers(0, height - 4), generator.integers(0, width - 4)
    mask[top : top + generator.integers(2, height), left : left + generator.integers(2, width)] = True
    return mask


def make(seed: int, *, num_images: int = 12, num_categories: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A document with crowds and objects of all sizes, and predictions near and far, with equal scores among them."""
    generator = np.random.default_rng(seed)
    images = [{"id": 5 * index + 2, "height": 150, "width": 140} for index in range(num_images)]
    annotations, records = [], []
    for image in images:
        for _ in range(generator.integers(0, 6)):
            mask = rectangle(generator, image["height"], image["width"])
            category = int(generator.integers(1, num_categories + 1))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image["id"], "category_id": category,
                "iscrowd": int(generator.random() < 0.15), "area": float(mask.sum()), "segmentation": code(mask),
            })  # fmt: skip
            for _ in range(generator.integers(0, 4)):
                shift = generator.integers(-5, 6, 2)
                near = np.roll(mask, shift, (0, 1)) if generator.random() < 0.7 else rectangle(generator, 150, 140)
                other = int(generator.integers(1, num_categories + 1))
                records.append({
                    "image_id": image["id"], "category_id": category if generator.random() < 0.8 else other,
                    "score": round(float(generator.random()), 1), "segmentation": code(near),
                })  # fmt: skip
    categories = [{"id": index + 1, "name": str(index)} for index in range(num_categories)]
    return {"images": images, "annotations": annotations, "categories": categories}, records


def code(mask: np.ndarray) -> dict[str, Any]:
    return encode_masks(torch.from_numpy(mask[None]))[0]


def reference(document: dict[str, Any], records: list[dict[str, Any]], use_categories: bool, max_dets: list[int],
              image_ids: list[int] | None) -> list[float]:  # fmt: skip
    """pycocotools' own summary."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(records)), "segm")
        evaluation.params.useCats, evaluation.params.maxDets = int(use_categories), max_dets
        if image_ids is not None:
            evaluation.params.imgIds = image_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("use_categories", [True, False])
def test_equal_to_pycocotools(seed: int, use_categories: bool) -> None:
    document, records = make(seed)
    image_ids = [image["id"] for image in document["images"][:7]] if seed % 2 else None
    max_dets = [1, 2, 100] if seed == 3 else [1, 10, 100]
    stats = evaluate_coco(document, records, use_categories=use_categories, max_dets=max_dets, image_ids=image_ids)
    used = [record for record in records if image_ids is None or record["image_id"] in image_ids]
    assert list(stats.values()) == pytest.approx(
        reference(document, used, use_categories, max_dets, image_ids), abs=1e-12
    )
    assert list(stats)[:9] == [
        "AP", "AP_50", "AP_75", "AP_small", "AP_medium", "AP_large", *(f"AR_{number}" for number in max_dets),
    ]  # fmt: skip


def test_fewer_detections_than_100_have_an_ap_too() -> None:
    document, records = make(5)
    stats = evaluate_coco(document, records, max_dets=(1, 2, 3))
    assert 0 < stats["AP"] <= evaluate_coco(document, records)["AP"] + 1e-12
    assert stats["AR_3"] > 0


def test_box_in_a_record_does_not_change_sizes() -> None:
    document, records = make(1)
    boxed = [{**record, "bbox": [0.0, 0.0, 149.0, 139.0]} for record in records]
    assert evaluate_coco(document, boxed) == evaluate_coco(document, records)


def test_order_of_records_does_not_matter_without_equal_scores() -> None:
    document, records = make(2)
    distinct = [{**record, "score": index / 1000} for index, record in enumerate(records)]
    assert evaluate_coco(document, distinct[::-1]) == evaluate_coco(document, distinct)


def test_inputs_stay_as_they_were() -> None:
    document, records = make(3)
    before = copy.deepcopy((document, records))
    evaluate_coco(document, records)
    assert (document, records) == before


def test_perfect_predictions() -> None:
    document, _ = make(4)
    document["annotations"] = [annotation for annotation in document["annotations"] if not annotation["iscrowd"]]
    perfect = [
        {**{key: annotation[key] for key in ("image_id", "category_id", "segmentation")}, "score": 0.5}
        for annotation in document["annotations"]
    ]
    assert evaluate_coco(document, perfect)["AP"] == pytest.approx(1.0)


def test_nothing_predicted_is_zero_and_told(caplog: pytest.LogCaptureFixture) -> None:
    document, _ = make(0)
    with caplog.at_level(logging.WARNING, "unmasked"):
        logging.getLogger("unmasked").propagate = True
        stats = evaluate_coco(document, [])
    assert stats["AP"] == stats["AR_100"] == 0
    assert "no instance was predicted on any image" in caplog.text


def test_nothing_annotated_is_undefined() -> None:
    document, records = make(0)
    document["annotations"] = []
    assert set(evaluate_coco(document, records).values()) == {-1.0}


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json: COCO annotation file not found"):
        evaluate_coco(tmp_path / "nowhere.json", [])
    path = tmp_path / "broken.json"
    path.write_text('{"images": [')
    with pytest.raises(DataError, match=r"broken\.json: COCO annotation file is not valid JSON.*line 1"):
        evaluate_coco(path, [])
    path.write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match=r"broken\.json: not a COCO instance annotation file.*annotations"):
        evaluate_coco(path, [])
    with pytest.raises(DataError, match="this COCO annotation document has no list of annotations, categories"):
        evaluate_coco({"images": []}, [])
    with pytest.raises(DataError, match=r"expected a COCO annotation document .* found list"):
        check_annotations([])


def test_damaged_annotations_are_named() -> None:
    document, _ = make(0)
    for change, text in (
        ({"image_id": 999}, "is of image 999, not listed"),
        ({"category_id": 999}, "is of category 999, not listed"),
    ):
        wrong = {**document, "annotations": [{**document["annotations"][0], **change}]}
        with pytest.raises(DataError, match=text):
            evaluate_coco(wrong, [])
    annotation = {key: value for key, value in document["annotations"][0].items() if key != "segmentation"}
    with pytest.raises(DataError, match="annotation 1 has no segmentation"):
        evaluate_coco({**document, "annotations": [annotation]}, [])
    with pytest.raises(DataError, match="an entry of its image list has no id"):
        evaluate_coco({**document, "images": [{"height": 3}]}, [])


def test_records_of_other_images_or_categories_are_named() -> None:
    document, records = make(0)
    with pytest.raises(DataError, match=r"1 predicted image ids are not annotated \(first: \[999\]\)"):
        evaluate_coco(document, [{**records[0], "image_id": 999}])
    stranger = [{**records[0], "category_id": 77}]
    with pytest.raises(DataError, match=r"category ids \[77\] are not among its 4 categories.*same order"):
        evaluate_coco(document, stranger)
    assert evaluate_coco(document, stranger, use_categories=False)["AP"] >= 0
