"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from utils.errors import DataError, UserError
from utils.files import RunLock, atomic_write, check_writable, read_json, write_json, write_text

ROOT = Path(__file__).parents[2]


class FullDisk:
    """A file that takes a few bytes and then says that the disk is full."""

    def __init__(self, path: str, mode: str, room: int) -> None:
        self.file = io.open(path, mode)  # noqa: SIM115, UP020 - the built-in one is replaced
        self.room = room

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.file.write(taken)
        self.file.flush()
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()


def fill_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr("builtins.open", lambda path, mode="r", **_: FullDisk(path, mode, room))


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_appears_only_when_it_is_whole(tmp_path: Path, sync: bool) -> None:
    path = tmp_path / "new" / "folder" / "a.bin"
    with atomic_write(path, sync=sync) as file:
        file.write(b"whole")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(path.parent) == ["a.bin"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path, "w") as file:
        file.write(f"new {1 / 0}")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_is_told_with_path_bytes_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.pt"
    fill_disk(monkeypatch, room=7)
    with pytest.raises(UserError) as caught, atomic_write(path) as file:
        file.write(b"0123456789")
    monkeypatch.undo()
    text = str(caught.value)
    assert text.startswith(f"{path}: the disk is full (stopped after 7 bytes; nothing was left behind).")
    assert "Free some space" in text
    assert "run the same command again" in text
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt: cannot be written \((Not a directory|File exists)\)"):
        write_text(tmp_path / "file" / "a.txt", "x")


def forbid_folders(monkeypatch: pytest.MonkeyPatch, below: Path) -> None:
    """Folders below a path cannot be made, as by a user who may not write there (the tests may run as root)."""
    mkdir = os.mkdir

    def refuse(path: str | Path, *args: object, **options: object) -> None:
        if below in Path(path).parents and Path(path).parent.exists():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", refuse)


@pytest.mark.parametrize("name", ["a.txt", "b/a.txt", "b/c/d/a.txt"])
def test_a_folder_without_permission_is_told_however_deep_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    forbid_folders(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=rf"{name}: cannot be written \(Permission denied\)"):
        write_text(tmp_path / "out" / name, "x")


def test_folders_for_results_are_tried_and_left_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    for folder in ("there", "new", "new/and/deep", "there/new"):
        check_writable(tmp_path / folder, advice="Choose another.")
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "there" / "file").write_text("x")
    for folder in ("there/file", "there/file/out", "there/file/out/deep"):
        with pytest.raises(UserError) as caught:
            check_writable(tmp_path / folder, advice="Choose another.")
        assert str(caught.value) == (f"{tmp_path / folder}: cannot be written (a file is in the way). Choose another.")
    forbid_folders(monkeypatch, tmp_path)
    with pytest.raises(UserError, match=r"out: cannot be written \(Permission denied\)\. Choose another\.$"):
        check_writable(tmp_path / "new" / "out", advice="Choose another.")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "there"]


def test_a_folder_that_takes_no_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\)\. Choose another\."):
        check_writable(tmp_path, advice="Choose another.")


def test_errors_of_other_files_inside_the_block_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "a"):
        (tmp_path / "other").read_bytes()
    assert os.listdir(tmp_path) == []


def test_unknown_modes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mode must be"), atomic_write(tmp_path / "a", "r"):
        pass


def test_a_killed_writer_leaves_no_file_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    code = (
        "import sys, time\nfrom utils.files import atomic_write\n"
        f"with atomic_write({str(path)!r}) as file:\n"
        "    file.write(b'half'); file.flush(); print('now', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"now\n"
        child.send_signal(signal.SIGKILL)
    assert not path.exists()
    write_text(path, "again")
    assert path.read_text() == "again"


def test_json_round_trip_with_numpy_paths_and_number_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": np.float32(0.5), "y": np.arange(3), "p": Path("/a"), 4: None, "s": {2, 1}})
    assert read_json(tmp_path / "a.json") == {"x": 0.5, "y": [0, 1, 2], "p": "/a", "4": None, "s": [1, 2]}


def test_corrupt_json_is_told_with_its_position(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"cat": ["a.jpg",\n "b.j')
    with pytest.raises(DataError) as caught:
        read_json(path, what="retrieval file")
    assert str(caught.value).startswith(f"{path}: retrieval file is not valid JSON: ")
    assert "at line 2, column" in str(caught.value)
    assert "cut off" in str(caught.value)


def test_missing_json_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.json: COCO annotations not found\. Check the path"):
        read_json(tmp_path / "nothing.json", what="COCO annotations")
    with pytest.raises(DataError, match="cannot be read"):
        read_json(tmp_path)


def test_a_run_folder_serves_one_living_process(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom utils.files import RunLock\n"
        f"with RunLock({str(tmp_path / 'run')!r}):\n    print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(UserError) as caught, RunLock(tmp_path / "run"):
            pass
        assert f"{tmp_path / 'run'}: this folder is in use by process {child.pid} on " in str(caught.value)
        assert "another folder or suffix" in str(caught.value)
        child.send_signal(signal.SIGKILL)
    for _ in range(100):  # the lock of a killed process is gone as soon as the kernel has cleaned up
        try:
            with RunLock(tmp_path / "run"):
                return
        except UserError:
            time.sleep(0.02)
    pytest.fail("a stale lock was honoured")


def test_a_lock_can_be_taken_again_after_it_was_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with RunLock(tmp_path):
            pass
