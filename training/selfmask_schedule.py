"""Optimiser of SelfMask's training, and its rate: the schedule the paper means, and the one its release runs."""

from __future__ import annotations

import torch
from torch import nn


def build_optimizer(network: nn.Module, *, lr: float = 6e-6, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.999) over all parameters of the network, in one group.

    Source: SelfMask, released settings; the configured momentum of 0.9 never reaches the optimiser.
    """
    return torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)


def released_poly_factor(
    step: int,
    *,
    iters_per_epoch: int,
    num_epochs: int,
    warmup_iters: int = 0,
    extra_query: bool = True,
    power: float = 0.9,
) -> float:
    """Factor of the learning rate that the optimiser sees after ``step`` steps of the released schedule.

    The schedule's counter starts again after every epoch, and each query moves it: building the schedule is the first
    query, every step one more, and the progress bar asks once more after each step. So the counter takes the values
    0, 1, 3, 5, ..., n - 1, 1, 3, ...: the rate saw-tooths within the first 1/``num_epochs`` of the curve and never
    comes near 0.

    Args:
        step: number of optimiser steps taken, >= 0.
        iters_per_epoch: optimiser steps of an epoch, n >= 1.
        num_epochs: epochs of the whole training, >= 1.
        warmup_iters: the factor is t / ``warmup_iters`` while the counter t is smaller.
        extra_query: whether the progress bar's query counts, as in the release.
        power: of the decay (1 - t / (n · epochs)) ** power.

    Returns:
        The factor, in [0, 1].

    Raises:
        ValueError: if a count is out of its range.

    Source: SelfMask, released training code; the schedule that was meant is `training.schedules.poly_lr`.
    """
    if step < 0 or iters_per_epoch < 1 or num_epochs < 1:
        raise ValueError(f"expected step >= 0, iterations and epochs >= 1, got {step}, {iters_per_epoch}, {num_epochs}")
    query = step if not extra_query else max(0, 2 * step - 1)
    counter = 0 if query == 0 else (query - 1) % iters_per_epoch + 1
    if counter < warmup_iters:
        return counter / warmup_iters
    return max(0.0, 1 - counter / (iters_per_epoch * num_epochs)) ** power
