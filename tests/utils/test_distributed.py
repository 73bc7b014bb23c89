"""Ranks: one process, torchrun's environment without a process group, and two processes that talk."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from utils import cli, distributed
from utils.device import autocast, precision_dtype, select_device
from utils.errors import ConfigError, DataError


def test_one_process() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_gather_objects({"a": 1}) == [{"a": 1}]
    value = torch.arange(3)
    total = distributed.all_reduce_sum(value)
    assert torch.equal(total, value)
    assert total.data_ptr() != value.data_ptr()
    distributed.barrier()
    assert list(distributed.shard([1, 2, 3])) == [1, 2, 3]
    done: list[int] = []
    distributed.on_main(lambda: done.append(1))
    assert done == [1]


def test_shards_cover_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    parts = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        parts.append(list(distributed.shard(range(8))))
        assert distributed.is_main() == (rank == 0)
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


def _refuse() -> None:
    raise DataError("no such picture")


def _told(work: Callable[[], None]) -> str:
    try:
        distributed.on_main(work)
    except DataError as error:
        return str(error)
    return "done"


def _talk(rank: int, init: str, answers: multiprocessing.Queue) -> None:
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    distributed.barrier()
    total = distributed.all_reduce_sum(torch.tensor([1.0, float(rank)]))
    gathered = distributed.all_gather_objects(("rank", distributed.rank()))
    gathered += [_told(_refuse), _told(lambda: None if rank == 0 else _refuse())]
    answers.put((rank, total.tolist(), gathered, distributed.world_size(), list(distributed.shard(range(5)))))
    distributed.barrier()
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    children = [context.Process(target=_talk, args=(i, f"file://{tmp_path}/init", answers)) for i in range(2)]
    for child in children:
        child.start()
    found = sorted(answers.get(timeout=120) for _ in children)
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    for rank, total, gathered, size, part in found:
        assert (total, size) == ([2.0, 1.0], 2)
        assert gathered == [("rank", 0), ("rank", 1), "no such picture", "done"]
        assert part == [[0, 2, 4], [1, 3]][rank]


def _command(rank: int, init: str, folder: Path, case: str) -> None:
    """Let `run_command` run one of two ranks, and note down what it wrote and when."""
    sys.stderr = open(folder / f"{rank}.txt", "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
    cli.HEAD_START_SECONDS = 0.1

    def work() -> None:
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
        distributed.barrier()
        if case == "late" and rank == 0:
            time.sleep(0.5)
            (folder / "report").touch()
        if rank == 1 and case in ("own error", "bug"):
            raise DataError("no such picture") if case == "own error" else ZeroDivisionError("a bug")
        if rank == 0 and case == "waits":
            raise DataError("only here")

    status = cli.run_command(work)
    assert not dist.is_initialized()
    assert case != "late" or (folder / "report").exists()  # rank one waited
    sys.stderr.flush()
    os._exit(status)


@pytest.mark.parametrize(
    ("case", "statuses", "told"),
    [
        ("late", [0, 0], ["", ""]),
        ("own error", [0, 2], ["", "error: no such picture\n"]),
        ("bug", [0, 1], ["", "Traceback"]),
        ("waits", [2, 0], ["error: only here\n", ""]),
    ],
)
def test_commands_of_two_processes_end_together(
    tmp_path: Path, case: str, statuses: list[int], told: list[str]
) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_command, args=(i, f"file://{tmp_path}/init", tmp_path, case)) for i in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == statuses
    for rank, start in enumerate(told):
        text = (tmp_path / f"{rank}.txt").read_text()
        assert text.startswith(start)
        assert start or not text


def test_an_error_of_all_ranks_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(
        "import sys\nfrom utils.cli import run_command\nfrom utils.errors import DataError\n\n"
        "def work():\n    raise DataError('no such picture')\n\nsys.exit(run_command(work))\n"
    )
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*words, str(tmp_path / "fails.py")], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("error: no such picture") == 1


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select_device("auto") == torch.device("cpu")
    with pytest.raises(ConfigError, match=r"device: 'cuda' asks for GPU 0, but this machine has no GPU that PyTorch"):
        select_device("cuda")
    with pytest.raises(ConfigError, match="device: expected auto, cpu, cuda or cuda:<number>, received 'gpu'"):
        select_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert select_device("auto") == torch.device("cuda", 1)
    assert select_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match=r"'cuda:2' asks for GPU 2, but this machine has 2 GPU\(s\)"):
        select_device("cuda:2")


def test_precision() -> None:
    a = torch.randn(4, 4)
    with autocast("cpu", "fp32"):
        assert (a @ a).dtype == torch.float32
    for precision in ("bf16", "fp16"):  # the CPU has no fp16 autocast: bf16 takes its place
        with autocast(torch.device("cpu"), precision):
            assert (a @ a).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match="precision: expected one of fp32, bf16, fp16, received 'fp8'"):
        precision_dtype("fp8")
