"""How stages are measured: timing, peak memory, and the record that the table and the JSON file show.

A stage is a module `benchmarks/<stage>.py` with a function decorated `@benchmark("<stage>")` that takes a `Context` and
yields `Measurement`s. Timings inform; they never decide a test.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pkgutil
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.limits import Limits

MIB = 1024.0 * 1024.0


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median and interquartile range over the repetitions."""

    seconds: float
    spread: float
    repeats: int


@dataclass(frozen=True)
class Measurement:
    """One line of the result.

    Attributes:
        name: stage.
        workload: sizes and settings, in words.
        seconds: median time of our way.
        spread: interquartile range of the same, seconds.
        plain_seconds: median time of the plain way in the same run; None without one.
        limit: what bounds this stage ("matrix product 80x768x1000000 float32"); None if nothing was measured.
        limit_seconds: time that the limit alone needs for this workload, measured in the same run.
        peak_mib: memory that our way needs on top of its inputs.
        plain_peak_mib: the same for the plain way.
        note: what a reader has to know.
    """

    name: str
    workload: str
    seconds: float
    spread: float = 0.0
    plain_seconds: float | None = None
    limit: str | None = None
    limit_seconds: float | None = None
    peak_mib: float | None = None
    plain_peak_mib: float | None = None
    note: str | None = None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the plain way."""
        return None if self.plain_seconds is None else self.plain_seconds / self.seconds

    @property
    def limit_fraction(self) -> float | None:
        """Share of the limit that is reached; 1 is perfect."""
        return None if self.limit_seconds is None else self.limit_seconds / self.seconds

    def record(self, context: Context) -> dict[str, Any]:
        """The entry of the JSON file."""
        derived = {"ratio": self.ratio, "limit_fraction": self.limit_fraction}
        where = {"threads": context.threads, "device": context.device_name}
        return {**asdict(self), **derived, **where}


@dataclass
class Context:
    """What a stage is given: repetitions, threads, device, and the limits of this machine, measured when asked for."""

    repeats: int = 5
    threads: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0

    def __post_init__(self) -> None:
        self.limits = Limits(self.device)

    @property
    def device_name(self) -> str:
        """Name of the GPU, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"

    def generator(self) -> torch.Generator:
        """A fresh CPU generator with the run's seed."""
        return torch.Generator().manual_seed(self.seed)

    def time(self, function: Callable[[], object], *, min_seconds: float = 0.2) -> Timing:
        """`time_call` with this run's repetitions and device."""
        return time_call(function, repeats=self.repeats, min_seconds=min_seconds, device=self.device)

    def time_pair(
        self, function: Callable[[], object], plain: Callable[[], object], *, plain_repeats: int | None = None
    ) -> tuple[Timing, Timing]:
        """Times of our way and the plain way, taken in turns so that both meet the same machine.

        Args:
            function: our way.
            plain: the plain way.
            plain_repeats: fewer repetitions for a slow plain way; at least 1.
        """
        plain_repeats = plain_repeats or self.repeats
        function()
        plain()
        ours: list[float] = []
        theirs: list[float] = []
        for i in range(max(self.repeats, plain_repeats)):
            if i < self.repeats:
                ours.append(_time_once(function, self.device))
            if i < plain_repeats:
                theirs.append(_time_once(plain, self.device))
        return _timing(ours), _timing(theirs)

    def peak_memory(self, function: Callable[[], object], *, anonymous_only: bool = False) -> float:
        """`peak_memory` on this run's device, MiB."""
        return peak_memory(function, device=self.device, anonymous_only=anonymous_only)


Stage = Callable[[Context], Iterable[Measurement]]
_STAGES: dict[str, Stage] = {}


def benchmark(name: str) -> Callable[[Stage], Stage]:
    """Register the decorated function `(context) -> measurements` under a name of the command line."""

    def register(function: Stage) -> Stage:
        if name in _STAGES and _STAGES[name].__module__ != function.__module__:
            raise ValueError(f"two benchmarks named {name!r}")
        _STAGES[name] = function
        return function

    return register


def discover() -> dict[str, Stage]:
    """Import every module of `benchmarks/` once and return the stages by name, sorted."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in ("__main__", "harness", "limits"):
            importlib.import_module(f"benchmarks.{module.name}")
    return dict(sorted(_STAGES.items()))


def time_call(
    function: Callable[[], object],
    *,
    repeats: int = 5,
    min_seconds: float = 0.2,
    device: torch.device | None = None,
) -> Timing:
    """Time a call after one warm-up.

    Args:
        function: what to time.
        repeats: number of timings.
        min_seconds: short calls are repeated inside one timing until it lasts this long.
        device: a GPU is waited for before the clock is read.

    Returns:
        Seconds per call.
    """
    function()
    once = _time_once(function, device)
    inner = max(1, round(min_seconds / max(once, 1e-9)))

    def many() -> None:
        for _ in range(inner):
            function()

    return _timing([_time_once(many, device) / inner for _ in range(repeats)])


def _time_once(function: Callable[[], object], device: torch.device | None) -> float:
    _synchronise(device)
    start = time.perf_counter()
    function()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def _timing(seconds: list[float]) -> Timing:
    if len(seconds) == 1:
        return Timing(seconds[0], 0.0, 1)
    first, _, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return Timing(statistics.median(seconds), third - first, len(seconds))


def peak_memory(
    function: Callable[[], object], *, device: torch.device | None = None, anonymous_only: bool = False
) -> float:
    """Memory that one call needs at its peak on top of what is there before it, in MiB.

    On a GPU: what PyTorch allocates there. On the CPU: resident memory of this process (freed memory is handed back to
    the system first, so that reuse cannot hide the need); processes that the call starts are not counted.

    Args:
        function: called once.
        device: where the work is done.
        anonymous_only: leave out pages of mapped files, by looking every millisecond (may miss shorter peaks).
    """
    gc.collect()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MIB
    _release_free_memory()
    if not anonymous_only and _reset_high_water_mark():
        before = _status("VmRSS")
        function()
        return max(0.0, _status("VmHWM") - before)
    return _sampled_peak(function, "RssAnon" if anonymous_only else "VmRSS")


def _release_free_memory() -> None:
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return False
    return True


def _status(key: str) -> float:
    """An entry of /proc/self/status in MiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) / 1024.0
    raise OSError(f"/proc/self/status has no {key}")


def _sampled_peak(function: Callable[[], object], key: str) -> float:
    before = peak = _status(key)
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _status(key))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        function()
        peak = max(peak, _status(key))
    finally:
        done.set()
        watcher.join()
    return peak - before


@contextlib.contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Run with this many threads in PyTorch and OpenCV."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
