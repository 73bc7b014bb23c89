"""NamedMask cases about scores."""

from __future__ import annotations

import numpy as np
import torch

from evaluation.binary import BinaryScores
from tests.parity.adapters_zutis_evaluation import semantic_scores
from tests.parity.compare import Case
from tests.parity.registry import adapter

adapter("namedmask_semantic_scores")(semantic_scores)


@adapter("namedmask_binary_iou")
def run_binary_iou(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """IoU of every picture."""
    scores = BinaryScores()
    for labels, predictions in zip(case.inputs["in_labels"], case.inputs["in_predictions"], strict=True):
        scores.update(torch.from_numpy(labels), torch.from_numpy(predictions))
    return {"out_iou": scores.compute().image_iou}
