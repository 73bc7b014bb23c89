"""Free memory as the kernel tells it."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils import memory
from utils.memory import available_memory, format_bytes


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:       8000 kB\nMemAvailable:   5000 kB\nHugePages_Total:       0\n")
    return tmp_path


def test_machine_without_a_limit(system: Path):
    assert available_memory() == 5000 * 1024
    (system / "memory.max").write_text("max\n")
    (system / "memory.current").write_text("123\n")
    assert available_memory() == 5000 * 1024


def test_the_limit_of_a_container_counts_if_it_leaves_less(system: Path):
    (system / "memory.max").write_text("3000000\n")
    (system / "memory.current").write_text("1000000\n")
    assert available_memory() == 2_000_000
    (system / "memory.stat").write_text("anon 700000\ninactive_file 250000\n")
    assert available_memory() == 2_250_000
    (system / "memory.max").write_text("9000000000\n")
    assert available_memory() == 5000 * 1024


def test_other_systems_do_not_tell(system: Path):
    (system / "meminfo").unlink()
    assert available_memory() is None


def test_this_machine_is_read():
    free = available_memory()
    assert free is None or free > 1 << 20


def test_sizes_in_words():
    assert format_bytes(812 * 2**20) == "812 MiB"
    assert format_bytes(3.4 * 2**30) == "3.4 GiB"
