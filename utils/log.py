"""Logging and progress: one logger per module, rank zero speaks, one progress bar for a long stage.

`progress` shows a tqdm bar on a terminal and a log line about every ten seconds elsewhere.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from utils.distributed import is_main

Item = TypeVar("Item")
LOG_SECONDS = 10.0
_ROOT = "unmasked"


class _TqdmHandler(logging.StreamHandler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: `logger = get_logger(__name__)`."""
    return logging.getLogger(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


def setup_logging(level: int | str = logging.INFO, file: str | Path | None = None) -> None:
    """Send log lines to stderr, and to a file as well if one is given; ranks other than zero only report errors.

    Args:
        level: lowest level shown, as a number or a name like "INFO".
        file: log file that lines are appended to; missing parent folders are made.
    """
    root = logging.getLogger(_ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level if is_main() else logging.ERROR)
    root.propagate = False
    handlers: list[logging.Handler] = [_TqdmHandler()]
    if file is not None and is_main():
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)


def format_seconds(seconds: float) -> str:
    """A duration for people: "42 s", "3 min 05 s", "2 h 07 min", "3 d 4 h"."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def progress(
    iterable: Iterable[Item], *, total: int | None = None, description: str, unit: str = "it"
) -> Iterator[Item]:
    """Pass items through while showing how far a stage is.

    Args:
        iterable: what to go through.
        total: number of items; taken from `len(iterable)` where that exists.
        description: what the stage does ("pseudo-masks").
        unit: name of one item ("image").

    Yields:
        The items, unchanged. On rank zero a terminal shows a bar with rate and time left; without a terminal a log
        line with the same numbers appears about every ten seconds.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not is_main():
        yield from iterable
    elif sys.stderr.isatty():
        yield from tqdm(iterable, total=total, desc=description, unit=unit, dynamic_ncols=True, leave=False)
    else:
        yield from _log_progress(iterable, total, description, unit)


def _log_progress(iterable: Iterable[Item], total: int | None, description: str, unit: str) -> Iterator[Item]:
    logger = get_logger("progress")
    start = last = time.monotonic()
    for done, item in enumerate(iterable):
        now = time.monotonic()
        if done and now - last >= LOG_SECONDS:
            last = now
            logger.info("%s", describe_progress(description, done, total, unit, now - start))
        yield item


def describe_progress(description: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """One line of progress: "pseudo-masks: 120 of 500 images, 12.3 images/s, 31 s left"."""
    rate = done / max(seconds, 1e-9)
    units = unit if unit == "it" else f"{unit}s"
    of = f" of {total}" if total is not None else ""
    left = f", {format_seconds((total - done) / rate)} left" if total is not None and rate > 0 else ""
    return f"{description}: {done}{of} {units}, {rate:.3g} {units}/s{left}"
