"""Which sample goes where: every training sample has a position, and nothing else decides who computes it.

Iteration t of a run with a total batch of B uses the positions tB .. tB + B - 1, whatever the number of processes,
accumulation steps or loader workers. Going on after an interruption therefore needs no state of the data loader.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset, Sampler

from utils.errors import ConfigError


class MapDataset(Protocol):
    """What the loop needs of a training set: sample i is a pure function of (seed, i), for any i >= 0."""

    def __getitem__(self, position: int) -> Any: ...


def local_batch_size(batch_size: int, world_size: int, accumulate_steps: int) -> int:
    """Samples in one forward pass of one process.

    Args:
        batch_size: samples behind one optimiser step, over all processes and accumulation steps.
        world_size: number of processes.
        accumulate_steps: forward passes per process and optimiser step.

    Raises:
        ConfigError: if the batch cannot be shared out evenly; the message names sizes that can.
    """
    parts = world_size * accumulate_steps
    if batch_size < 1 or parts < 1 or batch_size % parts:
        lower, upper = max(parts, batch_size - batch_size % parts), (batch_size // parts + 1) * parts
        raise ConfigError(
            f"batch_size: {batch_size} samples per step cannot be shared out evenly over {world_size} process(es) "
            f"x {accumulate_steps} accumulation step(s) = {parts} parts. Use batch_size={lower} or {upper}."
        )
    return batch_size // parts


class PositionBatches(Sampler[list[int]]):
    """Batch sampler of one process: the positions of its part of every step.

    Args:
        batch_size: samples per optimiser step, over all processes and accumulation steps.
        num_iterations: length of the whole run in optimiser steps.
        first_iteration: the step to begin with (a resumed run: the number of steps done).
        rank: number of this process.
        world_size: number of processes.
        accumulate_steps: forward passes per process and step; this many lists come one after the other per step.
    """

    def __init__(
        self,
        batch_size: int,
        num_iterations: int,
        *,
        first_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate_steps: int = 1,
    ) -> None:
        self.batch_size, self.num_iterations, self.first_iteration = batch_size, num_iterations, first_iteration
        self.rank, self.world_size, self.accumulate_steps = rank, world_size, accumulate_steps
        self.local_size = local_batch_size(batch_size, world_size, accumulate_steps)

    def __len__(self) -> int:
        return max(0, self.num_iterations - self.first_iteration) * self.accumulate_steps

    def __iter__(self) -> Iterator[list[int]]:
        for iteration in range(self.first_iteration, self.num_iterations):
            for step in range(self.accumulate_steps):
                part = step * self.world_size + self.rank
                start = iteration * self.batch_size + part * self.local_size
                yield list(range(start, start + self.local_size))


class ShuffledDataset(Dataset):
    """Gives a finite dataset endless positions: epoch e is a permutation drawn from (seed, e).

    Args:
        dataset: finite map-style dataset.
        seed: the run's seed.
        batch_size: samples left over at the end of an epoch that do not fill a batch of this size are dropped.

    Raises:
        ConfigError: if the dataset holds fewer samples than one batch.
    """

    def __init__(self, dataset: Any, *, seed: int, batch_size: int = 1) -> None:
        if len(dataset) < batch_size:
            raise ConfigError(
                f"batch_size: {batch_size} samples per step, but the training set has {len(dataset)}. "
                f"Use a smaller batch_size or add pictures."
            )
        self.dataset, self.seed = dataset, seed
        self.epoch_length = len(dataset) // batch_size * batch_size
        self._permutation: tuple[int, list[int]] = (-1, [])

    def index(self, position: int) -> int:
        """Row of the dataset that a position >= 0 stands for."""
        epoch, offset = divmod(position, self.epoch_length)
        if self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._permutation = (epoch, torch.randperm(len(self.dataset), generator=generator).tolist())
        return self._permutation[1][offset]

    def __getitem__(self, position: int) -> Any:
        return self.dataset[self.index(position)]
