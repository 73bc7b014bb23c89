"""Facts about a training run before it starts: the training part of `--dry-run`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from training.loop_settings import LoopSettings
from training.samplers import MapDataset
from utils.loader import load_batches


def describe_training(
    model: nn.Module, dataset: MapDataset, collate: Callable[[list[Any]], Any], loop: LoopSettings
) -> dict[str, str]:
    """Read one batch and say how large everything is, without writing: the training part of `--dry-run`.

    Returns:
        Name -> text, to be printed: parameters, samples per step, the batch's tensors, memory of weights and optimiser.

    Raises:
        UserError: whatever reading the samples raises.
    """
    batch = next(load_batches(dataset, [list(range(min(loop.batch_size, 2)))], collate=collate))
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    num_trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {
        "parameters": f"{num_parameters:,}, of which {num_trainable:,} are trained",
        "memory of weights, gradients and AdamW": f"{(num_parameters + 3 * num_trainable) * 4 / 2**20:,.0f} MiB",
        "iterations": f"{loop.num_iterations:,}",
        "samples per step": f"{loop.batch_size}",
        "samples altogether": f"{loop.num_iterations * loop.batch_size:,}",
        "batch (two samples read)": describe_batch(batch),
    }


def describe_batch(batch: Any) -> str:
    """Shapes and types of the tensors in a batch, in one line."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')}{list(batch.shape)}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{name}: {describe_batch(value)}" for name, value in batch.items()) + "}"
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return describe_batch(batch._asdict())
    if isinstance(batch, (list, tuple)):
        return "[" + ", ".join(describe_batch(value) for value in batch) + "]"
    if hasattr(batch, "__dataclass_fields__"):
        return describe_batch({name: getattr(batch, name) for name in batch.__dataclass_fields__})
    return type(batch).__name__
