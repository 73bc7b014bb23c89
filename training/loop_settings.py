"""What the training loop is told, what it tells a training step, and what it returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class LoopSettings:
    """How a run goes; see the README for the YAML keys that map onto it."""

    num_iterations: int  # optimiser steps of the whole run
    batch_size: int  # samples per step, over all processes and accumulation steps
    log_interval: int = 250  # iterations between lines of losses; only then is anything read from the device
    eval_interval: int = 1000  # iterations between evaluations; 0: none
    checkpoint_interval: int | None = None  # iterations between checkpoints; None: as eval_interval (or at the end)
    accumulate_steps: int = 1  # forward passes per process and step: less memory, same result
    max_gradient_norm: float | None = None  # clip the norm of all gradients together; None: no clipping
    precision: str = "fp32"  # "fp32", or "bf16" / "fp16" mixed
    device: str = "auto"  # "auto", "cpu", "cuda" or "cuda:<number>"
    num_workers: int = 0  # data loader processes per training process
    seed: int = 0
    compile: bool = False  # torch.compile the network: minutes at the start, faster steps
    channels_last: bool = False  # memory format of convolutions; pays off on recent GPUs
    pin_memory: bool = True  # page-locked batches; ignored on the CPU

    @property
    def decisive(self) -> dict[str, Any]:
        """The settings that a resumed run has to share with its checkpoint to reach the same losses."""
        names = ("num_iterations", "batch_size", "precision", "seed", "max_gradient_norm")
        return {name: value for name, value in asdict(self).items() if name in names}


@dataclass(frozen=True)
class Step:
    """What a training step is told besides its batch.

    The loss it returns must be such that the *mean over all parts* of the step is the loss of the whole batch. A mean
    over samples is that by itself. A mean over something else (non-ignored pixels) is made so by dividing this part's
    sum by `mean_counts`, the number of those things per part, averaged over all parts of the step.
    """

    iteration: int  # steps done before this one
    num_parts: int  # processes x accumulation steps
    mean_counts: Tensor | None  # what `counts` returned, averaged over all parts; None without `counts`


@dataclass(frozen=True)
class FitResult:
    """What a run came to."""

    iteration: int  # steps done
    first_iteration: int  # steps already done when this start began; 0: not resumed
    losses: dict[str, float]  # the last line of logged losses; empty if nothing was left to do
    best: dict[str, Any]  # {"metric", "value", "iteration"}; value None without evaluation
    metrics: dict[str, float] = field(default_factory=dict)  # the last evaluation
