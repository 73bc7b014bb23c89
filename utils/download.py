"""Downloads that go on where they broke off, are checked, and appear only when they are whole.

`fetch(name)` gives the path of a file of `utils/download_table.py`; `python -m utils.download [NAME ...]` gets them
from a shell. Several processes may ask for one file at once: one downloads, the others wait.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from utils.config_problems import nearest
from utils.download_table import BY_HAND, FILES, RemoteFile
from utils.errors import UserError
from utils.log import format_seconds, get_logger, setup_logging

logger = get_logger(__name__)
ATTEMPTS = 6
TIMEOUT_SECONDS = 60.0
CHUNK = 1024 * 1024


def cache_dir() -> Path:
    """Where downloads are kept: `UNMASKED_CACHE`, else ~/.cache/unmasked."""
    return Path(os.environ.get("UNMASKED_CACHE") or "~/.cache/unmasked").expanduser()


def fetch(name: str) -> Path:
    """The local path of a file of the table, downloaded when it is not there yet.

    Args:
        name: "ViT-B/16", "selfmask_nq20.pt", "coco_vit_b_16.pt", ...; see `utils/download_table.py`.

    Returns:
        A complete file, checked against size and SHA-256 where these are known.

    Raises:
        UserError: for an unknown name, or if the file cannot be downloaded; says where to put it by hand.
    """
    if name not in FILES:
        match = nearest(name, list(FILES))
        hint = f" (did you mean {match!r}?)" if match else ""
        raise UserError(f"{name!r} is not in the list of downloads{hint}; there are: {', '.join(FILES)}")
    file = FILES[name]
    other = _clip_cache(file)
    if other is not None:
        return other
    return download(file, cache_dir() / file.file_name)


def is_here(name: str) -> bool:
    """Whether `fetch` finds a file of the table, whole, without downloading it."""
    file = FILES[name]
    target = cache_dir() / file.file_name
    if _clip_cache(file) is not None or _is_checked(target, file):
        return True
    return target.is_file() and _mismatch(target, file) is None


def _clip_cache(file: RemoteFile) -> Path | None:
    """The same CLIP file where OpenAI's own package keeps it, if it is whole."""
    if not file.file_name.startswith("clip/"):
        return None
    path = Path("~/.cache/clip").expanduser() / Path(file.file_name).name
    if not path.is_file() or (cache_dir() / file.file_name).is_file():
        return None
    if _mismatch(path, file) is not None:
        logger.warning("%s is damaged and not used", path)
        return None
    return path


def download(file: RemoteFile, target: Path, *, attempts: int = ATTEMPTS, pause_seconds: float = 1.0) -> Path:
    """Download one file to a path, unless it is there and whole.

    Args:
        file: address and, where known, size and digest.
        target: final path. A part of an earlier attempt beside it (`.part`) is gone on with.
        attempts: tries without any progress before giving up.
        pause_seconds: wait before the second try; doubled for each further one.

    Raises:
        UserError: if it cannot be had; names file, address and where to put it.
    """
    if _is_checked(target, file):
        return target
    if target.is_file() and _mismatch(target, file) is None:  # first, because the cache may be read-only
        _mark_checked(target)
        return target
    with _lock(target):
        if _is_checked(target, file):  # another process was faster
            return target
        if target.is_file():
            problem = _mismatch(target, file)
            if problem is None:
                _mark_checked(target)
                return target
            logger.warning("%s %s: removed, and downloaded again", target, problem)
            target.unlink()
        part = target.with_name(target.name + ".part")
        _get_all(file, part, target, attempts, pause_seconds)
        os.replace(part, target)
        _mark_checked(target)
    logger.info("%s: %d bytes in %s", file.about, target.stat().st_size, target)
    return target


def _is_checked(target: Path, file: RemoteFile) -> bool:
    """Whether a file is there and was found whole before; its digest is taken once, not at every start."""
    mark = _mark_path(target)
    try:
        size = target.stat().st_size
        return mark.read_text(encoding="ascii") == _mark_text(target) and size == (file.num_bytes or size)
    except OSError:
        return False


def _mark_path(target: Path) -> Path:
    return target.with_name(f".{target.name}.checked")


def _mark_text(target: Path) -> str:
    status = target.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _mark_checked(target: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written to is checked again next time
        _mark_path(target).write_text(_mark_text(target), encoding="ascii")


@contextlib.contextmanager
def _lock(target: Path) -> Iterator[None]:
    path = target.with_name(f".{target.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w", encoding="ascii"))
        except OSError as error:
            raise _cannot_write(target.parent, error) from error
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        except PermissionError as error:
            raise _cannot_write(target.parent, error) from error


def _cannot_write(folder: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"{folder}: downloads cannot be written there ({reason}). Set UNMASKED_CACHE to another folder.")


def _mismatch(path: Path, file: RemoteFile) -> str | None:
    """What is wrong with a file, or None if it is whole as far as known."""
    size = path.stat().st_size
    if file.num_bytes is not None and size != file.num_bytes:
        return f"has {size} bytes, not {file.num_bytes}"
    if file.sha256 is not None:
        found = sha256_of(path)
        if found != file.sha256:
            return f"has the wrong contents (SHA-256 {found[:12]}..., expected {file.sha256[:12]}...)"
    return "is empty" if size == 0 else None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 digest of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _get_all(file: RemoteFile, part: Path, target: Path, attempts: int, pause_seconds: float) -> None:
    """Fill `part` until it is whole; a try that brought bytes does not count as failed."""
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _get_rest(file, part)
            problem = _mismatch(part, file)
            if problem is None:
                return
            part.unlink()
            reason = f"what the server sent {problem}; it was removed"
            failed += attempts // 2  # the same wrong bytes would come again
        except urllib.error.HTTPError as error:
            reason = f"the server answered {error.code} {error.reason}"
            failed += attempts if error.code in (401, 403, 404, 410) else 1
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            grown = part.exists() and part.stat().st_size > before
            failed = 1 if grown else failed + (attempts // 2 if _is_offline(error) else 1)
        except OSError as error:
            raise UserError(f"{part}: cannot be written ({error.strerror}). Set UNMASKED_CACHE.") from error
        if failed >= attempts:
            raise UserError(_give_up(file, target, reason))
        logger.warning("%s: %s; trying again", file.about, reason)
        time.sleep(pause_seconds * 2 ** (failed - 1))


def _is_offline(error: Exception) -> bool:
    """Whether there is no way to the server at all, so that waiting for long makes no sense."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, (socket.gaierror, ConnectionRefusedError)) or (
        isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    )


def _give_up(file: RemoteFile, target: Path, reason: str) -> str:
    return (
        f"{file.about}: cannot be downloaded ({reason}).\n"
        f"  address: {file.url}\n"
        f"  Without a network, get it on another machine and put it at {target}\n"
        f"  (UNMASKED_CACHE names another folder for downloads)."
    )


def _get_rest(file: RemoteFile, part: Path) -> None:
    """One request for the bytes that `part` lacks; starts over where the server cannot continue."""
    have = part.stat().st_size if part.exists() else 0
    if file.num_bytes is not None and have == file.num_bytes:
        return
    request = urllib.request.Request(file.url, headers={"User-Agent": "unmasked"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if _total_of(error.headers.get("Content-Range")) == have:
            return  # nothing is missing
        part.unlink()
        raise ConnectionError("the part on disk does not fit the file on the server") from error
    with response:
        have, total = _agreed_range(response, have)
        _copy(response, part, have, total, file.about)


def _agreed_range(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """Where the bytes of a response begin, and how long the whole file is."""
    length = response.headers.get("Content-Length")
    content_range = response.headers.get("Content-Range", "")
    begin = re.match(r"bytes (\d+)-", content_range)
    if response.status == 206 and begin and int(begin.group(1)) == have:
        return have, _total_of(content_range) or (have + int(length) if length else None)
    return 0, int(length) if length else None


def _total_of(content_range: str | None) -> int | None:
    match = re.search(r"/(\d+)$", content_range or "")
    return int(match.group(1)) if match else None


def _copy(response: http.client.HTTPResponse, part: Path, have: int, total: int | None, about: str) -> None:
    start = time.monotonic()
    quiet = not sys.stderr.isatty()
    if quiet:
        logger.info("downloading %s%s", about, f" ({total / 1e6:.1f} MB)" if total else "")
    with (
        open(part, "r+b" if have else "wb") as out,
        tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=about, disable=quiet, leave=False) as bar,
    ):
        out.seek(have)
        out.truncate()
        while chunk := response.read(CHUNK):
            out.write(chunk)
            have += len(chunk)
            bar.update(len(chunk))
        out.flush()
        os.fsync(out.fileno())
    if total is not None and have < total:
        raise ConnectionError(f"the connection broke after {have} of {total} bytes")
    logger.debug("%s: %s", about, format_seconds(time.monotonic() - start))


def main(arguments: Sequence[str] | None = None) -> int:
    """Download files by name, or list what there is; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m utils.download", description="Download published weights.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="files to get; none: list them")
    options = parser.parse_args(arguments)
    setup_logging()
    if not options.names:
        lines = [f"{name:60s} {file.about}" for name, file in FILES.items()]
        by_hand = [f"{name:60s} {about}" for name, about in BY_HAND.items()]
        sys.stdout.write("\n".join([*lines, f"Downloads go to {cache_dir()}", "", "By hand, from the authors' pages:"]))
        sys.stdout.write("\n".join(["", *by_hand, ""]))
        return 0
    try:
        for name in options.names:
            sys.stdout.write(f"{fetch(name)}\n")
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
