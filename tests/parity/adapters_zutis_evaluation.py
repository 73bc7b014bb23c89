"""Parity adapters of the evaluation: semantic scores and COCO metrics."""

from __future__ import annotations

import json

import numpy as np
import torch

from evaluation.coco import evaluate_coco
from evaluation.semantic import SemanticScores
from tests.parity.compare import Case
from tests.parity.registry import adapter


@adapter("zutis_semantic_scores")
def semantic_scores(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    scores = SemanticScores(case.settings["n_classes"])
    pairs = zip(case.numbered("in_labels"), case.numbered("in_predictions"), strict=True)
    for labels, predictions in pairs:
        scores.update(torch.from_numpy(labels), torch.from_numpy(predictions))
    result = scores.compute()
    return {
        "out_confusion": scores.confusion(),
        "out_class_iou": result.class_iou,
        "out_scores": np.array(
            [result.pixel_accuracy, result.mean_accuracy, result.frequency_weighted_iou, result.mean_iou]
        ),
    }


@adapter("zutis_coco_metrics")
def coco_metrics(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    stats = evaluate_coco(
        json.loads(str(case.inputs["in_annotations"])),
        json.loads(str(case.inputs["in_predictions"])),
        use_categories=case.settings["use_categories"],
        max_dets=case.settings["max_dets"],
    )
    values = np.array(list(stats.values()))  # AP, 50, 75, three sizes, AR of three max_dets, three sizes
    return {"out_overall": values[[0, 1, 2, 6, 7, 8]], "out_by_size": values[[3, 4, 5, 9, 10, 11]]}
