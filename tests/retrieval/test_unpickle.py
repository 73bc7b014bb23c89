"""The restricted unpickler: every form of a tensor file is read, none is executed."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retrieval.unpickle import TensorFile, read_tensor_dict
from utils.errors import DataError


def _tensors(count: int = 7, width: int = 5) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return {f"n{i:03d}_{i}.JPEG": torch.randn(width, generator=generator) for i in range(count)}


def _assert_same(path: Path, expected: dict[str, Tensor]) -> None:
    found = read_tensor_dict(path)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name].double(), tensor.double()), name


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [1, 7, 1500])
def test_plain_pickle(tmp_path, protocol, count):
    path = tmp_path / "e.pkl"
    tensors = _tensors(count)
    path.write_bytes(pickle.dumps(tensors, protocol=protocol))
    _assert_same(path, tensors)


@pytest.mark.parametrize("new", [True, False])
def test_torch_save(tmp_path, new):
    path = tmp_path / "e.pt"
    for tensors in (_tensors(40), OrderedDict(_tensors(3))):
        torch.save(tensors, path, _use_new_zipfile_serialization=new)
        _assert_same(path, tensors)


def test_other_shapes_types_and_views(tmp_path):
    base = torch.arange(24.0)
    tensors = {
        "view": base[5:9],
        "transposed": base.view(4, 6).t(),
        "strided": base[::3],
        "half": base[:4].half(),
        "double": base.double()[2:5],
        "bfloat16": base.bfloat16(),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0),
        "grad": torch.ones(3, requires_grad=True),
        "same": base[5:9],
    }
    for name, save in (("a.pkl", lambda t, p: p.write_bytes(pickle.dumps(t))), ("b.pt", torch.save)):
        save(tensors, tmp_path / name)
        _assert_same(tmp_path / name, {key: tensor.detach() for key, tensor in tensors.items()})


def test_same_tensor_under_two_names_far_apart(tmp_path):
    tensors = _tensors(3000, 2)
    tensors["again"] = tensors["n000_0.JPEG"]
    path = tmp_path / "e.pkl"
    path.write_bytes(pickle.dumps(tensors))
    _assert_same(path, tensors)
    tensors["later"] = tensors["n1500_1500.JPEG"]
    path.write_bytes(pickle.dumps(tensors))
    _assert_same(path, tensors)


def _as_if_from_gpu(tensors: dict[str, Tensor]) -> bytes:
    """What pickling on a GPU gives: storages with the location cuda:0 in bytes of their own."""
    data = pickle.dumps(tensors, protocol=4)
    old = b"X\x03\x00\x00\x00cpu"
    new = b"X\x06\x00\x00\x00cuda:0"
    assert data.count(old) == len(tensors)  # each storage is a byte string, whose length grows with the text
    out = b""
    place = 0
    while True:
        begin = data.find(b"\x80\x02\x8a\x0a\x6c\xfc", place)
        if begin < 0:
            break
        short = data[begin - 2 : begin - 1] == b"C"
        size_at = begin - 1 if short else begin - 4
        size = int.from_bytes(data[size_at:begin], "little")
        out += data[place : size_at - 1]
        storage = data[begin : begin + size].replace(old, new)
        out += b"B" + len(storage).to_bytes(4, "little") + storage
        place = begin + size
    out += data[place:]
    frame = out.index(b"\x95")  # one frame: leave its header out, as it is optional
    return out[:frame] + out[frame + 9 :]


def test_tensors_from_a_gpu(tmp_path):
    path = tmp_path / "e.pkl"
    tensors = _tensors(5, 3)
    path.write_bytes(_as_if_from_gpu(tensors))
    assert b"cuda:0" in path.read_bytes()
    _assert_same(path, tensors)


class _Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_malicious_pickle_is_not_executed(tmp_path, protocol):
    marker = tmp_path / "executed"
    attack = {"good": torch.ones(2), "bad": _Attack(marker)}
    path = tmp_path / "e.pkl"
    path.write_bytes(pickle.dumps(attack, protocol=protocol))
    with pytest.raises(DataError, match=r"asks Python for '(posix|nt)\.system'.*nothing in it was executed"):
        read_tensor_dict(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())
    assert marker.exists(), "the attack itself must work, or this test shows nothing"


def test_malicious_bytes_inside_an_entry_are_not_executed(tmp_path):
    marker = tmp_path / "executed"
    inner = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e") + pickle.dumps(_Attack(marker), protocol=2) * 4

    class Inside:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner,)

    path = tmp_path / "e.pkl"
    path.write_bytes(pickle.dumps({"a": Inside()}))
    with pytest.raises(DataError, match=r"asks Python for"):
        read_tensor_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize("make", [lambda t, p: p.write_bytes(pickle.dumps(t)), torch.save])
def test_cut_off_anywhere(tmp_path, make):
    path = tmp_path / "e.pkl"
    make(_tensors(4), path)
    data = path.read_bytes()
    for size in range(1, len(data), 13):
        path.write_bytes(data[:size])
        with pytest.raises(DataError, match=r"e\.pkl"):
            read_tensor_dict(path)


@pytest.mark.parametrize("kind", ["plain", "zip", "older"])
def test_changed_bytes_never_crash_otherwise(tmp_path, kind):
    path = tmp_path / "e.pkl"
    if kind == "plain":
        path.write_bytes(pickle.dumps(_tensors(3)))
    else:
        torch.save(_tensors(3), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(400):
        changed = bytearray(data)
        changed[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(changed)
        with contextlib.suppress(DataError):
            read_tensor_dict(path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {1: torch.ones(1)}, "text", {"a": {"b": torch.ones(1)}}])
def test_other_content(tmp_path, content):
    path = tmp_path / "e.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"e\.pkl: (holds no dictionary|expected a dictionary of names and tensors)"):
        read_tensor_dict(path)


def test_missing_and_empty(tmp_path):
    with pytest.raises(DataError, match=r"embedding file not found.*python -m retrieval embed"):
        TensorFile(tmp_path / "none.pkl")
    (tmp_path / "e.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"cannot be read"):
        TensorFile(tmp_path / "e.pkl")
