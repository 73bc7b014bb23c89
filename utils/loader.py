"""Batches from worker processes, with errors that reach the user whole.

A plain DataLoader wraps an error of a worker into its own traceback text; here a `UserError` arrives as it was raised.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from utils.errors import UserError


class _Failure:
    """Carries a user error from a worker to the main process in place of a batch."""

    def __init__(self, error: UserError) -> None:
        self.error = error


class _Guarded:
    """A map-style dataset whose user errors become `_Failure` items."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return _Failure(error)


class _GuardedCollate:
    """A collate function that lets failures of its own or of its samples through."""

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, _Failure):
                return sample
        try:
            return self.collate(samples)
        except UserError as error:
            return _Failure(error)


def _start_worker(worker: int) -> None:
    """One thread per worker process: the workers together use the cores."""
    torch.set_num_threads(1)
    cv2 = sys.modules.get("cv2")
    if cv2 is not None and get_worker_info() is not None:
        cv2.setNumThreads(0)


def load_batches(
    dataset: Any,
    batches: Iterable[Sequence[Any]],
    *,
    collate: Callable[[list[Any]], Any],
    num_workers: int = 0,
    pin_memory: bool = False,
    prefetch: int = 2,
) -> Iterator[Any]:
    """Yield collated batches in order.

    Args:
        dataset: map-style; sample = dataset[index], a pure function of the index.
        batches: the indices of each batch, in the order wanted; any sized iterable.
        collate: list of samples -> batch.
        num_workers: worker processes; 0 loads in this process.
        pin_memory: put tensors into page-locked memory, so that copies to a GPU need not wait.
        prefetch: batches that each worker prepares ahead.

    Raises:
        UserError: whatever a sample or the collate function raised, unchanged; or, if a worker process was killed,
            what to change.
    """
    loader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,
        collate_fn=_GuardedCollate(collate),
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch if num_workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),  # keeps the loader from drawing on the run's random state
    )
    try:
        for batch in loader:
            if isinstance(batch, _Failure):
                raise batch.error
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "exited unexpectedly" not in str(error):
            raise
        raise UserError(
            f"A data loader worker process was killed, mostly because memory or shared memory ran out "
            f"({str(error).splitlines()[0]}). Use fewer workers (num_workers={num_workers // 2}) or a smaller batch."
        ) from error
