"""The whole pass: one process or several, any batch, workers or not; and the protocol beside the scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.coco import evaluate_coco
from evaluation.evaluate import EvaluationResult, Prediction, evaluate_semantic_and_instances, protocol_of
from evaluation.protocol import Protocol, format_scores, write_results
from evaluation.semantic import scores_from_confusion
from tests.evaluation.toy_benchmark import RAW_IDS, ToyBenchmark, draw, predict, score, score_in_rank
from tests.processes import run_ranks
from utils.errors import DataError


@pytest.fixture
def annotations_path(tmp_path: Path) -> Path:
    return tmp_path / "instances.json"


def same(one: EvaluationResult, two: EvaluationResult) -> bool:
    def order(result: EvaluationResult) -> list[str]:
        return sorted(json.dumps(record, sort_keys=True) for record in result.records)

    return one.scores() == two.scores() and order(one) == order(two)


def test_scores_equal_counting_by_hand(annotations_path: Path) -> None:
    result = score(7, annotations_path, class_agnostic=True)
    confusion, records = np.zeros((4, 4)), 0
    for index in range(7):
        image, label = draw(index)
        prediction = predict(torch.from_numpy(image[None]), label.shape)[0]
        found, counted = prediction.labels.numpy(), label != 255
        np.add.at(confusion, (label[counted], found[counted]), 1)
        records += len(prediction.instances.masks)
    assert result.semantic.mean_iou == scores_from_confusion(confusion).mean_iou
    assert 0.3 < result.semantic.mean_iou < 1
    assert len(result.records) == records
    assert {record["category_id"] for record in result.records} <= set(RAW_IDS[1:])
    document = json.loads(annotations_path.read_text())
    assert result.coco == evaluate_coco(document, result.records)
    assert result.coco_class_agnostic == evaluate_coco(document, result.records, use_categories=False)
    assert result.scores()["AP_class_agnostic"] == result.coco_class_agnostic["AP"]
    assert [record["image_id"] for record in result.records] == sorted(r["image_id"] for r in result.records)
    assert result.protocol.num_images == 7


def test_two_processes_equal_one(annotations_path: Path, tmp_path: Path) -> None:
    whole = score(7, annotations_path, class_agnostic=True)
    assert run_ranks(score_in_rank, 2, 7, annotations_path, tmp_path) == [0, 0]
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for part in parts:
        assert part["scores"] == whole.scores()
        assert part["class_iou"] == whole.semantic.class_iou.tolist()
    assert parts[0]["records"] == whole.records
    assert parts[1]["records"] == []


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"batch_size": 5}, {"num_workers": 2}])
def test_how_pictures_arrive_does_not_matter(annotations_path: Path, options: dict[str, int]) -> None:
    assert same(score(11, annotations_path), score(11, annotations_path, **options))


def test_batches_hold_pictures_of_one_size(annotations_path: Path) -> None:
    shapes = []

    def watch(images: torch.Tensor, size: tuple[int, int]) -> list[Prediction]:
        shapes.append(tuple(images.shape))
        assert size == tuple(images.shape[1:3])
        return predict(images, size)

    evaluate_semantic_and_instances(watch, ToyBenchmark(8), batch_size=2)
    assert sum(shape[0] for shape in shapes) == 8
    assert max(shape[0] for shape in shapes) == 2


def test_first_pictures_only(annotations_path: Path) -> None:
    result = score(9, annotations_path, max_images=4)
    assert result.protocol.num_images == 4
    assert {record["image_id"] for record in result.records} <= {100, 103, 106, 109}
    document = ToyBenchmark(4).document()  # AP of these pictures alone, not lowered by those that were left out
    assert result.coco == evaluate_coco(document, result.records)
    assert score(9, annotations_path, max_images=40).protocol.num_images == 9


def test_visitor_sees_every_picture_with_its_prediction(annotations_path: Path) -> None:
    seen = {}
    score(5, annotations_path, visit=lambda item, prediction: seen.update({item.image_id: (item, prediction)}))
    assert sorted(seen) == [100, 103, 106, 109, 112]
    item, prediction = seen[103]
    image, label = draw(1)
    assert np.array_equal(item.image, image)
    assert np.array_equal(item.label, label)
    assert prediction.labels.shape == label.shape
    assert item.path == Path("1.jpg")


def test_without_instances_or_labels(annotations_path: Path) -> None:
    assert score(3, None).coco is None
    assert score(3, annotations_path, with_instances=False).coco is None

    class Unlabelled(ToyBenchmark):
        has_labels = False

    result = evaluate_semantic_and_instances(predict, Unlabelled(3))
    assert result.semantic is None
    assert result.scores() == {}


def test_annotations_of_other_categories_stop_before_the_first_picture(annotations_path: Path) -> None:
    document = ToyBenchmark(3).document()
    annotations_path.write_text(json.dumps({**document, "annotations": [], "categories": document["categories"][:1]}))
    with pytest.raises(DataError, match=r"the category ids \[7, 8\] of toy are not in this file"):
        evaluate_semantic_and_instances(lambda *_: pytest.fail("predicted"), ToyBenchmark(3, annotations_path))


def test_error_in_the_record_thread_is_not_lost(annotations_path: Path) -> None:
    def broken(images: torch.Tensor, size: tuple[int, int]) -> list[Prediction]:
        prediction = predict(images, size)[0]
        instances = prediction.instances._replace(category_ids=prediction.instances.category_ids + 50)
        return [Prediction(prediction.labels, instances)]

    with pytest.raises(IndexError):
        evaluate_semantic_and_instances(broken, ToyBenchmark(3, annotations_path))


def test_every_score_is_printed_with_its_protocol(tmp_path: Path) -> None:
    protocol = protocol_of(ToyBenchmark(3), suppression="hard", refiner="none", prompts="bare category names")
    text = format_scores({"mean_iou": 0.3281, "AP_small": -1.0}, protocol, class_iou=[0.9, 0.1, np.nan, 0.5],
                         num_classes=1)  # fmt: skip
    for part in ("mean IoU  32.81", "AP_small  -", "toy / val", "4: background, circle, square, star", "255",
                 "bare category names", "non-maximum suppression: hard", "full resolution", "best  background 90.00",
                 "worst  circle 10.00", "images  3"):  # fmt: skip
        assert part in text, part
    write_results(tmp_path / "results.json", {"mean_iou": 0.5}, protocol, class_iou=[0.9, 0.1, np.nan, 0.5])
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["scores"] == {"mean_iou": 0.5}
    assert document["class_iou"] == {"background": 0.9, "circle": 0.1, "square": None, "star": 0.5}
    assert document["protocol"]["prompts"] == "bare category names"
    assert set(document["protocol"]) == set(Protocol.__dataclass_fields__)
