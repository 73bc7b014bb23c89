"""Means of the losses since the last log line, kept on the device so that nobody waits for them in between."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from utils.distributed import all_gather_objects, all_reduce_sum, rank, world_size


@dataclass(frozen=True)
class LossSummary:
    """One log line's worth."""

    means: dict[str, float]  # name -> mean over the iterations and all ranks
    count: int  # iterations
    seconds: float  # wall time of them, without evaluations and checkpoints
    wait_share: float  # share of it this process waited for the data loader (an upper bound of the device's waiting)


class RunningLosses:
    """Adds up 0-dim loss tensors on their device; reads them only in `summarise` and `peek`."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.total: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a new interval."""
        self.count, self.waited, self.skipped = 0, 0.0, 0.0
        self.total = None
        self.start = time.perf_counter()

    def skip(self, seconds: float) -> None:
        """Leave a stretch (evaluation, checkpoint) out of the rate."""
        self.skipped += seconds

    def add(self, outputs: Mapping[str, Any], weight: float) -> None:
        """Add the 0-dim tensors among a step's outputs, weighted; the names must be the same every time."""
        scalars = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.ndim == 0}
        if self.total is None:
            self.names = sorted(scalars)
        elif self.names != sorted(scalars):
            raise ValueError(f"a training step returned the losses {sorted(scalars)}, before it was {self.names}")
        values = torch.stack([scalars[name].detach().double() for name in self.names]) * weight
        self.total = values if self.total is None else self.total + values

    def peek(self) -> dict[str, float]:
        """Means over iterations and ranks so far; waits for the device. All ranks have to ask."""
        if self.total is None or self.count == 0:
            return {}
        means = all_reduce_sum(self.total) / (self.count * world_size())
        return dict(zip(self.names, means.tolist(), strict=True))

    def summarise(self) -> LossSummary:
        """Everything a log line needs; waits for the device. All ranks have to ask."""
        means = self.peek()
        seconds = max(time.perf_counter() - self.start - self.skipped, 1e-9)
        return LossSummary(means, max(self.count, 1), seconds, min(self.waited / seconds, 1.0))

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors that let a resumed run log the same means; all ranks have to ask."""
        mine = None if self.total is None else self.total.cpu()
        return {"names": list(self.names), "totals": all_gather_objects(mine), "count": self.count}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from `state_dict`: each rank from its own sums, or, if their number changed, from their mean."""
        self.reset()
        if state["count"] and state["totals"][0] is not None:
            self.names, self.count = list(state["names"]), state["count"]
            totals = torch.stack(list(state["totals"]))
            total = totals[rank()] if len(totals) == world_size() else totals.mean(0)
            self.total = total.to(device)
