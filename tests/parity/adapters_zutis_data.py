"""ZUTIS cases about data: training samples, labels of benchmarks, colours, folder names."""

from __future__ import annotations

import numpy as np

from datasets.geometric import GeometricDraws, crop_image, crop_mask, pad_crop, plan_crop
from datasets.photometric import Jitter, PhotometricDraws, apply_photometric
from tests.parity.compare import Case
from tests.parity.registry import adapter


def read_geometric(draws: dict) -> GeometricDraws:
    """The geometric decisions of a case, in the project's words."""
    sides = draws["padding"]
    return GeometricDraws(draws["scale"], "top" in sides, "left" in sides, draws["top"], draws["left"], draws["flip"])


def read_photometric(draws: dict) -> PhotometricDraws:
    """The photometric decisions of a case, in the project's words."""
    jitter = draws["jitter"]
    if jitter is not None:
        jitter = Jitter(**{**jitter, "order": tuple(jitter["order"])})
    return PhotometricDraws(jitter, draws["greyscale"], draws["blur_sigma"])


@adapter("zutis_geometric")
def geometric(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scaled, padded, cropped, flipped picture and mask."""
    image, mask = case.inputs["in_image"], case.inputs["in_mask"].astype(np.int16)
    plan = plan_crop(mask.shape, read_geometric(case.settings["draws"]), case.settings["crop"])
    content, fill = crop_image(image, plan)
    return {
        "out_image": pad_crop(np.asarray(content), plan, fill),
        "out_mask": pad_crop(crop_mask(mask, plan), plan, case.settings["ignore_index"]),
    }


@adapter("zutis_photometric")
def photometric(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Jittered, grey, blurred picture."""
    draws = read_photometric(case.settings["draws"])
    return {"out_image": apply_photometric(case.inputs["in_image"], draws, blur_kernel=case.settings["blur_kernel"])}
