"""Turns predicted instances into records beside the evaluation loop, and brings the ranks' results together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from datasets.base import Benchmark
from evaluation.instances import PredictedInstances, Record, instances_to_records
from utils.distributed import all_gather_objects, is_main, rank, world_size
from utils.errors import DataError

_PENDING = 4  # pictures whose masks may wait for their run-length codes; bounds the memory


class RecordWriter:
    """Turns instances into records in a thread of its own, in order, never far behind.

    Args:
        benchmark: gives the raw category ids.
        records: list that the records are added to; complete when the context ends.
    """

    def __init__(self, benchmark: Benchmark, records: list[Record]) -> None:
        self.raw_category_ids, self.records = benchmark.raw_category_ids, records
        self.pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="records")
        self.pending: deque[Future[list[Record]]] = deque()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            while self.pending and error is None:
                self.records.extend(self.pending.popleft().result())
        finally:
            self.pool.shutdown(cancel_futures=True)

    def add(self, instances: PredictedInstances, image_id: int) -> None:
        """Take the instances of one picture; waits only when too many pictures are behind."""
        self.pending.append(self.pool.submit(self._make, instances, image_id))
        while len(self.pending) > _PENDING:
            self.records.extend(self.pending.popleft().result())

    def _make(self, instances: PredictedInstances, image_id: int) -> list[Record]:
        return instances_to_records(
            instances.masks,
            instances.scores,
            instances.category_ids,
            image_id=image_id,
            raw_category_ids=self.raw_category_ids,
            with_box=False,
        )


def gather_records(records: list[Record]) -> list[Record]:
    """All ranks' records, sorted by image id, on rank zero; nothing elsewhere."""
    gathered = all_gather_objects(records)
    if not is_main():
        return []
    return sorted((record for part in gathered for record in part), key=lambda record: record["image_id"])


def compute_on_main(compute: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Compute on rank zero, return everywhere; a user error of rank zero is raised everywhere."""
    outcome: Any = None
    if rank() == 0:
        try:
            outcome = compute()
        except DataError as error:
            outcome = error
    outcome = all_gather_objects(outcome)[0] if world_size() > 1 else outcome
    if isinstance(outcome, DataError):
        raise outcome
    return outcome
