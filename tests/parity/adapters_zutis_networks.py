"""Parity adapters of the ZUTIS network, its text embeddings, predictions, losses and training step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.metadata import category_table
from evaluation.instances import instances_to_records
from networks.clip import clip_from_state_dict
from networks.interpolation import resize
from networks.mask_nms import mask_nms
from networks.position import position_sine, resample_position_embedding
from networks.text import encode_categories, encode_prompt_ensemble
from networks.tokenizer import tokenize
from networks.zutis import Zutis, zutis_from_state_dict
from networks.zutis_prediction import Instances, predict_instances, predict_semantic, semantic_logits
from tests.parity.compare import Case
from tests.parity.registry import adapter
from training.losses import zutis_criterion
from training.optimizers import zutis_optimizer
from training.schedules import PolyLR, poly_lr

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
    clip = clip_from_state_dict(
        as_tensors(weights), half=case.settings["precision"] == "mixed_float16", towers=("text",)
    )
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


def as_records(instances: list[Instances], settings: dict[str, Any]) -> np.ndarray:
    """The instances of all pictures as one JSON document of records."""
    raw_ids = category_table("coco2017").raw_category_ids if settings.get("raw_coco_ids") else None
    names = settings.get("label_to_name")
    image_ids = settings.get("image_ids") or [settings.get("image_id")]
    records = [
        record
        for image_id, found in zip(image_ids, instances, strict=True)
        for record in instances_to_records(
            *found,
            image_id=image_id,
            raw_category_ids=raw_ids,
            category_names=names and [names[str(label)] for label in range(len(names))],
        )
    ]
    return np.array(json.dumps(records))


@adapter("zutis_forward")
def run_forward(case: Case, weights: Arrays) -> Arrays:
    """Pictures through the whole network, and predictions from what it finds."""
    settings, steps = case.settings, case.settings["stored_steps"]
    network = zutis_from_state_dict(as_tensors(weights), num_heads=settings["n_heads"])
    images, text = as_batch(case.numbered("in_image")), torch.from_numpy(case.inputs["in_text"])
    size, step = tuple(settings["predict_size"]), steps["patch_tokens"]
    with torch.inference_mode():
        tokens = network.encoder(images).flatten(1, 2)
        proposals, patch_tokens = network(images, all_layers=True)
        instances = predict_instances(proposals, patch_tokens, text, size, nms=settings["nms"])
        semantic, logits = predict_semantic(patch_tokens, text, size), semantic_logits(patch_tokens, text)
    stored = proposals[:, settings["stored_layers"], :: steps["queries"]]
    return {
        "out_encoder_tokens": tokens[:, :: steps["encoder_tokens"]].numpy(),
        "out_patch_tokens": patch_tokens[:, ::step, ::step].numpy(),
        "out_mask_proposals": stored.reshape(case.expected["out_mask_proposals"].shape).numpy(),
        "out_logits": logits.numpy(),
        "out_semantic": semantic.numpy(),
        "out_instances": as_records(instances, settings),
    }


@adapter("zutis_predict")
def run_predict(case: Case, weights: Arrays) -> Arrays:
    """Given network outputs to labels and instances."""
    settings, layers = case.settings, case.settings["n_layers"]
    proposals, tokens, text = (
        torch.from_numpy(case.inputs[name]) for name in ("in_mask_proposals", "in_patch_tokens", "in_text")
    )
    if layers is not None:
        zeros = torch.zeros_like(proposals)
        proposals = torch.stack([zeros] * (layers - 1) + [proposals], dim=1)
    size = settings["size"] and tuple(settings["size"])
    logits = semantic_logits(tokens, text)
    return {
        "out_instances": as_records(predict_instances(proposals, tokens, text, size, nms=settings["nms"]), settings),
        "out_semantic": predict_semantic(tokens, text, size).numpy(),
        "out_logits_stride7": (resize(logits, size) if size else logits)[..., ::7, ::7].numpy(),
    }


@adapter("zutis_nms")
def run_nms(case: Case, weights: Arrays) -> Arrays:
    """Masks, scores, categories to the records that remain."""
    settings = case.settings
    kept = mask_nms(
        *(torch.from_numpy(case.inputs[name]) for name in ("in_masks", "in_scores", "in_categories")),
        kind=settings["nms"],
        iou_threshold=settings["iou_threshold"],
        sigma=settings["sigma"],
        score_threshold=settings["score_threshold"],
    )
    return {"out_instances": as_records([Instances(*kept)], settings)}


@adapter("zutis_criterion")
def run_criterion(case: Case, weights: Arrays) -> Arrays:
    """Losses, matching and gradients of given outputs."""
    inputs = {name: torch.from_numpy(value) for name, value in case.inputs.items()}
    proposals, tokens = (inputs[name].requires_grad_() for name in ("in_mask_proposals", "in_patch_tokens"))
    result = zutis_criterion(
        proposals,
        tokens,
        inputs["in_text"],
        [torch.from_numpy(masks) for masks in case.numbered("in_instances")],
        inputs["in_semantic"],
        ignore_index=case.settings["ignore_index"],
        weight_ce=case.settings["weight_ce_loss"],
    )
    result.loss.backward()
    outputs = {
        "out_ce_loss": result.ce_loss.numpy(),
        "out_mask_loss": result.mask_loss.numpy(),
        "out_loss": result.loss.detach().numpy(),
        "out_grad_mask_proposals": proposals.grad.numpy(),
        "out_grad_patch_tokens": tokens.grad.numpy(),
    }
    if result.last_match is not None:
        outputs["out_last_instance_indices"], outputs["out_last_query_indices"] = result.last_match
    return outputs


@adapter("zutis_train_step")
def run_train_step(case: Case, weights: Arrays) -> Arrays:
    """Optimiser steps on one batch."""
    settings = case.settings
    network = zutis_from_state_dict(as_tensors(weights), stop_gradient=settings["stop_gradient"]).train()
    optimizer = zutis_optimizer(network.parameter_groups())
    schedule = PolyLR(optimizer, settings["n_iters"])
    images = as_batch(case.numbered("in_image"))
    masks = [torch.from_numpy(array) for array in case.numbered("in_instances")]
    text, semantic = torch.from_numpy(case.inputs["in_text"]), torch.from_numpy(case.inputs["in_semantic"])
    options = {"ignore_index": settings["ignore_index"], "weight_ce": settings["weight_ce_loss"]}
    parameters = dict(network.named_parameters())
    before = {name: value.detach().clone() for name, value in parameters.items()}
    losses, norms = [], {}
    for step in range(settings["steps"]):
        result = zutis_criterion(*network(images), text, masks, semantic, **options)
        optimizer.zero_grad()
        result.loss.backward()
        if step == 0:
            norms = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in parameters.items()}
        optimizer.step()
        schedule.step()
        losses.append([result.loss.item(), result.mask_loss.item(), result.ce_loss.item()])
    names = settings["parameter_names"]
    return {
        "out_losses": np.array(losses),
        "out_grad_norms": np.array([norms[name] for name in names]),
        "out_param_change_norms": np.array([(parameters[name] - before[name]).norm().item() for name in names]),
    }


@adapter("zutis_poly_lr")
def run_poly_lr(case: Case, weights: Arrays) -> Arrays:
    """Rates of all groups at every step."""
    s = case.settings
    rates = [
        [poly_lr(base, step, s["n_iters"], s["power"], s["min_lr"]) for base in s["base_lrs"]]
        for step in range(s["n_iters"] + 1)
    ]
    return {"out_lr": np.array(rates)}
