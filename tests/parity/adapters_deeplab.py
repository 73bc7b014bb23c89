"""Adapters of the cases about DeepLabv3+, the segmenter of NamedMask and ReCo+ (see `registry.py`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from networks.deeplab import DeepLabV3Plus, deeplab_from_state_dict
from networks.deeplab_prediction import label_pixels, predict_logits
from networks.interpolation import resize
from tests.parity.compare import Case
from tests.parity.registry import adapter
from training.optimizers import deeplab_optimizer
from training.schedules import PolyLR
from training.semantic_step import semantic_loss
from utils.normalisation import normalise_images

Arrays = dict[str, np.ndarray]


def _deeplab(case: Case, weights: Arrays) -> DeepLabV3Plus:
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    return deeplab_from_state_dict(state, num_classes=case.settings["n_classes"], source=case.name)


@adapter("namedmask_deeplab")
@torch.inference_mode()
def run_namedmask_forward(case: Case, weights: Arrays) -> Arrays:
    """A normalised picture through backbone, pyramid and decoder, to labels."""
    network, images = _deeplab(case, weights), torch.from_numpy(case.inputs["in_x"])
    low, high = network.backbone.low_and_high(images)
    logits = network(images)
    size = images.shape[2:]
    return {
        "out_logits_stride4": logits.numpy(),
        "out_logits_every_5th_pixel": resize(logits, size)[..., ::5, ::5].numpy(),
        "out_argmax": label_pixels(logits, size).numpy(),
        "out_aspp_channel_mean": network.classifier.aspp(high).mean(dim=(2, 3)).numpy(),
        "out_backbone_out_channel_mean": high.mean(dim=(2, 3)).numpy(),
        "out_low_level_every_16th_channel": low[:, ::16].numpy(),
    }


@adapter("reco_deeplab")
@torch.inference_mode()
def run_reco_forward(case: Case, weights: Arrays) -> Arrays:
    """Pictures to logits at their own size."""
    network, images = _deeplab(case, weights), torch.from_numpy(case.inputs["in_images"])
    low, high = network.backbone.low_and_high(normalise_images(images.permute(0, 3, 1, 2)))
    return {
        "out_logits": predict_logits(network, images, images.shape[1:3]).numpy(),
        "out_low_level_mean": low.mean().numpy(),
        "out_backbone_mean": high.mean().numpy(),
        "out_backbone_shape": np.array(high.shape),
    }


class _Training:
    """Optimiser steps on one batch, and what the first of them left behind.

    Attributes:
        losses: before each step.
        logits: of the first forward pass, at full size.
        gradients: of the first backward pass.
        buffers, parameters: after the first step.
        before: parameters at the start.
        rates: of backbone and head in each step.
    """

    def __init__(self, case: Case, weights: Arrays, images: Tensor, labels: Tensor) -> None:
        settings = case.settings
        network = _deeplab(case, weights).train()
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = settings["dropout"]
        optimizer = deeplab_optimizer(network.parameter_groups())
        schedule = PolyLR(optimizer, settings["n_iters"])
        self.schedule, self.losses, self.rates = schedule, [], []
        self.before = _copy(network.named_parameters())
        for step in range(settings["steps"]):
            logits = network(images)
            loss = semantic_loss(logits, labels, settings["ignore_index"])
            optimizer.zero_grad()
            loss.backward()
            self.losses.append(loss.item())
            self.rates.append(schedule.get_last_lr())
            if step == 0:
                self.logits = resize(logits.detach(), labels.shape[1:])
                self.gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
            optimizer.step()
            schedule.step()
            if step == 0:
                self.buffers, self.parameters = _copy(network.named_buffers()), _copy(network.named_parameters())

    def gradient_norms(self, names: list[str]) -> np.ndarray:
        return np.array([self.gradients[name].norm().item() for name in names])

    def mean_updates(self, names: list[str]) -> np.ndarray:
        return np.array([(self.parameters[name] - self.before[name]).abs().mean().item() for name in names])


def _copy(named: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in named}


@adapter("namedmask_train_step")
def run_namedmask_training(case: Case, weights: Arrays) -> Arrays:
    """Optimiser steps on normalised pictures."""
    images, labels = (torch.from_numpy(case.inputs[name]) for name in ("in_x", "in_labels"))
    training = _Training(case, weights, images, labels)
    return {
        "out_losses": np.array(training.losses),
        "out_grad_norms": training.gradient_norms(case.settings["parameter_names"]),
        "out_grad_bias": training.gradients["classifier.classifier.3.bias"].numpy(),
        "out_logits_every_7th_pixel": training.logits[..., ::7, ::7].numpy(),
        "out_bn1_running_mean": training.buffers["backbone.bn1.running_mean"].numpy(),
        "out_aspp4_running_var": training.buffers["classifier.aspp.convs.4.2.running_var"].numpy(),
        "out_bias_after_step": training.parameters["classifier.classifier.3.bias"].numpy(),
        "out_lrs": np.array(training.rates),
    }


@adapter("reco_train_step")
def run_reco_training(case: Case, weights: Arrays) -> Arrays:
    """Optimiser steps on pictures, and the learning rates of a whole schedule."""
    images, labels = (torch.from_numpy(case.inputs[name]) for name in ("in_images", "in_labels"))
    # In the memory format of the reference: rounding decides much in a batch of two.
    training = _Training(case, weights, normalise_images(images.permute(0, 3, 1, 2).contiguous()), labels)
    names = case.settings["parameter_names"]
    return {
        "out_losses": np.array(training.losses),
        "out_logits_mean_std": np.array([training.logits.mean().item(), training.logits.std().item()]),
        "out_grad_norms": training.gradient_norms(names),
        "out_bn1_running_mean": training.buffers["backbone.bn1.running_mean"].numpy(),
        "out_project_running_var": training.buffers["classifier.project.1.running_var"].numpy(),
        "out_bias_after_step": training.parameters["classifier.classifier.3.bias"].numpy(),
        "out_mean_abs_update": training.mean_updates(names),
        "out_lrs": np.array([training.schedule.rates(iteration) for iteration in case.settings["lr_iterations"]]),
    }
