"""Label maps as PNGs: pseudo-labels of whole pictures, written beside the network, whole or absent.

Which names they have: `Benchmark.export_path`. Who makes them: `systems/reco_labels.py`; who reads them:
`training/labelled_pictures.py`.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.files import atomic_write

MAX_LABEL = 254  # the highest value that one byte holds beside 255, which means no label
_LAST_CHUNK = b"IEND\xaeB`\x82"
_WAITING_PER_THREAD = 8


def write_label_map(path: str | Path, labels: NDArray[np.integer]) -> None:
    """Write labels (H, W), 0 to 255, as a PNG of one channel of bytes.

    Raises:
        UserError: if the file cannot be written.
    """
    with atomic_write(path, sync=False) as file:
        Image.fromarray(labels.astype(np.uint8)).save(file, format="PNG")


def is_complete(path: str | Path) -> bool:
    """Whether a PNG exists and has its end: a power cut may leave one without."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(_LAST_CHUNK), 2)
            return file.read() == _LAST_CHUNK
    except OSError:
        return False


class LabelWriter:
    """Writes label maps in threads; a context manager that has written all of them when it is left without an error.

    Args:
        num_threads: files at a time.
    """

    def __init__(self, num_threads: int = 2) -> None:
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="label-maps")
        self._waiting: deque[Future[None]] = deque()
        self._limit = _WAITING_PER_THREAD * num_threads

    def write(self, path: Path, labels: NDArray[np.integer]) -> None:
        """Queue one label map (H, W); waits for the oldest one while too many are under way.

        Raises:
            UserError: if an earlier one could not be written.
        """
        self._waiting.append(self._pool.submit(write_label_map, path, labels))
        while len(self._waiting) > self._limit or (self._waiting and self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> LabelWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            while kind is None and self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
