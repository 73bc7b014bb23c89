"""Binary scores against counting by hand, in one process and in several, and in a whole pass over a benchmark."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.base import EvaluationItem
from evaluation.binary import BinaryScores
from evaluation.evaluate import EvaluationResult, Prediction, evaluate_semantic_and_instances
from evaluation.protocol import format_scores
from tests.evaluation.toy_benchmark import ToyBenchmark
from tests.processes import run_ranks
from training.launch import make_fabric


def by_hand(label: np.ndarray, prediction: np.ndarray) -> float:
    pairs = [(g, p) for g, p in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True) if g in (0, 1)]
    return sum(g == p == 1 for g, p in pairs) / (sum(1 in pair for pair in pairs) + 1e-7)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), dtype=st.sampled_from(["uint8", "int16", "int64"]))
def test_iou_equals_counting(seed: int, dtype: str) -> None:
    generator = np.random.default_rng(seed)
    scores, wanted = BinaryScores(), []
    for _ in range(generator.integers(1, 4)):
        shape = tuple(generator.integers(1, 7, 2))
        label = generator.choice([0, 1, 2, 255], shape).astype(dtype)
        prediction = generator.integers(0, 2, shape)
        wanted.append(by_hand(label, prediction))
        scores.update(torch.from_numpy(label), torch.from_numpy(prediction))
    result = scores.compute()
    assert result.image_iou.tolist() == wanted
    assert result.iou == pytest.approx(sum(wanted) / len(wanted))
    assert result.scores() == {"iou": result.iou}


def test_extremes() -> None:
    ones, zeros, ignored = torch.ones(3, 4), torch.zeros(3, 4), torch.full((3, 4), 255)
    scores = BinaryScores()
    assert math.isnan(scores.compute().iou)
    for label, prediction in ((ones, ones), (ones, zeros), (zeros, zeros), (ignored, ones)):
        scores.update(label.int(), prediction.int())
    assert scores.compute().image_iou.tolist() == pytest.approx([1, 0, 0, 0])


def test_pictures_and_batches_count_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, predictions = (torch.randint(0, 2, (3, 6, 7), generator=generator) for _ in range(2))
    batch, single = BinaryScores(), BinaryScores()
    batch.update(labels, predictions)
    for one, two in zip(labels, predictions, strict=True):
        single.update(one, two)
    assert batch.compute().image_iou.tolist() == single.compute().image_iou.tolist()


def test_sizes_have_to_agree() -> None:
    with pytest.raises(ValueError, match=r"labels have shape \(4, 5\), predictions \(5, 4\)"):
        BinaryScores().update(torch.zeros(4, 5), torch.zeros(5, 4))


class BinaryToy(ToyBenchmark):
    """Circles of the toy benchmark against everything else."""

    binary, num_classes, category_names = True, 2, ("background", "circle")

    def __getitem__(self, index: int) -> EvaluationItem:
        item = super().__getitem__(index)
        label = np.where(item.label == 255, 255, item.label == 1).astype(np.int16)
        return EvaluationItem(item.image, label, item.size, item.image_id, item.path)


def predict_bright(images: torch.Tensor, size: tuple[int, int]) -> list[Prediction]:
    return [Prediction((image[..., 0] > 70).long()) for image in images]


def score(num_images: int) -> EvaluationResult:
    return evaluate_semantic_and_instances(predict_bright, BinaryToy(num_images), batch_size=2)


def score_in_rank(num_images: int, output_dir: Path) -> None:
    fabric = make_fabric("cpu")
    result = score(num_images)
    record = {"scores": result.scores(), "images": sorted(result.binary.image_iou)}
    (output_dir / f"{fabric.global_rank}.json").write_text(json.dumps(record))


def test_a_binary_benchmark_is_scored_picture_by_picture() -> None:
    result, benchmark = score(5), BinaryToy(5)
    wanted = [by_hand(item.label, item.image[..., 0] > 70) for item in (benchmark[index] for index in range(5))]
    assert sorted(result.binary.image_iou.tolist()) == pytest.approx(sorted(wanted))
    assert result.scores() == {"iou": pytest.approx(np.mean(wanted))}
    assert 0.05 < result.scores()["iou"] < 1
    assert result.semantic is None
    assert result.class_iou is None
    text = format_scores(result.scores(), result.protocol)
    assert "IoU, mean over images" in text
    assert "IoU of every picture over the pixels labelled 0 or 1, averaged over pictures" in text


def test_two_processes_equal_one(tmp_path: Path) -> None:
    whole = score(5)
    assert run_ranks(score_in_rank, 2, 5, tmp_path) == [0, 0]
    parts = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert parts[0] == parts[1] == {"scores": whole.scores(), "images": sorted(whole.binary.image_iou)}
