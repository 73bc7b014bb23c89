"""Files that are either complete or absent: atomic writes, JSON with clear errors, and a lock for run folders.

Everything this project leaves on a disk goes through `atomic_write`, so a killed process never leaves half a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import orjson

from utils.errors import DataError, UserError

_COUNTER = itertools.count()
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", *, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a file that appears under its final name only when it is complete.

    Args:
        path: final path; missing parent folders are made.
        mode: "wb" for bytes or "w" for UTF-8 text.
        sync: wait until the disk has the bytes, so that even a power cut leaves a whole file; turn it off for many
            small files that can be made again.

    Yields:
        The open temporary file, which lies beside the final path.

    Raises:
        UserError: if the disk is full or the path cannot be written; nothing is left behind.
        ValueError: if the mode is not one of the two.
    """
    if mode not in ("wb", "w"):
        raise ValueError(f"mode must be 'wb' or 'w', not {mode!r}")
    path = Path(path)
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.{threading.get_ident()}.{next(_COUNTER)}.partial")
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            try:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
            finally:
                with contextlib.suppress(OSError, ValueError):
                    written = os.fstat(file.fileno()).st_size
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary), str(path), *map(str, path.parents)):
            raise  # a problem of the caller's own files inside the block, not of this one
        raise _cannot_write(path, written, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, written: int, error: OSError) -> UserError:
    if error.errno in _FULL_DISK:
        return UserError(
            f"{path}: the disk is full (stopped after {written} bytes; nothing was left behind). "
            f"Free some space, or choose another folder, and run the same command again: it goes on where it stopped."
        )
    reason = error.strerror or str(error)
    return UserError(f"{path}: cannot be written ({reason}). Check the folder and its permissions.")


def check_writable(folder: str | Path, *, advice: str) -> None:
    """Make sure, before the work is done, that results can be written into a folder; nothing is left behind.

    Args:
        folder: need not exist yet.
        advice: what to do if it cannot be written, for the message.

    Raises:
        UserError: if it cannot be made, is no folder, or takes no files.
    """
    folder = Path(folder)
    made: list[Path] = []
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        in_the_way = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "a file is in the way" if in_the_way else error.strerror or str(error)
        raise UserError(f"{folder}: cannot be written ({reason}). {advice}") from error
    finally:
        for path in made:
            with contextlib.suppress(OSError):
                path.rmdir()


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically; raises `UserError` like `atomic_write`."""
    with atomic_write(path, "w") as file:
        file.write(text)


def write_json(path: str | Path, obj: object, *, indent: bool = True) -> None:
    """Write an object as JSON, atomically.

    Args:
        path: final path.
        obj: anything orjson writes, with numpy arrays and scalars, paths as strings, and non-string keys.
        indent: two spaces per level instead of one line.

    Raises:
        UserError: like `atomic_write`.
    """
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE
    data = orjson.dumps(obj, default=_plain, option=options | (orjson.OPT_INDENT_2 if indent else 0))
    with atomic_write(path) as file:
        file.write(data)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def read_json(path: str | Path, *, what: str = "JSON file") -> Any:
    """Read one JSON document.

    Args:
        path: the file.
        what: what the file is to the user, for the messages ("retrieval file", "COCO annotations", ...).

    Raises:
        DataError: if the file is missing, unreadable or not JSON; names the file and the line and column of the error.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: {what} not found. Check the path in the config or on the command line.") from error
    except OSError as error:
        raise DataError(f"{path}: {what} cannot be read ({error.strerror}).") from error
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise DataError(
            f"{path}: {what} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno} "
            f"({len(data)} bytes in the file). It may be cut off: make or download it again."
        ) from error


class RunLock:
    """Holds a folder for one process: `with RunLock(run_dir): ...`.

    The kernel releases the lock when its process ends, however it ends, so a stale lock file is no problem.

    Args:
        folder: the folder to hold; made when missing.

    Raises:
        UserError: on entering, if another living process holds the folder.
    """

    name = ".lock"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        path = self.folder / self.name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}). Choose another run folder.") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"{self.folder}: this folder is in use by {holder}. "
                f"Wait for it to end, or give this run another folder or suffix."
            ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
