"""Ranks: the same calls work in one process and under `torchrun`.

Before `torch.distributed` is initialised, `rank` and `world_size` follow torchrun's environment variables, so that
stages which only share out files need no process group.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

Item = TypeVar("Item")
_PATIENCE = timedelta(days=7)


def is_initialised() -> bool:
    """Whether a process group exists, so that ranks can talk to each other."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 .. world_size() - 1."""
    return dist.get_rank() if is_initialised() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if is_initialised() else int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process logs and writes shared files."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank is here; nothing to do without a process group."""
    if is_initialised() and dist.get_world_size() > 1:
        dist.barrier()


def leave_group(*, wait: bool) -> None:
    """Take this process out of the process group, if there is one: the last thing that a command does.

    A process that ends inside its group may be aborted by threads that still talk to the others.

    Args:
        wait: for all ranks to come here; one that failed has closed its connections, which ends the waiting.
    """
    if not is_initialised():
        return
    if wait:
        with contextlib.suppress(RuntimeError):
            barrier()
    dist.destroy_process_group()


def shard(sequence: Sequence[Item]) -> Sequence[Item]:
    """This rank's part of a sequence: items rank, rank + world_size, rank + 2 * world_size, ..."""
    return sequence[rank() :: world_size()]


def all_gather_objects(obj: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """One object of every rank, in rank order, on every rank; `[obj]` without a process group.

    Args:
        obj: anything that can be pickled.
        group: see `patient_group`; None: the usual one, whose ranks may be some minutes apart at most.
    """
    if not is_initialised() or dist.get_world_size() == 1:
        return [obj]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, obj, group=group)
    return gathered


def patient_group() -> dist.ProcessGroup | None:
    """A group of all ranks that may wait for each other for days, for stages of unequal length; all ranks have to ask.

    The usual group gives up after minutes, so that a rank that died is noticed. None without a process group.
    """
    if not is_initialised() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=_PATIENCE)


def on_main(work: Callable[[], object]) -> None:
    """Let rank zero do what is done once, while the others wait for as long as it takes.

    Args:
        work: called on rank zero.

    Raises:
        UserError: that of rank zero, on every rank.
    """
    group, problem = patient_group(), None
    if is_main():
        try:
            work()
        except UserError as error:
            problem = error
    problem = all_gather_objects(problem, group)[0]
    if problem is not None:
        raise problem


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of a tensor over the ranks, as a new tensor on the same device.

    Args:
        tensor: same shape and dtype on every rank; any device. It is moved to the GPU for NCCL where needed.
    """
    total = tensor.detach().clone()
    if not is_initialised() or dist.get_world_size() == 1:
        return total
    if dist.get_backend() == "nccl" and total.device.type != "cuda":
        on_gpu = total.to(torch.device("cuda", torch.cuda.current_device()))
        dist.all_reduce(on_gpu)
        return on_gpu.to(tensor.device)
    dist.all_reduce(total)
    return total
