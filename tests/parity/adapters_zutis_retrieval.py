"""Parity of the retrieval stage of ZUTIS."""

from __future__ import annotations

import json

import numpy as np

from retrieval.archive import retrieve_images
from retrieval.index import ArrayIndex
from tests.parity.compare import Case
from tests.parity.registry import adapter


@adapter("zutis_retrieval")
def run_retrieval(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Text and image embeddings -> image paths per category."""
    settings = case.settings
    parts = zip(settings["index_dirs"], settings["file_names"], case.numbered("in_embeddings"), strict=True)
    indices = [ArrayIndex(embeddings, names, image_dir=folder) for folder, names, embeddings in parts]
    found = retrieve_images(settings["categories"], case.inputs["in_text"], indices, settings["n_images"])
    return {"out_category_to_paths": np.array(json.dumps(found))}
