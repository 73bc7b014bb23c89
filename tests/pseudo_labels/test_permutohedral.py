"""Lattice, chains and the sixteen numbers at a time."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from pseudo_labels import lanes
from pseudo_labels.lanes import LANES, empty_rows
from pseudo_labels.permutohedral import Lattice, build_lattice
from pseudo_labels.vertex_chains import LOOK_AHEAD, chain_vertices


def filter_values(lattice: Lattice, values: np.ndarray) -> np.ndarray:
    """The filter on one value per point, with the chains taken apart."""
    weighted = lattice.weights.astype(float) * values[:, None]
    vertex_values = np.bincount(lattice.vertices.reshape(-1), weighted.reshape(-1), minlength=lattice.num_vertices)
    for chain in split_chains(lattice.chains, lattice.num_vertices):
        line = np.pad(vertex_values[chain], 1)
        vertex_values[chain] = line[1:-1] + 0.5 * (line[:-2] + line[2:])
    return lattice.gain * (lattice.weights * vertex_values[lattice.vertices]).sum(1)


def split_chains(chains: np.ndarray, num_vertices: int) -> list[np.ndarray]:
    chains, beyond = chains[:-LOOK_AHEAD], chains[-LOOK_AHEAD:]
    assert chains[-1] == num_vertices
    assert (beyond == num_vertices).all()
    return [chain[chain < num_vertices] for chain in np.split(chains, np.flatnonzero(chains == num_vertices) + 1)[:-1]]


@pytest.mark.parametrize(
    ("num_dims", "spread", "tolerance"), [(1, 3.0, 0.06), (2, 3.0, 0.06), (3, 1.5, 0.12), (5, 1.0, 0.2)]
)
def test_filter_is_nearly_gaussian(num_dims: int, spread: float, tolerance: float):
    rng = np.random.default_rng(0)
    points, values = rng.normal(0, spread, (num_dims, 3000)).astype(np.float32), rng.random(3000)
    kernel = np.exp(-0.5 * sum((row[:, None] - row[None]) ** 2 for row in points.astype(float)))
    norm = kernel.sum(1) ** -0.5
    exact = norm * (kernel @ (norm * values))
    found = filter_values(build_lattice(points), values)
    assert np.abs(found - exact).mean() < tolerance * exact.mean()


def test_chains_hold_every_pair_of_neighbours_once():
    points = np.random.default_rng(1).normal(0, 1, (5, 400)).astype(np.float32)
    lattice = build_lattice(points)
    chains = split_chains(lattice.chains, lattice.num_vertices)
    assert all(len(chain) >= 2 for chain in chains)
    assert np.bincount(np.concatenate(chains)).max() <= 6
    pairs = np.concatenate([np.stack([chain[:-1], chain[1:]]) for chain in chains], axis=1)
    assert len(np.unique(np.sort(pairs, axis=0), axis=1).T) == pairs.shape[1]


def test_chains_of_a_small_lattice_follow_its_steps():
    following = np.array([[1, 2, -1, -1], [-1, -1, -1, 0], [-1, -1, -1, -1]], np.int32)
    coordinates = np.array([[0, -2, -4, -1], [0, 1, 2, 2], [0, 1, 2, -1]], np.int32)
    chains = chain_vertices(following, coordinates)
    assert sorted(map(tuple, split_chains(chains, 4))) == [(0, 1, 2), (3, 0)]


def test_vertices_are_numbered_as_they_are_met():
    points = np.random.default_rng(1).normal(0, 2, (3, 100)).astype(np.float32)
    lattice = build_lattice(points)
    first = np.unique(lattice.vertices.reshape(-1), return_index=True)[1]
    assert (np.diff(first) > 0).all()
    assert lattice.num_vertices == len(first)  # 100 is a multiple of 4: no points are added


def test_points_may_lie_on_each_other_and_anywhere():
    same = build_lattice(np.full((5, 7), -3.25, np.float32))
    assert same.num_vertices <= 12  # a simplex, and that of the added point
    np.testing.assert_allclose(filter_values(same, np.arange(7.0)), 3.0, rtol=1e-5)
    far = np.array([[-5000, 5000]], np.float32)
    np.testing.assert_allclose(filter_values(build_lattice(far), np.array([1.0, 2.0])), [1, 2], rtol=1e-5)


def test_tables_grow():
    points = np.random.default_rng(0).uniform(0, 300, (2, 40_000)).astype(np.float32)
    lattice = build_lattice(points)
    assert lattice.num_vertices > 1 << 14
    found = filter_values(lattice, np.ones(40_000))
    assert 0.8 < found.mean() < 1.2


@numba.njit
def _apply(rows, result):
    for row in range(len(rows)):
        value = lanes.load(rows, row)
        lanes.store(result, 3 * row, lanes.exp(value))
        lanes.store(result, 3 * row + 1, lanes.maximum(value, lanes.fill(np.float32(-1))))
        lanes.store(result, 3 * row + 2, lanes.multiply_add(np.float32(2), value, lanes.subtract(value, value)))


@numba.njit
def _reduce(rows, row):
    value = lanes.load(rows, row)
    return lanes.total(value), lanes.largest(value), lanes.largest(lanes.multiply(value, lanes.add(value, value)))


def test_sixteen_numbers_at_a_time():
    rows = empty_rows(200)
    assert rows.shape == (200, LANES)
    assert rows.ctypes.data % 64 == 0
    rows[:] = np.linspace(-70, 0, 200 * LANES, dtype=np.float32).reshape(200, LANES)
    result = empty_rows(600)
    _apply(rows, result)
    exact = np.exp(rows.astype(float))
    np.testing.assert_allclose(result[::3], np.where(rows < -60, 0, exact), rtol=2e-7)
    np.testing.assert_array_equal(result[1::3], np.maximum(rows, -1))
    np.testing.assert_array_equal(result[2::3], 2 * rows)
    total, largest, largest_square = _reduce(rows, 150)
    assert total == pytest.approx(rows[150].sum(), rel=1e-6)
    assert largest == rows[150].max()
    assert largest_square == pytest.approx(2 * (rows[150] ** 2).max())


def test_rows_of_another_kind_are_refused():
    with pytest.raises(numba.TypingError, match="expected C-contiguous float32 rows"):
        _reduce(np.zeros((2, LANES)), 0)
