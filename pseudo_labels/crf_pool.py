"""The dense CRF of many pictures, on the threads of one process: nothing large is copied or pickled."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pseudo_labels.crf_memory import MemoryBudget
from pseudo_labels.dense_crf import DenseCrfSettings, dense_crf_labels, is_on_gpu


@dataclass(frozen=True)
class PictureToLabel:
    """A picture whose scores are large, and are made when it is its turn.

    Attributes:
        shape: of the scores, (C, H, W): their memory is asked for before they are made.
        make: () -> (image, scores) as for `dense_crf`. Called once, by a thread.
        on_gpu: whether these scores will be on a GPU, which then does most of the work.
    """

    shape: tuple[int, int, int]
    make: Callable[[], tuple[NDArray[np.uint8], ArrayLike]]
    on_gpu: bool = False


def label_pictures(
    pictures: Iterable[PictureToLabel],
    settings: DenseCrfSettings | None = None,
    *,
    num_threads: int | None = None,
    num_waiting: int = 0,
) -> Iterator[NDArray[np.int64]]:
    """Label maps of pictures in their order, while later pictures are taken and worked on.

    Pictures are taken from the iterable in the calling thread, so whatever stands behind it (a network, say) runs
    beside the CRF. The large scores of no more pictures than there are threads are in memory, and of fewer if the free
    memory does not hold so many. Neither the number of threads nor that of waiting pictures changes the results.

    Args:
        pictures: their sizes may differ.
        settings: constants; the published ones if None.
        num_threads: pictures at a time; as many as there are processors if None.
        num_waiting: pictures that may wait for a thread while the next one is taken. Where they come in batches, one
            batch keeps the threads busy while the next one is made.

    Yields:
        (H, W), int64, one for each picture.

    Raises:
        ValueError: as `dense_crf`, if scores are not of the shape that was told, num_threads is below 1, or num_waiting
            below 0.
        UserError: as `dense_crf`; the memory must hold one picture at a time.
    """
    num_threads = num_processors() if num_threads is None else num_threads
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, received {num_threads}")
    if num_waiting < 0:
        raise ValueError(f"num_waiting must not be below 0, received {num_waiting}")
    return _stream(pictures, settings, num_threads, num_waiting)


def _stream(
    pictures: Iterable[PictureToLabel], settings: DenseCrfSettings | None, num_threads: int, num_waiting: int
) -> Iterator[NDArray[np.int64]]:
    queued: deque[Future[NDArray[np.int64]]] = deque()
    budget = MemoryBudget(num_threads)
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="dense-crf")
    try:
        for picture in pictures:
            queued.append(executor.submit(_label, picture, settings, budget))
            while queued and (len(queued) > num_threads + num_waiting or queued[0].done()):
                yield queued.popleft().result()
        while queued:
            yield queued.popleft().result()
    finally:
        budget.close()
        executor.shutdown(cancel_futures=True)


def _label(picture: PictureToLabel, settings: DenseCrfSettings | None, budget: MemoryBudget) -> NDArray[np.int64]:
    """One picture from its function to its labels."""
    with budget.reserve(picture.shape, lattices_only=picture.on_gpu):
        return _make_and_label(picture, settings)  # whose scores are gone before the memory is given back


def _make_and_label(picture: PictureToLabel, settings: DenseCrfSettings | None) -> NDArray[np.int64]:
    image, scores = picture.make()
    scores = scores if is_on_gpu(scores) else np.asarray(scores)
    if tuple(scores.shape) != tuple(picture.shape):
        raise ValueError(f"scores of shape {tuple(picture.shape)} were told, received {tuple(scores.shape)}")
    return dense_crf_labels(image, scores, settings, ask_for_memory=False)


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
