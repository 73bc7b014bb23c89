"""Parity adapters of the evaluation: semantic scores, COCO metrics, and a benchmark from files to scores."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from evaluation.coco import evaluate_coco
from evaluation.semantic import SemanticScores
from networks.clip import clip_from_state_dict
from networks.text import encode_categories
from networks.zutis import zutis_from_state_dict
from systems.stages import category_names, open_benchmark
from systems.zutis import Segmenter, score
from tests.parity.compare import Case
from tests.parity.registry import adapter
from utils.config import settings_from_dict


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


@adapter("zutis_evaluate")
def evaluate(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    settings = case.settings
    state_dict = {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    text_tower = {name.removeprefix("clip."): value for name, value in state_dict.items() if name.startswith("clip.")}
    segmenter_weights = {name: value for name, value in state_dict.items() if not name.startswith("clip.")}
    network = zutis_from_state_dict(segmenter_weights, num_heads=settings["n_heads"], source=case.name).eval()
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(case, Path(folder))
        run = settings_from_dict(
            {
                "system": "zutis",
                "dataset_name": settings["dataset"],
                "split": settings["split"],
                "n_categories": settings["n_categories"],
                "dir_val_dataset": folder,
                "nms": settings["nms"],
                "val_dataloader_kwargs": {"num_workers": 0},
            },
            source=case.name,
        )
        names = category_names(run)
        benchmark = open_benchmark(run, names)
        text = encode_categories(clip_from_state_dict(text_tower, towers=("text",)), names)
        result = score(run, Segmenter(network, text, run.nms), benchmark)
    semantic = result.semantic
    outputs = {
        "out_class_iou": semantic.class_iou,
        "out_scores": np.array(
            [semantic.pixel_accuracy, semantic.mean_accuracy, semantic.frequency_weighted_iou, semantic.mean_iou]
        ),
        "out_text_embeddings_first3": text[:3].numpy(),
    }
    if result.coco is not None:
        outputs["out_coco_stats"] = np.array(list(result.coco.values()))
        outputs["out_instances"] = np.array(json.dumps(result.records))
    return outputs


def write_dataset(case: Case, folder: Path) -> None:
    """The pictures and labels of a case where its files belong; PNG bytes whatever the extension says."""
    pairs = zip(case.numbered("in_image"), case.numbered("in_label"), case.settings["files"], strict=True)
    for image, label, files in pairs:
        for pixels, name in ((image, files["image"]), (label, files["label"])):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name, format="PNG")
    if "in_annotations" in case.inputs:
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / "instances_val2017.json").write_text(str(case.inputs["in_annotations"]))
