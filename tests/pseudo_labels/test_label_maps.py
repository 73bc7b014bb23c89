"""Label maps as PNGs: what is written is whole, in threads too, and what is not whole is told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pseudo_labels.label_maps import LabelWriter, is_complete, write_label_map
from utils.errors import UserError


def test_labels_come_back(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (17, 31))
    write_label_map(tmp_path / "a" / "b.png", labels)
    image = Image.open(tmp_path / "a" / "b.png")
    assert image.mode == "L"
    assert np.array_equal(np.asarray(image), labels)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def test_cut_off_files_are_not_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert not is_complete(path)
    write_label_map(path, np.zeros((5, 5), int))
    assert is_complete(path)
    whole = path.read_bytes()
    for end in (0, 3, len(whole) - 1):
        path.write_bytes(whole[:end])
        assert not is_complete(path)
    assert not is_complete(tmp_path)


def test_threads_write_everything(tmp_path: Path) -> None:
    with LabelWriter(num_threads=3) as writer:
        for number in range(60):
            writer.write(tmp_path / f"{number}.png", np.full((4, 4), number))
    assert all((np.asarray(Image.open(tmp_path / f"{n}.png")) == n).all() for n in range(60))


def _write_many(folder: Path, fail_after: int = 40) -> None:
    with LabelWriter() as writer:
        for number in range(40):
            writer.write(folder / f"{number}.png", np.zeros((4, 4), int) + 1 // (fail_after - number))


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(UserError, match="folder"):
        _write_many(tmp_path / "folder")


def test_an_error_of_the_caller_is_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        _write_many(tmp_path, fail_after=3)
    assert not list(tmp_path.glob(".*"))  # nothing is left half-written
