"""The dense CRF of many pictures, on the threads of one process: nothing large is copied or pickled."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pseudo_labels.dense_crf import DenseCrfSettings, check_memory, dense_crf_labels


def label_pictures(
    pictures: Iterable[tuple[NDArray[np.uint8], ArrayLike]],
    settings: DenseCrfSettings | None = None,
    *,
    num_threads: int | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Label maps of pictures in their order, while later pictures are taken and worked on.

    Pictures are taken from the iterable in the calling thread, at most one more than there are threads before the
    oldest result is handed out: whatever makes the scores (a network, say) runs beside the CRF, and the memory stays
    bounded. The number of threads does not change the results.

    Args:
        pictures: (image, scores) as for `dense_crf`; sizes may differ. The scores must not be changed afterwards.
        settings: constants; the published ones if None.
        num_threads: pictures at a time; as many as there are processors if None.

    Yields:
        (H, W), int64, one for each picture.

    Raises:
        ValueError: as `dense_crf`, or if num_threads is below 1.
        UserError: as `dense_crf`; the memory is asked for all pictures in flight, before the first of a size is begun.
    """
    num_threads = num_processors() if num_threads is None else num_threads
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, received {num_threads}")
    return _stream(pictures, settings, num_threads)


def _stream(
    pictures: Iterable[tuple[NDArray[np.uint8], ArrayLike]], settings: DenseCrfSettings | None, num_threads: int
) -> Iterator[NDArray[np.int64]]:
    queued: deque[Future[NDArray[np.int64]]] = deque()
    largest = 0
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="dense-crf")
    try:
        for image, scores in pictures:
            scores = np.asarray(scores)
            if scores.size > largest:
                largest = scores.size
                check_memory(len(scores), image.shape[:2], at_a_time=num_threads)
            queued.append(executor.submit(dense_crf_labels, image, scores, settings, ask_for_memory=False))
            while len(queued) > num_threads:
                yield queued.popleft().result()
        while queued:
            yield queued.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
