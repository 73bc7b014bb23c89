"""The dense CRF of many pictures, on the threads of one process: nothing large is copied or pickled."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pseudo_labels.dense_crf import DenseCrfSettings, check_memory, dense_crf_labels

MakePicture = Callable[[], tuple[NDArray[np.uint8], ArrayLike]]


def label_pictures(
    pictures: Iterable[MakePicture],
    settings: DenseCrfSettings | None = None,
    *,
    num_threads: int | None = None,
    num_waiting: int = 0,
) -> Iterator[NDArray[np.int64]]:
    """Label maps of pictures in their order, while later pictures are taken and worked on.

    Pictures are taken from the iterable in the calling thread, so whatever stands behind it (a network, say) runs
    beside the CRF. Each is a function that makes the picture and its scores, called by a thread when it is its turn:
    the large scores of no more pictures than there are threads are in memory. Neither the number of threads nor that
    of waiting pictures changes the results.

    Args:
        pictures: functions () -> (image, scores) as for `dense_crf`; sizes may differ. Called once each.
        settings: constants; the published ones if None.
        num_threads: pictures at a time; as many as there are processors if None.
        num_waiting: pictures that may wait for a thread while the next one is taken. Where they come in batches, one
            batch keeps the threads busy while the next one is made.

    Yields:
        (H, W), int64, one for each picture.

    Raises:
        ValueError: as `dense_crf`, if num_threads is below 1, or num_waiting below 0.
        UserError: as `dense_crf`; the memory is asked for all pictures at work, before the first of a size is begun.
    """
    num_threads = num_processors() if num_threads is None else num_threads
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, received {num_threads}")
    if num_waiting < 0:
        raise ValueError(f"num_waiting must not be below 0, received {num_waiting}")
    return _stream(pictures, _Worker(settings, num_threads), num_threads, num_waiting)


class _Worker:
    """One picture from its function to its labels; asks for the memory of all pictures at work when a larger comes."""

    def __init__(self, settings: DenseCrfSettings | None, num_threads: int) -> None:
        self._settings, self._num_threads = settings, num_threads
        self._largest, self._lock = 0, threading.Lock()

    def __call__(self, make: MakePicture) -> NDArray[np.int64]:
        image, scores = make()
        scores = np.asarray(scores)
        with self._lock:
            if scores.size > self._largest:
                self._largest = scores.size
                check_memory(len(scores), image.shape[:2], at_a_time=self._num_threads)
        return dense_crf_labels(image, scores, self._settings, ask_for_memory=False)


def _stream(
    pictures: Iterable[MakePicture], worker: _Worker, num_threads: int, num_waiting: int
) -> Iterator[NDArray[np.int64]]:
    queued: deque[Future[NDArray[np.int64]]] = deque()
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="dense-crf")
    try:
        for make in pictures:
            queued.append(executor.submit(worker, make))
            while queued and (len(queued) > num_threads + num_waiting or queued[0].done()):
                yield queued.popleft().result()
        while queued:
            yield queued.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
