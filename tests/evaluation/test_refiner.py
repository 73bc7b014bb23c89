"""A refiner beside the network: two sets of scores from one pass, in order, a few pictures ahead at most."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from datasets.base import EvaluationItem
from evaluation.evaluate import Prediction, evaluate_semantic_and_instances
from evaluation.prediction_stream import Refinable, predict_pictures
from evaluation.protocol import format_scores
from evaluation.report_sections import prediction_panel
from evaluation.semantic import SemanticScores
from tests.evaluation.toy_benchmark import ToyBenchmark, draw, predict
from tests.processes import run_ranks
from training.launch import make_fabric
from utils.errors import UnreadableImageError


def predict_refinable(images: Tensor, size: tuple[int, int]) -> list[Prediction]:
    """The toy's predictions; what the refiner gets is the picture and its brightness."""
    return [
        replace(prediction, refinable=Refinable(image, (1, *size), lambda image=image: image[None, ..., 0].numpy()))
        for image, prediction in zip(images, predict(images, size), strict=True)
    ]


class Brighter:
    """Calls everything brighter than the middle a star; takes two pictures before it gives one back."""

    name = "crf"

    def __init__(self) -> None:
        self.taken = self.given = self.most_ahead = 0

    def __call__(self, pictures: Iterable[Refinable]) -> Iterator[Tensor]:
        waiting: list[Refinable] = []
        for picture in pictures:
            self.taken += 1
            self.most_ahead = max(self.most_ahead, self.taken - self.given)
            waiting.append(picture)
            if len(waiting) > 1:
                yield self.refine(waiting.pop(0))
        for picture in waiting:
            yield self.refine(picture)

    def refine(self, picture: Refinable) -> Tensor:
        self.given += 1
        scores = picture.make_scores()
        assert scores.shape == picture.shape
        np.testing.assert_array_equal(scores[0], picture.image[..., 0])
        return torch.from_numpy(np.where(scores[0] > 120, 3, 0))


def test_refined_labels_are_scored_beside_the_plain_ones() -> None:
    refiner, seen = Brighter(), []

    def visit(item: EvaluationItem, prediction: Prediction) -> None:
        seen.append(item.image_id)
        assert np.array_equal(prediction.refined.numpy(), np.where(item.image[..., 0] > 120, 3, 0))
        assert prediction.refinable is None  # nothing large is held

    options = {"batch_size": 2, "refiner": refiner, "visit": visit}
    result = evaluate_semantic_and_instances(predict_refinable, ToyBenchmark(7), **options)
    plain = evaluate_semantic_and_instances(predict, ToyBenchmark(7))
    by_hand = SemanticScores(4)
    for index in range(7):
        image, label = draw(index)
        by_hand.update(torch.from_numpy(label), torch.from_numpy(np.where(image[..., 0] > 120, 3, 0)))
    expected = {f"{name}_crf": value for name, value in by_hand.compute().scores().items()}
    assert result.scores() == plain.scores() | expected
    assert sorted(seen) == ToyBenchmark(7).image_ids
    assert refiner.most_ahead == 2
    iou = result.refined_class_iou()["class_iou_crf"]
    assert list(iou) == list(ToyBenchmark.category_names)
    assert plain.refined_class_iou() == {}
    assert f"mean IoU, CRF  {100 * expected['mean_iou_crf']:.2f}" in format_scores(result.scores(), result.protocol)


def _score_in_rank(output_dir: Path) -> None:
    fabric = make_fabric("cpu")
    result = evaluate_semantic_and_instances(predict_refinable, ToyBenchmark(7), refiner=Brighter())
    (output_dir / f"{fabric.global_rank}.json").write_text(json.dumps(result.scores()))


def test_two_processes_refine_as_one(tmp_path: Path) -> None:
    assert run_ranks(_score_in_rank, 2, tmp_path) == [0, 0]
    whole = evaluate_semantic_and_instances(predict_refinable, ToyBenchmark(7), refiner=Brighter()).scores()
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [whole, whole]


class _Damaged(ToyBenchmark):
    def __getitem__(self, index: int) -> EvaluationItem:
        if index in (1, 4):
            raise UnreadableImageError(f"{index}.jpg: cut off")
        return super().__getitem__(index)

    @property
    def image_paths(self) -> list[Path]:
        return [Path(f"{index}.jpg") for index in range(len(self))]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_pictures_are_refused_or_stop_the_pass(num_workers: int) -> None:
    refused: list[tuple[Path, str]] = []
    options = {"num_workers": num_workers, "batch_size": 2}
    pairs = predict_pictures(
        predict_refinable, _Damaged(6), range(6), refuse=lambda *what: refused.append(what), **options
    )
    assert sorted(picture.path for picture, _ in pairs) == ["0.jpg", "2.jpg", "3.jpg", "5.jpg"]
    assert refused == [(Path("1.jpg"), "1.jpg: cut off"), (Path("4.jpg"), "4.jpg: cut off")]
    with pytest.raises(UnreadableImageError, match=r"1\.jpg"):
        list(predict_pictures(predict_refinable, _Damaged(6), range(6), **options))


class _Elsewhere(Brighter):
    """Wants the pictures of the loader, not those that went to the device."""

    def refine(self, picture: Refinable) -> Tensor:
        assert picture.image.device.type == "cpu"
        return super().refine(picture)


def test_a_refiner_gets_the_pictures_that_stayed_on_the_cpu() -> None:
    def predict_elsewhere(images: Tensor, size: tuple[int, int]) -> list[Prediction]:
        return [
            replace(found, refinable=replace(found.refinable, image=found.refinable.image.to("meta")))
            for found in predict_refinable(images, size)
        ]

    pairs = predict_pictures(predict_elsewhere, ToyBenchmark(7), range(7), batch_size=3, refiner=_Elsewhere())
    assert len(list(pairs)) == 7


def test_panels_show_the_refined_labels_too() -> None:
    image, labels = np.zeros((10, 20, 3), np.uint8), np.zeros((10, 20), int)
    colours = np.array([[9, 9, 9], [1, 200, 3]], np.uint8)
    plain = prediction_panel(image, labels, labels, colours)
    assert np.array_equal(prediction_panel(image, labels, labels, colours, labels + 1)[:, : plain.shape[1]], plain)
