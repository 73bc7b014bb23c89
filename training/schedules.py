"""Learning rates over the iterations of a training run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from utils.errors import UserError


def poly_lr(base_lr: float, step: int, total: int, power: float = 0.9, min_lr: float = 1e-6) -> float:
    """Learning rate of one step: max(base·(1 − step / total)^power, minimum).

    Args:
        base_lr: rate of step 0.
        step: 0 … total (and beyond: the minimum).
        total: number of steps of the whole schedule.
        power: exponent.
        min_lr: the rate is never lower.

    Raises:
        UserError: if ``total`` is not positive or ``step`` is negative.
    """
    if total <= 0 or step < 0:
        raise UserError(
            f"a polynomial schedule needs a positive number of iterations and a step from 0 on, received {total} and "
            f"{step}; check 'n_iters'"
        )
    return max(base_lr * max(1 - step / total, 0.0) ** power, min_lr)


class PolyLR:
    """Sets the polynomial rate of every group of an optimiser, iteration by iteration.

    The first optimiser step uses step 0; call ``step()`` after each optimiser step.
    """

    def __init__(self, optimizer: Optimizer, total: int, *, power: float = 0.9, min_lr: float = 1e-6) -> None:
        """Take the groups' present rates as base rates and set those of step 0."""
        self.optimizer, self.total, self.power, self.min_lr = optimizer, total, power, min_lr
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.last_step = 0
        self._set()

    def step(self) -> None:
        """Go on by one iteration."""
        self.last_step += 1
        self._set()

    def rates(self, step: int | None = None) -> Sequence[float]:
        """The groups' rates at a step; None: at the present one."""
        step = self.last_step if step is None else step
        return [poly_lr(base, step, self.total, self.power, self.min_lr) for base in self.base_lrs]

    def get_last_lr(self) -> list[float]:
        """The groups' present rates, as torch's schedulers name it."""
        return list(self.rates())

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` needs to go on."""
        return {"last_step": self.last_step, "base_lrs": self.base_lrs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a stored state."""
        self.last_step, self.base_lrs = state["last_step"], list(state["base_lrs"])
        self._set()

    def _set(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates(), strict=True):
            group["lr"] = rate
