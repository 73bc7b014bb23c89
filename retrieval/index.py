"""Embedding indices: many image embeddings with their paths, read a block at a time.

`open_index` opens an embedding folder (own or clip-retrieval's) or a published pickle, which it converts once.
`retrieval/search.py` searches any number of indices together.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from retrieval.parts import embeddings_path, is_complete, metadata_path, read_manifest
from utils.errors import DataError

LAYOUTS = ("auto", "imagenet", "flat")
_NUMBER = re.compile(r"(\d+)\.npy$")
MAPS_KEPT = 256  # mapped files at a time; mapping again costs page faults
_FLOATS = (np.dtype(np.float16), np.dtype(np.float32))


class EmbeddingIndex(Protocol):
    """Image embeddings in a fixed order, and the path of each image."""

    name: str
    dim: int

    def __len__(self) -> int:
        """Number of images."""

    def blocks(self, block_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """Rows start .. stop in order: (number of the first row, (at most block_size, dim) float16 or float32)."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The embeddings of ascending rows, (len(rows), dim) float16 or float32, a copy."""

    def paths(self, rows: Sequence[int]) -> list[str]:
        """The image paths of these rows, in their order."""


def image_path_for(index_dir: str | Path, file_name: str, layout: str = "auto") -> Path:
    """Where the image with a stored name lies.

    Args:
        index_dir: folder of the index dataset's images.
        file_name: name as stored; one that has folders in it is taken as it is.
        layout: "imagenet" (`<dir>/<wnid>/<file>`, wnid = what comes before the first `_`), "flat" (`<dir>/<file>`), or
            "auto": imagenet if a folder on the way is called ImageNet2012 or the subfolder exists, else flat.

    Source: ZUTIS release, path of a retrieved image; "auto" and the choice are ours, for trees of any name.
    """
    index_dir = Path(index_dir)
    wnid, underscore, _ = file_name.partition("_")
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {LAYOUTS}, not {layout!r}")
    if layout == "flat" or "/" in file_name or not underscore:
        return index_dir / file_name
    if layout == "imagenet" or "ImageNet2012" in index_dir.parts or (index_dir / wnid).is_dir():
        return index_dir / wnid / file_name
    return index_dir / file_name


class ArrayIndex:
    """An index in memory.

    Args:
        embeddings: (n, D) float16 or float32.
        file_names: n names or paths.
        image_dir: folder that the names start from, or None if they are paths already.
        layout: as in `image_path_for`.
        name: for messages.

    Raises:
        DataError: if counts or types do not fit.
    """

    def __init__(
        self,
        embeddings: NDArray[Any],
        file_names: Sequence[str],
        *,
        image_dir: str | Path | None = None,
        layout: str = "auto",
        name: str = "index in memory",
    ) -> None:
        if embeddings.ndim != 2 or embeddings.dtype not in _FLOATS or len(embeddings) != len(file_names):
            raise DataError(
                f"{name}: expected (n, D) float16 or float32 embeddings and n names, received "
                f"{embeddings.shape} {embeddings.dtype} and {len(file_names)} names."
            )
        self.name, self.dim = name, embeddings.shape[1]
        self._embeddings, self._names = embeddings, file_names
        self._image_dir, self._layout = image_dir, layout

    def __len__(self) -> int:
        return len(self._embeddings)

    def blocks(self, block_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """As in `EmbeddingIndex`."""
        stop = len(self) if stop is None else min(stop, len(self))
        for first in range(start, stop, block_size):
            yield first, self._embeddings[first : min(first + block_size, stop)]

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """As in `EmbeddingIndex`."""
        return self._embeddings[rows]

    def paths(self, rows: Sequence[int]) -> list[str]:
        """As in `EmbeddingIndex`."""
        return [_full_path(self._image_dir, self._names[row], self._layout) for row in rows]


def _full_path(image_dir: str | Path | None, stored: str, layout: str) -> str:
    if not image_dir or stored.startswith("/"):
        return stored
    if "/" in stored:
        return f"{image_dir}/{stored}"
    return str(image_path_for(image_dir, stored, layout))


class EmbeddingFolder:
    """An embedding folder, memory-mapped part by part: our own, clip-retrieval's or LAION's.

    Args:
        folder: holds `img_emb/img_emb_<number>.npy` and `metadata/metadata_<number>.parquet`.
        image_dir: folder that relative image paths start from; by default what the folder itself says.
        layout: as in `image_path_for`.

    Raises:
        DataError: if a part is missing, damaged or incomplete, if counts or widths differ; names the file.
    """

    def __init__(self, folder: str | Path, *, image_dir: str | Path | None = None, layout: str = "auto") -> None:
        self._folder = Path(folder)
        self.name = str(folder)
        manifest = read_manifest(self._folder)
        if manifest is not None:
            _check_complete(self._folder, manifest.num_images, manifest.num_parts)
        self._parts = _find_parts(self._folder, None if manifest is None else manifest.num_parts)
        headers = [_read_header(path) for path, _ in self._parts]
        self.dim = _common_width(self._parts, headers)
        for (path, metadata), (num_rows, _) in zip(self._parts, headers, strict=True):
            _check_metadata(path, num_rows, metadata)
        self._starts = list(itertools.accumulate((num_rows for num_rows, _ in headers), initial=0))
        self._image_dir = image_dir or (manifest.image_dir if manifest else None)
        self._layout = layout
        self._maps: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    def blocks(self, block_size: int, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
        """As in `EmbeddingIndex`; the blocks are views of the mapped files."""
        stop = len(self) if stop is None else min(stop, len(self))
        for number, (first, end) in enumerate(itertools.pairwise(self._starts)):
            low, high = max(first, start), min(end, stop)
            if low >= high:
                continue
            part = self._map(number)
            for row in range(low, high, block_size):
                yield row, part[row - first : min(row + block_size, high) - first]

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """As in `EmbeddingIndex`."""
        borders = np.searchsorted(rows, self._starts)
        taken = [
            self._map(number)[rows[low:high] - self._starts[number]]
            for number, (low, high) in enumerate(itertools.pairwise(borders))
            if low < high
        ]
        return np.concatenate(taken) if taken else np.empty((0, self.dim), np.float32)

    def paths(self, rows: Sequence[int]) -> list[str]:
        """As in `EmbeddingIndex`; only the row groups that hold these rows are read."""
        wanted, places = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
        borders = np.searchsorted(wanted, self._starts)
        found: list[str] = []
        for number, (low, high) in enumerate(itertools.pairwise(borders)):
            if low < high:
                found += _read_paths(self._parts[number][1], wanted[low:high] - self._starts[number])
        full = [_full_path(self._image_dir, stored, self._layout) for stored in found]
        return [full[place] for place in places]

    def _map(self, number: int) -> NDArray[Any]:
        part = self._maps.pop(number, None)
        if part is None:
            part = _map_file(self._parts[number][0])
        self._maps[number] = part  # the latest last
        if len(self._maps) > MAPS_KEPT:
            del self._maps[next(iter(self._maps))]
        return part


def _map_file(path: Path) -> NDArray[Any]:
    try:
        part = np.load(path, mmap_mode="c", allow_pickle=False)  # private: torch wants writable memory
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Make or download it again.") from error
    return np.asarray(part)


def _check_complete(folder: Path, num_images: int, num_parts: int) -> None:
    done = sum(is_complete(folder, number) for number in range(num_parts))
    if num_images < 0 or done < num_parts:
        of = f"{done} of {num_parts} parts are there" if num_images >= 0 else "its making was cut off"
        raise DataError(f"{folder}: this index is not complete ({of}). Run the command that makes it again.")


def _find_parts(folder: Path, num_parts: int | None) -> list[tuple[Path, Path]]:
    """Pairs of embedding file and metadata file in the order of their numbers."""
    if num_parts is not None:
        return [(embeddings_path(folder, number), metadata_path(folder, number)) for number in range(num_parts)]
    numbered = [(_NUMBER.search(path.name), path) for path in (folder / "img_emb").glob("img_emb_*.npy")]
    files = sorted((int(match[1]), match[1], path) for match, path in numbered if match)
    if not files:
        raise DataError(
            f"{folder}: no embeddings found. Expected img_emb/img_emb_0000.npy and metadata/metadata_0000.parquet, as "
            f"`python -m retrieval embed` or clip-retrieval write them."
        )
    pairs = [(path, folder / "metadata" / f"metadata_{digits}.parquet") for _, digits, path in files]
    if missing := [metadata for _, metadata in pairs if not metadata.exists()]:
        raise DataError(f"{missing[0]}: metadata file not found ({len(missing)} of {len(pairs)} are missing).")
    return pairs


def _read_header(path: Path) -> tuple[int, int]:
    """Rows and width of an embedding file, from its header and size only."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, is_fortran, dtype = read(file)
            num_bytes = path.stat().st_size - file.tell()
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}). Make or download it again.") from error
    if len(shape) != 2 or is_fortran or dtype not in _FLOATS:
        raise DataError(f"{path}: expected (n, D) embeddings, float16 or float32, row by row; found {shape} {dtype}.")
    needed = shape[0] * shape[1] * dtype.itemsize
    if num_bytes < needed:
        raise DataError(
            f"{path}: cut off, {num_bytes} of {needed} bytes of embeddings are there. Make or download it again."
        )
    return shape[0], shape[1]


def _common_width(parts: Sequence[tuple[Path, Path]], headers: Sequence[tuple[int, int]]) -> int:
    dim = headers[0][1]
    for (path, _), (_, width) in zip(parts, headers, strict=True):
        if width != dim:
            raise DataError(
                f"{path}: embeddings of width {width}, but {parts[0][0].name} has {dim}. Is it another CLIP's?"
            )
    return dim


def _check_metadata(path: Path, num_rows: int, metadata: Path) -> None:
    file = _open_parquet(metadata)
    if file.metadata.num_rows != num_rows:
        raise DataError(
            f"{metadata}: describes {file.metadata.num_rows} images, but {path.name} holds {num_rows} embeddings. "
            f"The two files do not belong together: make or download both again."
        )
    if not {"image_path", "url"} & set(file.schema_arrow.names):
        raise DataError(f"{metadata}: has no column 'image_path'; found {', '.join(file.schema_arrow.names)}.")


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error}). Make or download it again.") from error


def _read_paths(path: Path, rows: NDArray[np.int64]) -> list[str]:
    """The stored paths (or URLs, where there are no paths) of ascending rows of one part."""
    file = _open_parquet(path)
    column = "image_path" if "image_path" in file.schema_arrow.names else "url"
    sizes = np.array([file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)])
    starts = np.cumsum(sizes) - sizes
    groups = np.searchsorted(starts, rows, side="right") - 1
    needed, place = np.unique(groups, return_inverse=True)
    new_starts = np.cumsum(sizes[needed]) - sizes[needed]  # of the groups that are read, one after the other
    try:
        values = file.read_row_groups(needed.tolist(), columns=[column]).column(0)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: damaged ({error}). Make or download it again.") from error
    return [str(value) for value in values.take(rows - starts[groups] + new_starts[place]).to_pylist()]


def open_index(path: str | Path, *, image_dir: str | Path | None = None, layout: str = "auto") -> EmbeddingFolder:
    """Open an index of any supported kind.

    Args:
        path: embedding folder (own, clip-retrieval's, LAION's), or a pickle of named tensors, which is converted once
            into a folder beside it.
        image_dir: folder that the stored image names start from; by default what the index itself says.
        layout: how bare file names lie in that folder, as in `image_path_for`.

    Raises:
        DataError: if it is missing, damaged, unsafe or of another kind; names the file.
    """
    from retrieval.convert import convert_pickle  # convert writes indices and so imports this module

    path = Path(path)
    if path.is_file():
        path = convert_pickle(path)
    elif not path.is_dir():
        raise DataError(
            f"{path}: no such embedding index. Expected a folder with img_emb/ and metadata/, or a pickle of file "
            f"names and embeddings. Make one with `python -m retrieval embed`."
        )
    return EmbeddingFolder(path, image_dir=image_dir, layout=layout)
