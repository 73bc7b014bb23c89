"""The cache of text embeddings: a help where it works, and no hindrance where it does not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from systems.text_cache import cached_text


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    """Makes embeddings and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Tensor:
        self.times += 1
        return torch.arange(6.0).reshape(2, 3).T  # a view: safetensors wants its own memory


def ask(make: Maker, *names: str) -> None:
    assert torch.equal(cached_text("ViT-B/16", "fp32", *names, make=make), torch.arange(6.0).reshape(2, 3).T)


def test_made_once_for_the_same_words(cache: Path) -> None:
    make = Maker()
    for names in (("cat",), ("cat",), ("cat", "dog"), ("cat",)):
        ask(make, *names)
    assert make.times == 2
    assert len(list(cache.rglob("*.safetensors"))) == 2


def test_a_cache_that_cannot_be_written_is_told_once(cache: Path, log_text) -> None:
    cache.write_text("a file is in the way")
    make = Maker()
    for name in ("cat", "cat", "dog"):
        ask(make, name)
    assert make.times == 3
    (record,) = log_text.records
    assert "UNMASKED_CACHE" in record.getMessage()
    assert record.levelname == "WARNING"
    assert str(cache) in record.getMessage()
    assert "cannot be written" in record.getMessage()


def test_a_cache_without_permission(cache: Path, log_text, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str | Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))  # modes do not stop root

    make = Maker()
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", refuse)
        ask(make, "cat")
    assert "Permission denied" in log_text.text
    ask(make, "cat")
    with monkeypatch.context() as patched:
        patched.setattr("systems.text_cache.load_file", refuse)
        ask(make, "cat")
    assert make.times == 3
    assert "cannot be read" in log_text.text


def test_a_damaged_file_is_made_again(cache: Path, log_text) -> None:
    make = Maker()
    ask(make, "cat")
    (path,) = cache.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    ask(make, "cat")
    assert f"{path}: these text embeddings cannot be read" in log_text.text
    ask(make, "cat")
    assert make.times == 2
