"""A benchmark in memory whose predictions are known, for the tests; also scored by several processes together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.base import EvaluationItem
from evaluation.evaluate import EvaluationResult, Prediction, evaluate_semantic_and_instances
from evaluation.instances import encode_masks
from training.launch import make_fabric

RAW_IDS = [0, 3, 7, 8]  # raw category id of each class; background has none


class Instances(NamedTuple):
    masks: Tensor
    scores: Tensor
    category_ids: Tensor


def draw(index: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and label of an index: rectangles of classes 1 to 3, an ignored stripe; sizes alternate."""
    generator = np.random.default_rng(index)
    height, width = ((24, 32), (32, 24), (27, 27))[index % 3]
    label = np.zeros((height, width), np.int16)
    for _ in range(generator.integers(1, 4)):
        top, left = generator.integers(0, height - 6), generator.integers(0, width - 6)
        bottom, right = generator.integers(top + 3, height + 1), generator.integers(left + 3, width + 1)
        label[top:bottom, left:right] = generator.integers(1, 4)
    image = np.repeat(label.astype(np.uint8)[..., None], 3, axis=2) * 60 + generator.integers(0, 40, (height, width, 1))
    label[:2] = 255
    return image.astype(np.uint8), label


class ToyBenchmark:
    name, split, num_classes, ignore_index, has_labels = "toy", "val", 4, 255, True
    binary = False
    category_names = ("background", "circle", "square", "star")
    raw_category_ids = RAW_IDS
    protocol = {"image size": "full resolution"}  # noqa: RUF012

    def __init__(self, num_images: int, annotations_path: Path | None = None) -> None:
        self.num_images, self.annotations_path = num_images, annotations_path
        self.image_ids = [100 + 3 * index for index in range(num_images)]
        if annotations_path is not None and not annotations_path.exists():
            annotations_path.write_text(json.dumps(self.document()))

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> EvaluationItem:
        image, label = draw(index)
        return EvaluationItem(image, label, label.shape, self.image_ids[index], Path(f"{index}.jpg"))

    def document(self) -> dict[str, Any]:
        annotations, images = [], []
        for index, image_id in enumerate(self.image_ids):
            _, label = draw(index)
            images.append({"id": image_id, "height": label.shape[0], "width": label.shape[1]})
            for category in range(1, 4):
                mask = label == category
                if mask.any():
                    annotations.append({
                        "id": len(annotations) + 1, "image_id": image_id, "category_id": RAW_IDS[category],
                        "iscrowd": 0, "area": int(mask.sum()),
                        "segmentation": encode_masks(torch.from_numpy(mask[None]))[0],
                    })  # fmt: skip
        categories = [{"id": RAW_IDS[index], "name": self.category_names[index]} for index in range(1, 4)]
        return {"images": images, "annotations": annotations, "categories": categories}


def predict(images: Tensor, size: tuple[int, int]) -> list[Prediction]:
    """Read the class off the brightness, wrongly where the noise is large; one instance per class found."""
    classes = ((images[..., 0].float() + 26) / 60).floor().clamp(0, 3).long()
    predictions = []
    for labels in classes:
        found = labels.unique()
        found = found[found > 0]
        masks = labels[None] == found[:, None, None]
        scores = masks.float().mean((1, 2))
        predictions.append(Prediction(labels, Instances(masks, scores, found)))
    return predictions


def score(num_images: int, annotations_path: Path | None, **options: Any) -> EvaluationResult:
    return evaluate_semantic_and_instances(predict, ToyBenchmark(num_images, annotations_path), **options)


def score_in_rank(num_images: int, annotations_path: Path, output_dir: Path) -> None:
    """Score as one of several processes and write what this one found."""
    fabric = make_fabric("cpu")
    result = score(num_images, annotations_path, class_agnostic=True)
    found = {"scores": result.scores(), "class_iou": result.semantic.class_iou.tolist(), "records": result.records}
    (output_dir / f"{fabric.global_rank}.json").write_text(json.dumps(found))
