"""The metrics file: whole lines only, one history, resumed where the checkpoint is."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import pytest

from training.metric_log import MetricLog, read_metrics
from training.run_folder import RunFolder, plain
from utils.errors import UserError


def write(run: RunFolder, iterations: list[int], start: int = 0) -> None:
    with MetricLog(run, start) as log:
        for iteration in iterations:
            log.write("train", iteration, {"loss": float(iteration)})


def iterations(run: RunFolder) -> list[int]:
    return [row["iteration"] for row in read_metrics(run.metrics_path)]


def test_lines_after_the_checkpoint_are_removed(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write(run, [1, 2, 3, 4])
    write(run, [3, 5], start=2)
    assert iterations(run) == [1, 2, 3, 5]
    write(run, [7])
    assert iterations(run) == [7]


def test_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write(run, [1, 2])
    with open(run.metrics_path, "ab") as file:
        file.write(b'{"kind":"train","iter')
    assert iterations(run) == [1, 2]
    write(run, [3], start=2)
    assert iterations(run) == [1, 2, 3]


def test_damaged_line_is_named(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.metrics_path.write_text('{"iteration": 1}\noops\n{"iteration": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        read_metrics(run.metrics_path)


def test_nan_is_null_so_that_every_reader_takes_the_file(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with MetricLog(run) as log:
        log.write("eval", 1, {"miou": math.nan}, seconds=1.5)
    assert read_metrics(run.metrics_path) == [{"kind": "eval", "iteration": 1, "seconds": 1.5, "miou": None}]


def test_full_disk_is_told(tmp_path: Path) -> None:
    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    with MetricLog(RunFolder(tmp_path)) as log:
        log._file.close()
        log._file: Any = Full()
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left.*--resume auto"):
            log.write("train", 1, {"loss": 1.0})


def test_settings_become_plain_values() -> None:
    settings = {"path": Path("a/b"), "names": ("cat", "dog"), "ids": {2, 1}, 3: None, "deep": {"x": 1.5}}
    assert plain(settings) == {"path": "a/b", "names": ["cat", "dog"], "ids": [1, 2], "3": None, "deep": {"x": 1.5}}
