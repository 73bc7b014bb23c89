"""Exact search against brute force: ties, block sizes, threads, several indices, two ranks."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import retrieval.search
from retrieval.index import ArrayIndex
from retrieval.search import search
from tests.processes import run_ranks
from utils.errors import DataError


def _brute_force(text, rows, num_images):
    """Sort all scores; products of the small whole numbers used here are exact in any order of summation."""
    scores = (text.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(np.arange(len(rows)), scores.shape), -scores), axis=1)[:, :num_images]
    return order, np.take_along_axis(scores, order, axis=1)


def _indices(rows, borders):
    borders = [0, *sorted(borders), len(rows)]
    parts = [rows[low:high] for low, high in itertools.pairwise(borders)]
    return [
        ArrayIndex(part if number % 2 else part.astype(np.float32), [""] * len(part))
        for number, part in enumerate(parts)
    ]


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_equals_brute_force_with_many_ties(data):
    draw = data.draw
    seed, count, dim = draw(st.integers(0, 10**6)), draw(st.integers(1, 300)), draw(st.integers(1, 20))
    num_categories, num_images = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(seed)
    largest = draw(st.sampled_from([0, 1, 3]))  # 0: everything ties
    rows = rng.integers(-largest, largest + 1, (count, dim)).astype(np.float16)
    text = rng.integers(-2, 3, (num_categories, dim)).astype(np.float32)
    indices = _indices(rows, draw(st.lists(st.integers(0, count), max_size=3)))
    result = search(text, indices, num_images, block_size=draw(st.integers(1, count + 5)))
    order, scores = _brute_force(text, rows, num_images)
    assert np.array_equal(result.rows, order)
    assert np.array_equal(result.scores, scores)
    assert result.rows.dtype == np.int64
    assert result.scores.dtype == np.float32


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), dim=st.integers(1, 200))
def test_real_numbers_give_the_same_result_for_every_block_size(seed, dim):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((240, dim)).astype(np.float16)
    rows[120:] = rows[:120] * np.float16(1 + rng.integers(0, 2) * 2**-9)  # near ties
    text = rng.standard_normal((3, dim)).astype(np.float32)
    first, *others = (search(text, _indices(rows, [100]), 60, block_size=size) for size in (240, 3, 17, 128))
    for other in others:
        assert np.array_equal(first.rows, other.rows)
        assert np.array_equal(first.scores, other.scores)
    exact = text.astype(np.float64) @ rows.astype(np.float64).T
    expected = -np.sort(-exact.astype(np.float32), axis=1)[:, :60]
    np.testing.assert_allclose(first.scores, expected, rtol=2e-7, atol=1e-12)


def test_threads_and_lowered_precision_change_nothing():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((3000, 96)).astype(np.float16)
    text = rng.standard_normal((7, 96)).astype(np.float32)
    expected = search(text, _indices(rows, [1]), 25)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision("medium")
        found = search(torch.from_numpy(text), _indices(rows, [2000]), 25)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    assert np.array_equal(found.rows, expected.rows)
    assert np.array_equal(found.scores, expected.scores)


def test_many_candidates_are_thinned_out(monkeypatch):
    """Scores that keep rising make every block a candidate, which is the worst case for memory."""
    rows = np.linspace(-1, 1, 40_000, dtype=np.float32)[:, None]
    held = []
    add = retrieval.search._Candidates.add

    def watched(self, *arguments):
        result = add(self, *arguments)
        held.append(self.num_found)
        return result

    monkeypatch.setattr(retrieval.search._Candidates, "add", watched)
    text = np.array([[1.0], [-1.0], [0.5]], np.float32)
    found = search(text, [ArrayIndex(rows, [""] * len(rows))], 10, block_size=2000)
    assert found.rows[0].tolist() == list(range(39_999, 39_989, -1))
    assert found.rows[1].tolist() == list(range(10))
    assert max(held) <= (1 << 16) + 3 * 2000


def test_fewer_images_than_wanted_and_empty_parts():
    rows = np.eye(3, dtype=np.float16)
    indices = [ArrayIndex(rows[:0], []), ArrayIndex(rows, list("abc")), ArrayIndex(rows[:0], [])]
    found = search(np.array([[0.0, 2.0, 1.0]], np.float32), indices, 500)
    assert found.rows.tolist() == [[1, 2, 0]]
    assert found.scores.tolist() == [[2.0, 1.0, 0.0]]


def _search_as_rank(folder):
    torch.distributed.init_process_group("gloo")
    rng = np.random.default_rng(5)
    rows = rng.integers(-2, 3, (101, 4)).astype(np.float16)
    found = search(np.eye(4, dtype=np.float32), _indices(rows, [30]), 20, block_size=9)
    path = folder / f"{torch.distributed.get_rank()}.json"
    path.write_text(json.dumps([found.rows.tolist(), found.scores.tolist()]), encoding="utf-8")


@pytest.mark.parametrize("num_ranks", [2])
def test_ranks_share_the_rows(tmp_path, num_ranks):
    assert run_ranks(_search_as_rank, num_ranks, tmp_path) == [0] * num_ranks
    rows = np.random.default_rng(5).integers(-2, 3, (101, 4)).astype(np.float16)
    order, scores = _brute_force(np.eye(4, dtype=np.float32), rows, 20)
    for rank in range(num_ranks):
        assert json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) == [order.tolist(), scores.tolist()]


def test_errors_name_the_index():
    index = ArrayIndex(np.zeros((2, 3), np.float16), ["a", "b"], name="mine")
    with pytest.raises(DataError, match=r"mine: holds embeddings of width 3, but the text embeddings have 4"):
        search(np.zeros((1, 4), np.float32), [index], 1)
    bad = ArrayIndex(np.array([[0, 0], [0, np.nan]], np.float16), ["a", "b"], name="holes")
    with pytest.raises(DataError, match=r"holes: there is an embedding that is not finite"):
        search(np.zeros((1, 2), np.float32), [bad], 1)
    with pytest.raises(DataError, match=r"there is no image to search in \(no index was given\)"):
        search(np.zeros((1, 2), np.float32), [], 1)
    with pytest.raises(DataError, match=r"expected finite \(K, D\) text embeddings"):
        search(np.full((1, 3), np.inf, np.float32), [index], 1)
    with pytest.raises(ValueError, match=r"num_images \(0\)"):
        search(np.zeros((1, 3), np.float32), [index], 0)
