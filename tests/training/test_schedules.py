"""Learning rates of the ZUTIS recipe."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from training.optimizers import zutis_optimizer
from training.schedules import PolyLR, poly_lr
from utils.errors import UserError


def test_rates_fall_to_the_minimum() -> None:
    rates = [poly_lr(5e-5, step, 20) for step in range(25)]
    assert rates[0] == 5e-5
    assert rates[10] == pytest.approx(5e-5 * 0.5**0.9)
    assert rates[20:] == [1e-6] * 5
    assert all(a >= b for a, b in pairwise(rates))


def test_schedule_sets_every_group_and_resumes() -> None:
    def optimizer() -> torch.optim.Optimizer:
        groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": rate} for rate in (5e-6, 5e-5)]
        return zutis_optimizer(groups)

    first = PolyLR(optimizer(), 10)
    assert first.get_last_lr() == [5e-6, 5e-5]
    for _ in range(4):
        first.step()
    second = PolyLR(optimizer(), 10)
    second.load_state_dict(first.state_dict())
    first.step()
    second.step()
    expected = [poly_lr(base, 5, 10) for base in (5e-6, 5e-5)]
    assert [group["lr"] for group in second.optimizer.param_groups] == expected == first.get_last_lr()
    assert second.rates(0) == [5e-6, 5e-5]


def test_optimiser_decays_everything() -> None:
    optimizer = zutis_optimizer([{"params": [torch.nn.Parameter(torch.ones(3))], "lr": 0.1}])
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(3)
    optimizer.step()
    assert torch.allclose(optimizer.param_groups[0]["params"][0], torch.full((3,), 1 - 0.1 * 0.05))


@pytest.mark.parametrize(("step", "total"), [(0, 0), (-1, 10)])
def test_impossible_schedules_are_named(step: int, total: int) -> None:
    with pytest.raises(UserError, match=f"received {total} and {step}; check 'n_iters'"):
        poly_lr(1e-3, step, total)
