"""ReCo cases about benchmarks and scores."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat

from datasets.batch import normalise_images
from datasets.build import build_benchmark
from tests.parity.adapters_zutis_data import write_png
from tests.parity.adapters_zutis_evaluation import semantic_scores
from tests.parity.compare import Case
from tests.parity.registry import adapter

adapter("reco_semantic_scores")(semantic_scores)


@adapter("reco_datasets")
def run_datasets(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Network input and labels of one picture, read from the folders of every benchmark."""
    rows, columns = case.settings["image_steps"]
    outputs = {}
    for entry in case.settings["datasets"]:
        key = entry["key"]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, entry["folder"])
            write_dataset(root, entry, case.inputs["in_image"], case.inputs[f"in_{key}_raw"])
            (item,) = build_benchmark(entry["dataset"], root, entry["split"])
        image = normalise_images(torch.from_numpy(item.image).permute(2, 0, 1)[None])[0].numpy()
        outputs[f"out_{key}_label"] = item.label
        outputs[f"out_{key}_image_sub"] = image[:, ::rows, ::columns]
        outputs[f"out_{key}_image_shape"] = np.array(image.shape)
        outputs[f"out_{key}_image_mean"] = image.mean((1, 2), dtype=np.float64)
    return outputs


def write_dataset(root: Path, entry: dict, image: np.ndarray, raw: np.ndarray) -> None:
    """The picture, its label and the lists of one data set where its files belong."""
    root.mkdir()
    write_png(root / entry["image"], image)
    label_path = root / entry["label"]
    if label_path.suffix == ".mat":
        label_path.parent.mkdir(parents=True)
        savemat(label_path, {"S": raw})
    else:
        write_png(label_path, raw)
    for name, text in entry["text_files"].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
