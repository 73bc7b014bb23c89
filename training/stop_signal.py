"""SIGTERM as a polite request: clusters send it before they take a machine away."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

import torch

from utils.distributed import all_reduce_sum, world_size

CHECK_INTERVAL = 10  # iterations between agreements of several processes: each costs one wait for the device


class StopSignal:
    """Context in which SIGTERM sets a flag instead of ending the process.

    Args:
        device: where the processes' flags are added up.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.received = device, False
        self._previous: object = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True

    def requested(self, iteration: int) -> bool:
        """Whether to stop now; the same answer on all ranks, which all have to ask at the same iterations."""
        if world_size() == 1:
            return self.received
        if iteration % CHECK_INTERVAL:
            return False
        return bool(all_reduce_sum(torch.tensor(float(self.received), device=self.device)).item())
