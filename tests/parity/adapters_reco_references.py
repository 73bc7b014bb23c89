"""Parity adapters of ReCo's reference embeddings: co-segmentation, all categories, the published file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from pseudo_labels.cosegmentation import cosegment
from pseudo_labels.reference_building import CategoryFeatures, build_references, needed_categories
from pseudo_labels.references import ReferenceSettings, read_references
from tests.parity.compare import Case
from tests.parity.registry import adapter

Arrays = dict[str, np.ndarray]


@adapter("reco_cosegment")
def run_cosegment(case: Case, weights: Arrays) -> Arrays:
    """Features of k pictures to weights, seeds and reference."""
    inputs = {name.removeprefix("in_"): torch.from_numpy(value) for name, value in case.inputs.items()}
    result = cosegment(inputs.pop("features"), temperature=case.settings["temperature"], **inputs)
    return {
        "out_weights": result.weights.numpy(),
        "out_seed_index": result.seeds.numpy(),
        "out_reference": result.reference.numpy(),
    }


@adapter("reco_references_build")
def run_references_build(case: Case, weights: Arrays) -> Arrays:
    """Features of all categories to the references of a benchmark and of the context."""
    options, rows = case.settings, {name: row for row, name in enumerate(case.settings["all_categories"])}
    inputs = {name.removeprefix("in_"): torch.from_numpy(value) for name, value in case.inputs.items()}
    settings = ReferenceSettings(
        num_images=options["k"],
        text_attention=options["text_attention"],
        context_elimination=options["context_elimination"],
        context_categories=tuple(options["context_categories"]),
        temperature=options["temperature"],
    )
    needed = needed_categories(options["categories"], settings)
    features = ({key: value[rows[name]] for key, value in inputs.items()} for name in needed)
    found = build_references(options["categories"], (CategoryFeatures(**given) for given in features), settings)
    return {"out_references": found.vectors.numpy(), "out_context": found.context.numpy()}


@adapter("reco_reference_pickle")
def run_reference_pickle(case: Case, weights: Arrays) -> Arrays:
    """The bytes of a published file to names and vectors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "references.pkl"
        path.write_bytes(case.inputs["in_pickle"].tobytes())
        found = read_references(path)
    return {"out_names": np.array(found.names), "out_references": found.vectors.numpy()}
