"""Rows that stand for all."""

from __future__ import annotations

import pytest

from utils.spread import spread_rows


@pytest.mark.parametrize(
    ("total", "number", "expected"),
    [(0, 8, []), (1, 8, [0]), (3, 8, [0, 1, 2]), (8, 8, list(range(8))), (9, 3, [0, 4, 8]), (10, 1, [0])],
)
def test_rows_from_the_first_to_the_last(total: int, number: int, expected: list[int]) -> None:
    assert spread_rows(total, number) == expected


def test_as_many_as_asked_for_all_different() -> None:
    rows = spread_rows(20001, 2000)
    assert len(set(rows)) == 2000
    assert rows == sorted(rows)
    assert (rows[0], rows[-1]) == (0, 20000)
