"""Parity adapters of the ZUTIS network, its text embeddings, predictions, losses and training step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from networks.clip import clip_from_state_dict
from networks.position import position_sine, resample_position_embedding
from networks.text import encode_categories, encode_prompt_ensemble
from networks.tokenizer import tokenize
from networks.zutis import Zutis, zutis_from_state_dict
from tests.parity.compare import Case
from tests.parity.registry import adapter

Arrays = dict[str, np.ndarray]
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))


def as_tensors(weights: Arrays) -> dict[str, Tensor]:
    """The filled checkpoint as tensors."""
    return {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}


def as_batch(images: list[np.ndarray]) -> Tensor:
    """uint8 pictures of one size as a normalised batch (B, 3, H, W)."""
    batch = torch.from_numpy(np.stack(images)).float() / 255
    return ((batch - MEAN) / STD).permute(0, 3, 1, 2)


@adapter("zutis_tokenizer")
def run_tokenizer(case: Case, weights: Arrays) -> Arrays:
    """Strings to ids."""
    return {"out_ids": tokenize(case.settings["strings"], case.settings["context_length"]).numpy()}


@adapter("zutis_clip_text")
def run_clip_text(case: Case, weights: Arrays) -> Arrays:
    """Ids through the text tower, in float32 or as the mixed model."""
    clip = clip_from_state_dict(as_tensors(weights), half=case.settings["precision"] == "mixed_float16", towers=("text",))
    with torch.inference_mode():
        features = clip.encode_text(torch.from_numpy(case.inputs["in_ids"])).float()
    normalised = features / features.norm(dim=-1, keepdim=True)
    return {"out_embedding": features.numpy(), "out_normalised": normalised.numpy()}


@adapter("zutis_clip_image")
def run_clip_image(case: Case, weights: Arrays) -> Arrays:
    """Pictures through preprocessing and image tower."""
    clip = clip_from_state_dict(as_tensors(weights), towers=("image",))
    pixels = torch.stack([clip.preprocess(image) for image in case.numbered("in_image")])
    with torch.inference_mode():
        features = clip.encode_image(pixels)
    return {
        "out_embedding": features.numpy(),
        "out_preprocessed": pixels.numpy(),
        "out_preprocessed_sum": pixels.double().sum((2, 3)).numpy(),
    }


@adapter("zutis_prompt_ensemble")
def run_prompt_ensemble(case: Case, weights: Arrays) -> Arrays:
    """Categories and templates to one embedding per category."""
    clip = clip_from_state_dict(as_tensors(weights), towers=("text",))
    embedding = encode_prompt_ensemble(clip, case.settings["categories"], case.settings["templates"])
    return {"out_embedding": embedding.numpy()}


@adapter("zutis_encoder_from_clip")
def run_encoder_from_clip(case: Case, weights: Arrays) -> Arrays:
    """A segmenter from a CLIP: its encoder on a picture, and its text embeddings."""
    clip = clip_from_state_dict(as_tensors(weights))
    network = Zutis.from_clip(clip).eval()
    with torch.inference_mode():
        tokens = network.encoder(as_batch([case.inputs["in_image"]])).flatten(1, 2)
    return {
        "out_tokens": tokens.numpy(),
        "out_text_embeddings": encode_categories(clip, case.settings["categories"]).numpy(),
        "out_conv1_first8": network.encoder.conv1.weight.detach().flatten()[:8].numpy(),
        "out_ln_pre_first8": network.encoder.ln_pre.weight.detach()[:8].numpy(),
    }


@adapter("zutis_position_embedding")
def run_position_embedding(case: Case, weights: Arrays) -> Arrays:
    """A learnt table on other grids."""
    table = torch.from_numpy(case.inputs["in_position_embedding"])
    sizes = [tuple(size) for size in case.settings["sizes"]]
    return {f"out_resampled{i}": resample_position_embedding(table, size).numpy() for i, size in enumerate(sizes)}


@adapter("zutis_position_sine")
def run_position_sine(case: Case, weights: Arrays) -> Arrays:
    """Sine embeddings of several grids."""
    features, sizes = case.settings["features_per_axis"], case.settings["sizes"]
    return {f"out_embedding{i}": position_sine(tuple(size), features).numpy() for i, size in enumerate(sizes)}
