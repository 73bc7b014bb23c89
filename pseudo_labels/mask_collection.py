"""One JSON file with the pseudo-masks of many pictures, written bit by bit by any number of processes.

While masks are made, every process appends lines to its own part file in ``<file>.parts/``; in the end rank zero puts
them together. Beside the file, ``<file>.settings.json`` says how the masks were made and which pictures were refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import orjson

from utils.distributed import barrier, is_main, rank
from utils.errors import DataError, UserError
from utils.files import read_json, write_json


class MaskCollection:
    """The file and its parts.

    Args:
        path: the JSON file ``{picture name: {"size", "counts"}}``.
        settings: how masks are made, as plain values; a file made otherwise is refused.

    Raises:
        DataError: if the file was made with other settings; names the first that differ.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.parts_dir = self.path.with_name(self.path.name + ".parts")
        self.settings_path = self.path.with_name(self.path.name + ".settings.json")
        self.settings = orjson.loads(orjson.dumps(settings))
        self._check_settings()

    def _check_settings(self) -> None:
        if not self.settings_path.exists():
            return
        found = read_json(self.settings_path, what="settings of the pseudo-masks").get("settings", {})
        keys = [key for key in {**found, **self.settings} if found.get(key) != self.settings.get(key)]
        if keys:
            lines = [f"{key}: {found.get(key)!r} there, {self.settings.get(key)!r} now" for key in keys[:3]]
            raise DataError(
                f"{self.path}: these pseudo-masks were made with other settings ({'; '.join(lines)}). "
                f"Use the same settings, choose another pseudo_mask_path, or remove {self.path.name}*."
            )

    def finished(self) -> set[str]:
        """Names that have a mask in the file or in any part, the same on all ranks."""
        done = set(self._read_file()) | {name for name, _ in self._read_parts()}
        barrier()  # nobody writes before everybody has read
        if is_main() and not self.path.exists():
            write_json(self.settings_path, {"settings": self.settings, "refused": {}})
        barrier()
        return done

    def _read_file(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        masks = read_json(self.path, what="pseudo-mask file")
        if not isinstance(masks, dict):
            raise DataError(f"{self.path}: expected a JSON object of picture names and masks. Remove or replace it.")
        return masks

    def _read_parts(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and mask of every whole line of every part; the last line may be cut off by a kill."""
        for part in sorted(self.parts_dir.glob("part-*.jsonl")):
            for line in part.read_bytes().split(b"\n")[:-1]:
                try:
                    name, mask = orjson.loads(line)
                except (orjson.JSONDecodeError, ValueError, TypeError):
                    continue  # a line that a kill or a full disk cut off: that picture is done again
                yield name, mask

    @contextmanager
    def part(self) -> Iterator[Callable[[str, Mapping[str, Any]], None]]:
        """A function that appends the mask of one picture to this process's part file.

        Raises:
            UserError: if the part cannot be written (disk full); what was written before stays usable.
        """
        path = self.parts_dir / f"part-{rank():04d}.jsonl"
        with ExitStack() as stack:
            with self._explained(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(open(path, "ab", buffering=0))
                self._lock(file, path)
                if file.tell():
                    file.write(b"\n")  # closes a line that a kill may have cut off

            def append(name: str, mask: Mapping[str, Any]) -> None:
                line = orjson.dumps([name, mask]) + b"\n"
                with self._explained(path):
                    if file.write(line) < len(line):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            yield append

    def _lock(self, file: IO[bytes], path: Path) -> None:
        """Hold the part for this process; the kernel lets go of it when the process ends, however it ends."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{self.path}: another process is making these masks ({path.name} is in use). Wait for it to end, or "
                f"choose another pseudo_mask_path."
            ) from error

    @staticmethod
    @contextmanager
    def _explained(path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror or error}). Free some space, or choose another "
                f"pseudo_mask_path, and run the same command again: it goes on where it stopped."
            ) from error

    def merge(self, *, order: Sequence[str], refused: Mapping[str, str]) -> None:
        """Put file and parts together, atomically, on rank zero; other ranks wait.

        Args:
            order: names in the order wanted; others in the file come after them.
            refused: picture name to reason, kept in the settings file.
        """
        barrier()  # all parts are complete
        if is_main():
            masks = {**self._read_file(), **dict(self._read_parts())}
            ordered = {name: masks[name] for name in [*(n for n in order if n in masks), *masks]}
            write_json(self.path, ordered, indent=False)
            write_json(self.settings_path, {"settings": self.settings, "refused": dict(refused)})
            for part in self.parts_dir.glob("part-*.jsonl"):
                part.unlink()
            if self.parts_dir.exists() and not os.listdir(self.parts_dir):
                self.parts_dir.rmdir()
        barrier()
