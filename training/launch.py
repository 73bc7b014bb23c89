"""Processes and precision: one Lightning Fabric for CPU, one GPU, or many GPUs under `torchrun`.

`torchrun` starts the processes; here they only find each other (NCCL between GPUs, gloo between CPUs).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from utils.device import precision_dtype, select_device
from utils.errors import ConfigError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_PLUGINS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def make_fabric(device: str = "auto", precision: str = "fp32", *, has_idle_parameters: bool = True) -> Fabric:
    """Join the process group, if `torchrun` started one, and return the engine that training and evaluation share.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:<number>"; with several processes each takes the GPU of its local rank.
        precision: "fp32", or "bf16" / "fp16" for mixed precision (weights and optimiser stay float32).
        has_idle_parameters: whether a pass may leave some parameters of the network without gradient.

    Returns:
        A launched Fabric; `fabric.device`, `fabric.global_rank` and `fabric.world_size` say where this process is.

    Raises:
        ConfigError: unknown or missing device, unknown precision, fp16 on the CPU, or one GPU named for many processes.
    """
    target = select_device(device)
    _check_precision(precision, target)
    from lightning.fabric import Fabric  # takes seconds: not for what needs no training

    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    if num_processes == 1:
        devices = [target.index or 0] if target.type == "cuda" else 1
        fabric = Fabric(accelerator=target.type, devices=devices, precision=_PLUGINS[precision])
    else:
        fabric = _distributed_fabric(device, target, precision, num_processes, has_idle_parameters)
    fabric.launch()
    return fabric


def evaluation_device(device: str = "auto", precision: str = "fp32") -> torch.device:
    """Join the process group, if `torchrun` started one, and return the device of this process, for evaluation.

    Raises:
        ConfigError: as `make_fabric`.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return make_fabric(device, precision).device
    _check_precision(precision, target := select_device(device))
    return target


def _check_precision(precision: str, target: torch.device) -> None:
    precision_dtype(precision)
    if precision == "fp16" and target.type == "cpu":
        raise ConfigError(
            "precision: fp16 needs a GPU, but the device is the CPU. Use precision=bf16 or precision=fp32."
        )


def _distributed_fabric(
    device: str, target: torch.device, precision: str, num_processes: int, has_idle_parameters: bool
) -> Fabric:
    if device.startswith("cuda:"):
        raise ConfigError(
            f"device: {device!r} names one GPU, but torchrun started {num_processes} processes. "
            f"Use device=cuda (each process takes its own GPU) or start one process."
        )
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    num_local = int(os.environ.get("LOCAL_WORLD_SIZE", str(num_processes)))
    # Images without objects leave a mask branch without gradient on one rank only: DDP has to be told to expect it, and
    # looks for such parameters in every pass.
    strategy = DDPStrategy(
        process_group_backend="nccl" if target.type == "cuda" else "gloo", find_unused_parameters=has_idle_parameters
    )
    return Fabric(
        accelerator=target.type,
        devices=num_local,
        num_nodes=num_processes // num_local,
        strategy=strategy,
        precision=_PLUGINS[precision],
    )
