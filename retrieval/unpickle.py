"""Files of named tensors (`filename_to_*_img_embedding.pkl` and their like), read without executing anything.

Understood are dictionaries of tensors written by `pickle.dump` and by `torch.save` (zip and older), also tensors that
lay on a GPU. Tensors come out as numpy arrays that look straight into the mapped file, one batch of entries at a time.
`retrieval/convert.py` turns such a file into an embedding folder.
"""

from __future__ import annotations

import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.pickle_machine import ForgottenError, PickleMachine
from utils.errors import DataError
from utils.log import get_logger

_BFLOAT16 = np.dtype("V2")  # numpy has no such type; the two bytes are the upper half of a float32
_STORAGE_TYPES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "DoubleStorage": np.dtype("<f8"),
    "BFloat16Storage": _BFLOAT16,
}
_TORCH_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the first pickle of every older torch.save file
_ZIP_MAGIC = b"PK\x03\x04"
_INT = {int}
logger = get_logger(__name__)


class Storage(NamedTuple):
    """The numbers behind one or more tensors; `raw` is None while they are still further down in the file."""

    raw: memoryview | None
    dtype: np.dtype
    key: str


class StoredTensor(NamedTuple):
    """A tensor as the file describes it; `to_array` looks at its numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def to_array(self, raw: memoryview | None = None) -> NDArray[Any]:
        """The tensor's numbers, a read-only view of the file where possible.

        Args:
            raw: bytes of the storage, where the storage itself does not know them yet.

        Raises:
            ValueError: if the storage holds fewer numbers than the tensor claims.
        """
        storage, offset, shape, stride = self
        raw = storage.raw if raw is None else raw
        if len(shape) == 1 and stride == (1,):
            flat = np.frombuffer(raw, storage.dtype, shape[0], offset * storage.dtype.itemsize)
            return flat if storage.dtype is not _BFLOAT16 else _from_bfloat16(flat)
        flat = np.frombuffer(raw, storage.dtype)
        flat = _from_bfloat16(flat) if storage.dtype is _BFLOAT16 else flat
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if 0 not in shape and (last >= flat.size or math.prod(shape) > flat.size):
            raise ValueError(f"a tensor of shape {shape} does not fit its {flat.size} numbers")
        bytes_per_step = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, bytes_per_step, writeable=False)


def _from_bfloat16(values: NDArray[Any]) -> NDArray[np.float32]:
    return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


class TensorFile:
    """A file that holds one dictionary of tensors.

    Args:
        path: the file; it is mapped, not read.

    Raises:
        DataError: if the file is missing, empty, or of another kind.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._machine: PickleMachine | None = None
        try:
            with open(self.path, "rb") as file:
                self._data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError as error:
            raise DataError(
                f"{self.path}: embedding file not found. Check the path, or make an index with "
                f"`python -m retrieval embed`."
            ) from error
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            raise DataError(f"{self.path}: embedding file cannot be read ({error}).") from error

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self._data)

    @property
    def position(self) -> int:
        """How far `iterate` has come, in bytes."""
        return 0 if self._machine is None else self._machine.position

    def iterate(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """All entries in the file's order: (name, array of any float type; a view that is valid until the next).

        Raises:
            DataError: if the file is damaged, holds other things than tensors, or asks for anything to be executed.
        """
        head = bytes(self._data[: len(_TORCH_MAGIC)])
        if head == _TORCH_MAGIC:
            return self._older_torch_entries()
        if head.startswith(_ZIP_MAGIC):
            return self._zip_entries()
        return self._plain_entries()

    def _plain_entries(self) -> Iterator[tuple[str, NDArray[Any]]]:
        functions = _functions(_BytesReader(str(self.path)))
        return self._stream(
            lambda forgets: PickleMachine(self._data, source=str(self.path), functions=functions, forgets=forgets)
        )

    def _zip_entries(self) -> Iterator[tuple[str, NDArray[Any]]]:
        archive, functions = _ZipArchive(self._data, str(self.path)), _functions(None)
        pickle = archive.member("data.pkl")
        return self._stream(
            lambda forgets: PickleMachine(
                pickle, source=str(self.path), functions=functions, persistent=_storage, forgets=forgets
            ),
            lambda key: archive.member(f"data/{key}"),
        )

    def _stream(
        self, make_machine: Callable[[bool], PickleMachine], raw_of: Callable[[str], memoryview] | None = None
    ) -> Iterator[tuple[str, NDArray[Any]]]:
        num_done = 0
        for forgets in (True, False):  # a file whose entries share numbers is read again, remembering all of it
            self._machine = make_machine(forgets)
            num_seen = 0
            try:
                for batch in self._machine.iterate():
                    for place in range(0, len(batch), 2):
                        num_seen += 1
                        if num_seen <= num_done:
                            continue
                        name, tensor = batch[place], batch[place + 1]
                        self._check_entry(name, tensor)
                        yield name, self._array(name, tensor, raw_of(tensor.storage.key) if raw_of else None)
                        num_done += 1
                return
            except ForgottenError:
                logger.info("%s: entries refer to earlier ones; reading it again with more memory", self.path)

    def _array(self, name: str, tensor: StoredTensor, raw: memoryview | None) -> NDArray[Any]:
        try:
            return tensor.to_array(raw)
        except ValueError as error:
            raise DataError(f"{self.path}: the entry {name!r} is damaged ({error}). Get the file again.") from error

    def _check_entry(self, name: Any, tensor: Any) -> None:
        if type(name) is not str or type(tensor) is not StoredTensor:
            raise DataError(
                f"{self.path}: expected a dictionary of names and tensors, found {type(name).__name__} -> "
                f"{type(tensor).__name__} at byte {self.position}. Is this an embedding file?"
            )

    def _older_torch_entries(self) -> Iterator[tuple[str, NDArray[Any]]]:
        entries, raw = _older_torch_pickles(self._data, str(self.path))
        if type(entries) is not dict:
            raise DataError(f"{self.path}: expected a dictionary of names and tensors, found {type(entries).__name__}.")
        for name, tensor in entries.items():
            self._check_entry(name, tensor)
            yield name, self._array(name, tensor, raw[tensor.storage.key])


def read_tensor_dict(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a small file at once (the reference embeddings of ReCo, for example).

    Args:
        path: pickled or `torch.save`d dictionary, name -> tensor on any device.

    Returns:
        Name -> CPU tensor of its own, in the file's order and type (bfloat16 as float32).

    Raises:
        DataError: as `TensorFile`.
    """
    return {name: torch.from_numpy(np.array(array)) for name, array in TensorFile(path).iterate()}


# What a pickle of tensors may ask for


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    numbers = (offset, *shape, *stride)
    if type(storage) is not Storage or len(shape) != len(stride) or set(map(type, numbers)) != _INT or min(numbers) < 0:
        raise TypeError("a tensor without numbers")
    return StoredTensor(storage, offset, shape, stride)


def _storage(reference: tuple[Any, ...]) -> Storage:
    kind, dtype, key = reference[:3]
    if kind != "storage" or not isinstance(dtype, np.dtype):
        raise TypeError(f"a reference to {kind!r}")
    return Storage(None, dtype, key)


def _latin_bytes(text: str, encoding: str) -> memoryview:
    """How pickles of protocol 2 spell bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return memoryview(text.encode("latin1"))


def _functions(load_from_bytes: Callable[[memoryview], Storage] | None) -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {("torch", name): dtype for name, dtype in _STORAGE_TYPES.items()}
    allowed["collections", "OrderedDict"] = dict
    allowed["torch._utils", "_rebuild_tensor_v2"] = _rebuild_tensor
    if load_from_bytes is not None:
        allowed["torch.storage", "_load_from_bytes"] = load_from_bytes
        allowed["_codecs", "encode"] = _latin_bytes
    return allowed


class _BytesReader:
    """Finds the numbers in a storage that was serialised into bytes of its own (one per tensor of a plain pickle).

    Such bytes differ from entry to entry only in the storage's key and in the numbers, so one is parsed and the
    others are compared with it, which is much faster.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._templates: list[tuple[bytes, bytes, bytes, np.dtype, int]] = []

    def __call__(self, data: memoryview) -> Storage:
        for template in self._templates:
            before, between, after, dtype, num_bytes = template
            head = bytes(data[: len(data) - num_bytes])
            begin = len(before)
            key = head[begin : begin + 4 + int.from_bytes(head[begin : begin + 4], "little")]
            if head == before + key + between + key + after:
                return Storage(data[len(head) :], dtype, "")
        return self._parse(data)

    def _parse(self, data: memoryview) -> Storage:
        if bytes(data[:4]) == _ZIP_MAGIC:
            archive = _ZipArchive(data, self.source)
            pickle = archive.member("data.pkl")
            storage = PickleMachine(pickle, source=self.source, functions=_functions(None), persistent=_storage).run()
            return Storage(archive.member(f"data/{storage.key}"), storage.dtype, "")
        storage, raw = _older_torch_pickles(data, self.source)
        if type(storage) is not Storage:
            raise TypeError("bytes that hold no storage")
        self._learn(data, storage, raw[storage.key])
        return Storage(raw[storage.key], storage.dtype, "")

    def _learn(self, data: memoryview, storage: Storage, raw: memoryview) -> None:
        key = len(storage.key.encode()).to_bytes(4, "little") + storage.key.encode()
        parts = bytes(data[: len(data) - len(raw)]).split(key)
        if len(parts) == 3 and bytes(data[len(data) - len(raw) :]) == bytes(raw) and len(self._templates) < 64:
            self._templates.append((*parts, storage.dtype, len(raw)))


def _older_torch_pickles(data: memoryview, source: str) -> tuple[Any, dict[str, memoryview]]:
    """The object of an older `torch.save`, and the bytes of each of its storages by key."""
    if bytes(data[: len(_TORCH_MAGIC)]) != _TORCH_MAGIC:
        raise DataError(f"{source}: numbers in a form that no torch.save writes. Get the file again.")
    dtypes: dict[str, np.dtype] = {}

    def noted_storage(reference: tuple[Any, ...]) -> Storage:
        storage = _storage(reference)
        dtypes[storage.key] = storage.dtype
        return storage

    position, results = len(_TORCH_MAGIC), []
    for _ in range(4):  # protocol version, machine, object, keys
        machine = PickleMachine(
            data, position=position, source=source, functions=_functions(None), persistent=noted_storage
        )
        results.append(machine.run())
        position = machine.position
    _, machine_facts, found, keys = results
    if type(machine_facts) is not dict or not _are_texts(keys) or not set(keys) >= dtypes.keys():
        raise DataError(f"{source}: damaged, its list of storages does not fit. Make or download it again.")
    if not machine_facts.get("little_endian", True):
        raise DataError(f"{source}: written on a big-endian machine, which is not supported.")
    return found, _raw_storages(data, position, keys, dtypes, source)


def _are_texts(keys: Any) -> bool:
    return type(keys) is list and all(type(key) is str for key in keys)


def _raw_storages(
    data: memoryview, position: int, keys: list[str], dtypes: dict[str, np.dtype], source: str
) -> dict[str, memoryview]:
    raw = {}
    for key in filter(dtypes.__contains__, keys):
        num_bytes = int.from_bytes(data[position : position + 8], "little") * dtypes[key].itemsize
        position += 8
        raw[key] = data[position : position + num_bytes]
        if len(raw[key]) != num_bytes:
            raise DataError(f"{source}: ends in the middle of a tensor. It is cut off: make or download it again.")
        position += num_bytes
    return raw


class _ZipArchive:
    """Members of a zip-form `torch.save`, which lie uncompressed in the file, as views of it."""

    def __init__(self, data: memoryview, source: str) -> None:
        self._data, self._source = data, source
        try:
            with zipfile.ZipFile(_ViewFile(data)) as archive:
                self._places = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise DataError(f"{source}: damaged or cut off ({error}). Make or download it again.") from error

    def member(self, name: str) -> memoryview:
        info = self._places.get(name)
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise DataError(f"{self._source}: has no readable part {name!r}, so it is no file of torch.save.")
        head = info.header_offset
        name_size, extra_size = (int.from_bytes(self._data[head + at : head + at + 2], "little") for at in (26, 28))
        begin = head + 30 + name_size + extra_size
        return self._data[begin : begin + info.file_size]


class _ViewFile:
    """As much of a file as `zipfile` needs, over a memoryview."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._place = data, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._place = offset + (0, self._place, len(self._data))[whence]
        if self._place < 0:
            raise OSError("before the beginning")
        return self._place

    def tell(self) -> int:
        return self._place

    def read(self, size: int = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._place + size
        chunk = bytes(self._data[self._place : end])
        self._place += len(chunk)
        return chunk
