"""Positions: every sample once, whoever computes it; epochs of finite datasets."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.samplers import PositionBatches, ShuffledDataset
from utils.errors import ConfigError


@settings(max_examples=50, deadline=None)
@given(
    local=st.integers(1, 4),
    world_size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    first=st.integers(0, 3),
    count=st.integers(0, 4),
)
def test_every_position_once_and_in_its_iteration(local, world_size, accumulate, first, count) -> None:
    batch = local * world_size * accumulate
    samplers = [
        PositionBatches(batch, first + count, first_iteration=first, rank=rank, world_size=world_size,
                        accumulate_steps=accumulate)
        for rank in range(world_size)
    ]  # fmt: skip
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {count * accumulate} == {len(sampler) for sampler in samplers}
    for iteration in range(count):
        steps = slice(iteration * accumulate, (iteration + 1) * accumulate)
        positions = [position for part in parts for chunk in part[steps] for position in chunk]
        start = (first + iteration) * batch
        assert sorted(positions) == list(range(start, start + batch))
        assert {len(chunk) for part in parts for chunk in part[steps]} == {local}


def test_resumed_sampler_is_the_tail_of_the_whole() -> None:
    whole = list(PositionBatches(6, 10, rank=1, world_size=2))
    assert list(PositionBatches(6, 10, first_iteration=7, rank=1, world_size=2)) == whole[7:]


def test_shuffled_epochs_are_permutations_that_differ() -> None:
    dataset = ShuffledDataset(list("abcdefghij"), seed=1, batch_size=4)  # 8 of 10 per epoch
    epochs = [[dataset[8 * epoch + offset] for offset in range(8)] for epoch in range(3)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = ShuffledDataset(list("abcdefghij"), seed=1, batch_size=4)
    assert [again[position] for position in (20, 3, 11)] == [epochs[2][4], epochs[0][3], epochs[1][3]]


def test_dataset_smaller_than_a_batch_is_told() -> None:
    with pytest.raises(ConfigError, match="batch_size: 8 samples per step, but the training set has 3"):
        ShuffledDataset([1, 2, 3], seed=0, batch_size=8)
