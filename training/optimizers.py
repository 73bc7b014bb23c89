"""Optimisers of the training recipes. Next: ``schedules.py``."""

from __future__ import annotations

from typing import Any

from torch.optim import Adam, AdamW


def zutis_optimizer(parameter_groups: list[dict[str, Any]], *, weight_decay: float = 0.05) -> AdamW:
    """AdamW as ZUTIS was trained: betas (0.9, 0.999), eps 1e-8, decay on everything, norms and biases included.

    Args:
        parameter_groups: as ``Zutis.parameter_groups`` gives them, rates included.
        weight_decay: decoupled decay of every parameter.
    """
    return AdamW(parameter_groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)


def deeplab_optimizer(parameter_groups: list[dict[str, Any]], *, weight_decay: float = 2e-4) -> Adam:
    """Adam as NamedMask and ReCo+ were trained: betas (0.9, 0.999), eps 1e-8, L2 on everything.

    Args:
        parameter_groups: as ``DeepLabV3Plus.parameter_groups`` gives them, rates included.
        weight_decay: factor of the parameters that is added to their gradients (norms and biases included).
    """
    return Adam(parameter_groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay, fused=True)
