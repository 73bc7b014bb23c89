"""Parity of the dense CRF of ReCo, ReCo+ and MaskDistill."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from networks.interpolation import resize
from pseudo_labels.dense_crf import DenseCrfSettings, crf_image, dense_crf, dense_crf_labels
from pseudo_labels.network_input import normalise
from tests.parity.compare import Case
from tests.parity.registry import adapter

Arrays = dict[str, np.ndarray]


def _settings(case: Case) -> DenseCrfSettings:
    gaussian, bilateral = case.settings["gaussian"], case.settings["bilateral"]
    return DenseCrfSettings(
        gaussian_sxy=gaussian["sxy"],
        gaussian_weight=gaussian["compat"],
        bilateral_sxy=bilateral["sxy"],
        bilateral_srgb=bilateral["srgb"],
        bilateral_weight=bilateral["compat"],
        iterations=case.settings["iterations"],
    )


@adapter("reco_crf")
def run_reco_crf(case: Case, _: Arrays) -> Arrays:
    image = crf_image(normalise(torch.from_numpy(case.inputs["in_image"])))
    scores, settings = case.inputs["in_logits"], _settings(case)
    return {
        "out_q_1iter": dense_crf(image, scores, replace(settings, iterations=1)),
        "out_q_10iter": dense_crf(image, scores, settings),
        "out_labels": dense_crf_labels(image, scores, settings),
        "out_image_bgr": image,
    }


@adapter("maskdistill_crf")
def run_maskdistill_crf(case: Case, _: Arrays) -> Arrays:
    image = np.ascontiguousarray(case.inputs["in_image"][..., ::-1])
    scores = resize(torch.from_numpy(case.inputs["in_logits"]), image.shape[:2])
    settings, step = replace(_settings(case), min_probability=case.settings["unary_clip"]), case.settings["q_step"]
    return {
        "out_q": dense_crf(image, scores, settings)[:, ::step, ::step],
        "out_argmax": dense_crf_labels(image, scores, settings),
        "out_before": scores.argmax(dim=0).numpy(),
    }
