"""Adapters of the SelfMask cases about training, voting and scores (see `registry.py`)."""

from __future__ import annotations

import numpy as np
import torch

from datasets.geometric import GeometricDraws
from evaluation.saliency import saliency_metrics
from networks.selfmask import selfmask_from_state_dict
from pseudo_labels.spectral import cosine_affinity, smallest_eigenpairs, spectral_labels
from pseudo_labels.voting import vote
from tests.parity.compare import Case
from tests.parity.registry import adapter
from training.selfmask_data import augment_geometry
from training.selfmask_losses import selfmask_criterion
from training.selfmask_schedule import build_optimizer, released_poly_factor

Arrays = dict[str, np.ndarray]


@adapter("selfmask_train_loss")
def train_loss(case: Case, weights: Arrays) -> Arrays:
    mask_probs = torch.from_numpy(case.inputs["in_mask_pred"]).requires_grad_()
    objectness = torch.from_numpy(case.inputs["in_objectness"]).requires_grad_()
    masks = torch.from_numpy(case.inputs["in_gt"])
    losses = selfmask_criterion(
        mask_probs,
        objectness[..., 0],
        masks[:, 0],
        weight_dice=case.settings["weight_dice"],
        weight_ranking=case.settings["weight_ranking"],
    )
    losses.loss.backward()
    return {
        "out_loss": losses.loss.detach().numpy(),
        "out_avg_dice": losses.dice.double().numpy(),
        "out_avg_ranking": losses.ranking.double().numpy(),
        "out_avg_iou": losses.iou.double().numpy(),
        "out_best_query_last_layer": losses.best_queries.numpy(),
        "out_grad_mask_pred": mask_probs.grad.numpy(),
        "out_grad_objectness": objectness.grad.numpy(),
    }


@adapter("selfmask_train_step")
def train_step(case: Case, weights: Arrays) -> Arrays:
    network = selfmask_from_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}).train()
    optimizer = build_optimizer(network, lr=case.settings["lr"], weight_decay=case.settings["weight_decay"])
    images, masks = (torch.from_numpy(case.inputs[name]) for name in ("in_x", "in_gt"))
    losses, outputs, grad_norms = [], [], []
    for _ in range(case.settings["steps"]):
        output = network(images)
        loss = selfmask_criterion(output.mask_pred, output.objectness[..., 0], masks[:, 0]).loss
        optimizer.zero_grad()
        loss.backward()
        parameters = dict(network.named_parameters())
        grad_norms.append([float(parameters[name].grad.norm()) for name in case.settings["parameter_names"]])
        optimizer.step()
        losses.append(float(loss.detach()))
        outputs.append(output)
    return {
        "out_losses": np.array(losses),
        "out_grad_norms": np.array(grad_norms[0]),
        "out_mask_pred_first": outputs[0].mask_pred[:, 0].detach().numpy(),
        "out_mask_pred_last": outputs[0].mask_pred[:, -1].detach().numpy(),
        "out_objectness": outputs[0].objectness.detach().numpy(),
    }


@adapter("selfmask_poly_lr")
def poly_lr(case: Case, weights: Arrays) -> Arrays:
    settings = case.settings
    factors = [
        released_poly_factor(
            step,
            iters_per_epoch=settings["iters_per_epoch"],
            num_epochs=settings["epochs"],
            warmup_iters=settings["warmup_iters"],
            extra_query=settings["extra_query_per_iteration"],
        )
        for step in range(settings["steps"] + 1)
    ]
    return {"out_lr": np.array([settings["base_lr"] * factor for factor in factors])}


@adapter("selfmask_saliency_metrics")
def metrics(case: Case, weights: Arrays) -> Arrays:
    pairs = zip(case.numbered("in_pred"), case.numbered("in_gt"), strict=True)
    rows = [saliency_metrics(probs, truth) for probs, truth in pairs]
    return {"out_metrics": np.array([[row[name] for name in case.settings["columns"]] for row in rows])}


@adapter("selfmask_voting")
def voting(case: Case, weights: Arrays) -> Arrays:
    candidates = case.inputs["in_candidates"]
    result = vote(candidates, remove_long_masks=case.settings["remove_long_masks"])
    return {"out_kept": result.kept, "out_winner": np.array(result.winner), "out_mask": candidates[result.winner]}


@adapter("selfmask_spectral")
def spectral(case: Case, weights: Arrays) -> Arrays:
    features, k = torch.from_numpy(case.inputs["in_features"])[0], case.settings["k"]
    affinity = cosine_affinity(features.flatten(1).T)
    eigenvalues, _ = smallest_eigenpairs(affinity, k)
    return {
        "out_adjacency": affinity.rows(0, case.settings["adjacency_rows"])[None].numpy(),
        "out_degree": affinity.degrees[None].numpy(),
        "out_eigenvalues": eigenvalues,
        "out_labels": spectral_labels(features, [k])[0][None],
    }


@adapter("selfmask_geometric")
def geometric(case: Case, weights: Arrays) -> Arrays:
    draws = case.settings["draws"]
    vertical, horizontal = draws["padding"]
    decisions = GeometricDraws(
        draws["scale"], vertical == "top", horizontal == "left", draws["top"], draws["left"], draws["flip"]
    )
    image, mask = augment_geometry(
        case.inputs["in_image"], case.inputs["in_mask"][0], decisions, crop_size=case.settings["crop"]
    )
    return {"out_image": image, "out_mask": mask[None]}
