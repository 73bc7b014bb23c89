"""Published pickles become embedding folders once, exactly, in little memory, and go on where they were stopped."""

from __future__ import annotations

import pickle
import resource

import numpy as np
import pytest
import torch

import retrieval.convert
from retrieval.convert import convert_pickle, write_embedding_pickle
from retrieval.index import ArrayIndex, open_index
from tests.processes import run_process
from utils.errors import DataError


def _write(path, count, width=6, half=True):
    values = torch.randn(count, width, generator=torch.Generator().manual_seed(count))
    values = values.half().float() if half else values
    path.write_bytes(pickle.dumps({f"n{i % 3}_{i}.JPEG": values[i].clone() for i in range(count)}))
    return values.numpy()


def _all_rows(index):
    return np.concatenate([block for _, block in index.blocks(7)])


@pytest.mark.parametrize("half", [True, False])
def test_numbers_and_names_are_kept(tmp_path, half):
    path = tmp_path / "filename_to_x_img_embedding.pkl"
    values = _write(path, 25, half=half)
    folder = convert_pickle(path, part_size=10)
    index = open_index(folder)
    assert folder == tmp_path / "filename_to_x_img_embedding"
    assert np.load(folder / "img_emb" / "img_emb_0002.npy").dtype == (np.float16 if half else np.float32)
    assert np.array_equal(_all_rows(index).astype(np.float32), values)
    assert index.paths(range(25)) == [f"n{i % 3}_{i}.JPEG" for i in range(25)]


def test_converted_once_and_again_when_the_file_changes(tmp_path):
    path = tmp_path / "e.pkl"
    _write(path, 25)
    folder = convert_pickle(path, part_size=10)
    before = {part: part.stat().st_mtime_ns for part in folder.rglob("*.npy")}
    assert len(open_index(path)) == 25
    assert {part: part.stat().st_mtime_ns for part in folder.rglob("*.npy")} == before
    values = _write(path, 31)
    assert np.array_equal(_all_rows(open_index(convert_pickle(path, part_size=10))).astype(np.float32), values)


def _convert_and_die(path):
    import os
    import signal

    written = retrieval.convert.write_part

    def write_two(folder, number, *arguments, **options):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written(folder, number, *arguments, **options)

    retrieval.convert.write_part = write_two
    convert_pickle(path, part_size=10)


def test_killed_conversion_goes_on(tmp_path):
    path = tmp_path / "e.pkl"
    values = _write(path, 45)
    assert run_process(_convert_and_die, path) == -9
    folder = tmp_path / "e"
    kept = {part: part.stat().st_mtime_ns for part in (folder / "img_emb").glob("img_emb_*.npy")}
    assert len(kept) == 2
    with pytest.raises(DataError, match=r"this index is not complete \(its making was cut off\)"):
        open_index(folder)
    index = open_index(convert_pickle(path, part_size=10))
    assert all(part.stat().st_mtime_ns == time for part, time in kept.items())
    assert np.array_equal(_all_rows(index).astype(np.float32), values)


def _convert_measured(path, report):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    convert_pickle(path, part_size=1000)
    report.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), encoding="utf-8")


def test_memory_does_not_grow_with_the_number_of_entries(tmp_path):
    grown = []
    for count in (5_000, 50_000):
        path, report = tmp_path / f"{count}.pkl", tmp_path / "report.txt"
        names = [f"{i}.jpg" for i in range(count)]
        write_embedding_pickle(ArrayIndex(np.zeros((count, 8), np.float16), names), path)
        assert run_process(_convert_measured, path, report) == 0
        grown.append(int(report.read_text(encoding="utf-8")))
    size_kib = (tmp_path / "50000.pkl").stat().st_size / 1024  # the mapped file itself counts as resident
    assert grown[1] - grown[0] < size_kib + 8 * 1024, grown


def test_written_pickle_is_read_by_plain_pickle_and_by_us(tmp_path):
    values = np.random.default_rng(0).standard_normal((9, 5)).astype(np.float16)
    index = ArrayIndex(values, [f"/somewhere/ü_{i}.jpg" for i in range(9)])
    path = tmp_path / "out.pkl"
    write_embedding_pickle(index, path, block_size=4)
    found = pickle.loads(path.read_bytes())
    assert list(found) == [f"ü_{i}.jpg" for i in range(9)]
    assert all(t.dtype == torch.float32 and not t.requires_grad for t in found.values())
    assert np.array_equal(torch.stack(list(found.values())).numpy(), values.astype(np.float32))
    assert np.array_equal(_all_rows(open_index(path)), values)


def test_two_images_of_one_name_cannot_be_written(tmp_path):
    index = ArrayIndex(np.zeros((2, 3), np.float16), ["a/x.jpg", "b/x.jpg"])
    with pytest.raises(DataError, match=r"two images are called 'x.jpg'"):
        write_embedding_pickle(index, tmp_path / "out.pkl")
    assert not (tmp_path / "out.pkl").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, r"holds no embedding at all"),
        ({"a": torch.ones(3), "b": torch.ones(4)}, r"embedding of 'b' has 4 numbers, those before it 3"),
        ({"a": torch.ones(3), "b": torch.tensor([1.0, float("nan"), 0.0])}, r"embedding of 'b' is not finite"),
    ],
)
def test_bad_content(tmp_path, entries, message):
    path = tmp_path / "e.pkl"
    path.write_bytes(pickle.dumps(entries))
    with pytest.raises(DataError, match=message):
        convert_pickle(path)
