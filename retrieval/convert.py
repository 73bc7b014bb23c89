"""Published embedding pickles: turned once into an embedding folder, and written again for other programs."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index import EmbeddingIndex
from retrieval.parts import (
    Manifest,
    is_complete,
    narrowest_exact,
    read_manifest,
    remove_part,
    write_manifest,
    write_part,
)
from retrieval.unpickle import TensorFile
from utils.errors import DataError
from utils.files import RunLock, atomic_write
from utils.log import get_logger, progress

PART_SIZE = 16384
logger = get_logger(__name__)


def folder_for_pickle(path: str | Path) -> Path:
    """Where a pickle is converted to by default: a folder of the same name beside it."""
    return Path(path).with_suffix("")


def convert_pickle(path: str | Path, output_dir: str | Path | None = None, *, part_size: int = PART_SIZE) -> Path:
    """Turn a dictionary of tensors (file name -> embedding) into an embedding folder, once.

    The file is read as a stream, so memory does not grow with it; nothing in it is executed. Complete parts of an
    interrupted conversion are kept. Numbers are kept exactly: float16 where they fit, else float32.

    Args:
        path: `filename_to_*_img_embedding.pkl` or the like.
        output_dir: embedding folder; by default beside the file.
        part_size: rows per part.

    Returns:
        The folder; at once if it is complete and belongs to this file.

    Raises:
        DataError: if the file is damaged, unsafe, empty, or its embeddings differ in width or are not finite.
        UserError: if the disk is full, or another process converts into the folder.
    """
    path = Path(path)
    folder = folder_for_pickle(path) if output_dir is None else Path(output_dir)
    file = TensorFile(path)
    source = f"{path.name} {file.num_bytes} {path.stat().st_mtime_ns}"
    if _is_done(folder, source):
        return folder
    with RunLock(folder):
        old = read_manifest(folder)
        if old is not None and (old.source != source or old.part_size != part_size):
            _remove_parts(folder)
        logger.info("%s: converting %.2f GB to %s (once)", path, file.num_bytes / 1e9, folder)
        write_manifest(folder, Manifest(source, "", part_size, -1))
        num_images = _write_parts(file, folder, part_size)
        write_manifest(folder, Manifest(source, "", part_size, num_images))
    logger.info("%s: %d embeddings", folder, num_images)
    return folder


def _is_done(folder: Path, source: str) -> bool:
    manifest = read_manifest(folder)
    if manifest is None or manifest.source != source or manifest.num_images < 0:
        return False
    return all(is_complete(folder, number) for number in range(manifest.num_parts))


def _remove_parts(folder: Path) -> None:
    for marker in sorted((folder / "parts").glob("part_*.json")):
        remove_part(folder, int(marker.stem.removeprefix("part_")))


def _write_parts(file: TensorFile, folder: Path, part_size: int) -> int:
    num_images = 0
    for number, (names, rows) in enumerate(_read_parts(file, part_size)):
        if not is_complete(folder, number):
            _check_finite(file.path, names, rows)
            write_part(folder, number, narrowest_exact(rows), {"image_path": names}, num_images=len(names))
        num_images += len(names)
    if num_images == 0:
        raise DataError(f"{file.path}: holds no embedding at all. Get the file again.")
    return num_images


def _read_parts(file: TensorFile, part_size: int) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """(names, (n, D) float32) of one part after the other."""
    names: list[str] = []
    rows = np.empty((0, 0), np.float32)
    for name, values in _entries_with_progress(file):
        if not names:
            if rows.size and values.size != rows.shape[1]:
                raise _width_error(file.path, name, values.size, rows.shape[1])
            rows = np.empty((part_size, values.size), np.float32)
        if values.size != rows.shape[1]:
            raise _width_error(file.path, name, values.size, rows.shape[1])
        rows[len(names)] = values.reshape(-1)
        names.append(name)
        if len(names) == part_size:
            yield names, rows
            names = []
    if names:
        yield names, rows[: len(names)]


def _entries_with_progress(file: TensorFile) -> Iterator[tuple[str, NDArray[Any]]]:
    megabytes = progress(range(file.num_bytes // 2**20), description="conversion", unit="MiB")
    shown = 0
    for entry in file.iterate():
        while file.position >> 20 > shown:
            next(megabytes, None)
            shown += 1
        yield entry
    for _ in megabytes:  # so that the bar ends
        pass


def _width_error(path: Path, name: str, width: int, expected: int) -> DataError:
    return DataError(f"{path}: the embedding of {name!r} has {width} numbers, those before it {expected}.")


def _check_finite(path: Path, names: list[str], rows: NDArray[np.float32]) -> None:
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        bad = names[int(np.argmin(finite))]
        raise DataError(
            f"{path}: the embedding of {bad!r} is not finite (and {int((~finite).sum()) - 1} more near it)."
        )


def write_embedding_pickle(index: EmbeddingIndex, path: str | Path, *, block_size: int = 4096) -> None:
    """Write an index as the published systems keep it: a pickled dict, file name -> CPU float32 tensor.

    The file is written as a stream, entry by entry in the order of the paths as plain text, and plain `pickle.load`
    reads it where torch is installed.

    Args:
        index: embeddings and paths; only the last component of each path is stored, as in the release.
        path: file to write.
        block_size: embeddings in memory at a time.

    Raises:
        DataError: if two images have the same file name.
        UserError: if the disk is full.

    Source: ZUTIS and ReCo releases, `filename_to_<model>_img_embedding.pkl`.
    """
    seen: set[str] = set()
    paths = index.paths(range(len(index)))
    order = np.array(sorted(range(len(paths)), key=paths.__getitem__), dtype=np.int64)
    with atomic_write(path) as file:
        file.write(b"\x80\x03}")  # protocol 3, one dictionary
        for first in range(0, len(order), block_size):
            rows = order[first : first + block_size]
            block = index.take(np.sort(rows))[rows.argsort().argsort()]
            for name, row in zip((Path(paths[place]).name for place in rows), block.astype("<f4"), strict=True):
                if name in seen:
                    raise DataError(f"{path}: two images are called {name!r}; this format keeps file names only.")
                seen.add(name)
                file.write(_pickled_entry(name, row))
        file.write(b".")


def _pickled_entry(name: str, row: NDArray[np.float32]) -> bytes:
    """One name and tensor, in the instructions that `pickle` itself writes for them, without back references."""
    stored = _pickled_storage(row)
    size = struct.pack("<i", row.size)
    return b"".join(
        (
            _pickled_text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n(ctorch.storage\n_load_from_bytes\n",
            b"B" + struct.pack("<I", len(stored)) + stored + b"\x85R",  # storage = _load_from_bytes(bytes)
            b"K\x00J" + size + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)R",  # 0, (n,), (1,), False, no hooks
            b"tRs",
        )
    )


def _pickled_storage(row: NDArray[np.float32]) -> bytes:
    """A float storage as older `torch.save` writes it: magic number, protocol, machine, object, keys, numbers."""
    machine = b"\x80\x02}(" + _pickled_text("protocol_version") + b"M\xe9\x03"
    machine += _pickled_text("little_endian") + b"\x88" + _pickled_text("type_sizes") + b"}("
    for kind, size in (("short", 2), ("int", 4), ("long", 4)):
        machine += _pickled_text(kind) + b"K" + bytes([size])
    machine += b"uu."
    reference = b"(" + _pickled_text("storage") + b"ctorch\nFloatStorage\n" + _pickled_text("0") + _pickled_text("cpu")
    reference += b"J" + struct.pack("<i", row.size) + b"NtQ."
    return b"".join(
        (
            bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + b"\x80\x02M\xe9\x03." + machine,
            b"\x80\x02" + reference + b"\x80\x02](" + _pickled_text("0") + b"e.",
            struct.pack("<q", row.size) + row.tobytes(),
        )
    )


def _pickled_text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded
