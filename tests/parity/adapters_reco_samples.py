"""Parity adapter of ReCo+'s training samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.labelled_sample import LabelledDraws, make_labelled_sample
from datasets.photometric import PhotometricDraws
from tests.parity.adapters_zutis_data import read_geometric, read_photometric
from tests.parity.compare import Case
from tests.parity.registry import adapter

ROWS, COLUMNS, LABELS = 7, 5, 3  # stored rows and columns of pictures, and both of labels


@adapter("reco_augment")
def run_augment(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Samples of one picture, before and after the changes of colour."""
    settings, outputs = case.settings, {}
    options = {"crop_size": settings["crop"], "ignore_index": settings["ignore_index"]}
    for i, given in enumerate(settings["samples"]):
        colours = read_photometric({"greyscale": False, **given})
        draws = LabelledDraws(read_geometric(given), colours)
        image, labels = case.inputs["in_image"], case.inputs["in_mask"]
        final = make_labelled_sample(image, labels, draws, blur_kernel=settings["blur_kernel"], **options)
        plain = replace(draws, photometric=PhotometricDraws())
        geometric = make_labelled_sample(image, labels, plain, blur_kernel=settings["blur_kernel"], **options)
        outputs[f"out_geometric{i}"] = geometric.image[::ROWS, ::COLUMNS]
        outputs[f"out_mask{i}"] = final.semantic[::LABELS, ::LABELS].astype(np.uint8)
        outputs[f"out_final{i}"] = final.image[::ROWS, ::COLUMNS]
        outputs[f"out_mean{i}"] = final.image.mean((0, 1), dtype=np.float64)
    return outputs
