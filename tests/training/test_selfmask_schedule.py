import pytest
import torch

from training.selfmask_schedule import build_optimizer, released_poly_factor


def released_factors(num_steps: int, iters: int, epochs: int, warmup: int, extra: bool) -> list[float]:
    """The released schedule as it runs: a counter that every query moves and every epoch wraps."""
    counter, factors = 0, []

    def query() -> float:
        nonlocal counter
        t, counter = counter, counter % iters + 1
        return t / warmup if t < warmup else (1 - t / (iters * epochs)) ** 0.9

    factors.append(query())
    for _ in range(num_steps):
        factors.append(query())
        if extra:
            query()
    return factors


@pytest.mark.parametrize("iters", [1, 2, 7, 10])
@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("extra", [False, True])
def test_equals_the_counter_that_wraps(iters, warmup, extra):
    expected = released_factors(40, iters, 5, warmup, extra)
    options = {"iters_per_epoch": iters, "num_epochs": 5, "warmup_iters": warmup, "extra_query": extra}
    assert [released_poly_factor(step, **options) for step in range(41)] == pytest.approx(expected)


def test_published_rate_never_decays():
    rates = [released_poly_factor(step, iters_per_epoch=1320, num_epochs=12) for step in range(0, 15840, 11)]
    assert rates[0] == 1
    assert min(rates) > 0.92


def test_refuses_impossible_counts():
    with pytest.raises(ValueError, match="expected step >= 0, iterations and epochs >= 1, got -1, 3, 2"):
        released_poly_factor(-1, iters_per_epoch=3, num_epochs=2)


def test_optimizer_has_the_published_settings():
    (group,) = build_optimizer(torch.nn.Linear(2, 2)).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (6e-6, 0.01, (0.9, 0.999))
