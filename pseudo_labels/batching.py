"""Batches of pictures that become equally large when padded, from a stream, with a bounded look-ahead."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batch_by_size(
    items: Iterable[Item], size_of: Callable[[Item], Hashable], batch_size: Callable[[], int], look_ahead: int
) -> Iterator[list[Item]]:
    """Group a stream into batches of one size.

    Args:
        items: the stream; read only as far as needed.
        size_of: what items of one batch have in common.
        batch_size: the wanted length of a batch; asked every time, as it may shrink on the way.
        look_ahead: so many items are held back at most while batches fill; then the fullest batch leaves early.

    Yields:
        Every item once. Batches are full, except where the look-ahead or the stream ends.
    """
    waiting: dict[Hashable, list[Item]] = {}
    num_waiting = 0
    for item in items:
        size = size_of(item)
        waiting.setdefault(size, []).append(item)
        num_waiting += 1
        if len(waiting[size]) < batch_size():
            if num_waiting <= look_ahead:
                continue
            size = max(waiting, key=lambda key: len(waiting[key]))
        batch = waiting.pop(size)
        num_waiting -= len(batch)
        yield batch
    yield from waiting.values()
