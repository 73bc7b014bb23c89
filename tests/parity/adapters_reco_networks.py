"""Parity adapters of ReCo's networks: dense CLIP, the image encoder, text features, predictions."""

from __future__ import annotations

import numpy as np
import torch

from networks.clip import clip_from_state_dict
from networks.cosine_maps import text_attention
from networks.dense_clip import dense_clip, text_vectors
from networks.patch_encoders import encoder_from_state_dict
from networks.reco import Reco
from networks.reco_prediction import RecoGrids, predict_labels, score_maps
from tests.parity.adapters_zutis_networks import as_batch, as_tensors
from tests.parity.compare import Case
from tests.parity.registry import adapter

Arrays = dict[str, np.ndarray]


@adapter("reco_dense_clip")
@torch.inference_mode()
def run_dense_clip(case: Case, weights: Arrays) -> Arrays:
    """Pictures to dense features and text attention."""
    settings, text = case.settings, torch.from_numpy(case.inputs["in_text"])
    tower = dense_clip(clip_from_state_dict(as_tensors(weights), towers=("image",)))
    features = tower(as_batch(list(case.inputs["in_images"])))
    size, options = tuple(settings["output_size"]), {"temperature": settings["temperature"]}
    return {
        "out_features": features.numpy(),
        "out_attention": text_attention(features, text, **options).numpy(),
        "out_attention_resized": text_attention(features, text, size, **options).numpy(),
        "out_attention_single": text_attention(features, text[0], size, **options).numpy(),
    }


@adapter("reco_deit_features")
@torch.inference_mode()
def run_deit_features(case: Case, weights: Arrays) -> Arrays:
    """Pictures of several sizes to patch-token maps."""
    encoder = encoder_from_state_dict(as_tensors(weights))
    images = case.numbered("in_image")
    return {f"out_features{i}": encoder(as_batch([image]))[0].numpy() for i, image in enumerate(images)}


@adapter("reco_text")
def run_text(case: Case, weights: Arrays) -> Arrays:
    """Categories to prompt-ensembled text features."""
    clip = clip_from_state_dict(as_tensors(weights), towers=("text",))
    text = text_vectors(clip, case.settings["categories"], case.settings["templates"])
    return {"out_text": text.numpy()}


@adapter("reco_predict")
@torch.inference_mode()
def run_predict(case: Case, weights: Arrays) -> Arrays:
    """Pictures, references and text vectors to score maps and labels."""
    encoder = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    visual = {name: value for name, value in weights.items() if name.startswith("visual.")}
    references, text = (torch.from_numpy(case.inputs[name]) for name in ("in_references", "in_text"))
    network = Reco(
        encoder_from_state_dict(as_tensors(encoder)),
        references,
        tower=dense_clip(clip_from_state_dict(as_tensors(visual), towers=("image",))),
        text=text,
        temperature=case.settings["temperature"],
    )
    images = case.inputs["in_images"]
    size = images.shape[1:3]
    grids = network(as_batch(list(images)))
    return {
        "out_scores": score_maps(grids, size).numpy(),
        "out_scores_without_dense_clip": score_maps(RecoGrids(grids.similarity), size).numpy(),
        "out_labels": predict_labels(grids, size).to(torch.uint8).numpy(),
    }
