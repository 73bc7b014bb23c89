"""Runs the last steps of pseudo-masks beside the network: in worker processes, with a bounded queue."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pseudo_labels.finishing import FinishSettings, end_with_parent, finish_mask
from utils.errors import UserError

_QUEUED_PER_WORKER = 4


class FinishingPool:
    """Refines and writes masks; a context manager that has written all of them when it is left without an error.

    Args:
        settings: what happens to a mask.
        num_workers: worker processes; 0 does the work at once in this process.
        on_done: called in this process with (number of the picture, mask pixels) after each file is written.
    """

    def __init__(self, settings: FinishSettings, num_workers: int, on_done: Callable[[int, int], None]) -> None:
        self._settings, self._on_done = settings, on_done
        self._max_queued = _QUEUED_PER_WORKER * num_workers
        self._queued: deque[tuple[int, Future[int]]] = deque()
        # Spawned, not forked: forking a process that holds a GPU and threads can hang the child.
        context = multiprocessing.get_context("spawn")
        self._pool = (
            ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent) if num_workers else None
        )

    def submit(
        self,
        number: int,
        image: NDArray[np.uint8],
        mask: NDArray[np.bool_],
        original_size: tuple[int, int],
        path: Path,
    ) -> None:
        """Queue one mask; waits for the oldest one while the queue is full. Arguments as `finish_mask`.

        Raises:
            UserError: if a mask could not be written or a worker process died.
        """
        if self._pool is None:
            self._on_done(number, finish_mask(self._settings, image, mask, original_size, path))
            return
        image = image if self._settings.use_solver else image[:0]  # not sent where nobody looks at it
        try:
            future = self._pool.submit(finish_mask, self._settings, image, mask, original_size, path)
        except BrokenProcessPool as error:
            raise _worker_died() from error
        self._queued.append((number, future))
        while self._queued and (len(self._queued) > self._max_queued or self._queued[0][1].done()):
            self._collect_oldest()

    def _collect_oldest(self) -> None:
        number, future = self._queued.popleft()
        try:
            num_pixels = future.result()
        except BrokenProcessPool as error:
            raise _worker_died() from error
        self._on_done(number, num_pixels)

    def __enter__(self) -> FinishingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._queued:
                self._collect_oldest()
        finally:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)


def _worker_died() -> UserError:
    return UserError(
        "A worker process that refines pseudo-masks was killed, probably because memory ran out. Run the same command "
        "again with fewer workers (num_workers): finished masks are kept."
    )
