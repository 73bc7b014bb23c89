"""Log lines and progress: quiet when not a terminal, one rank speaks."""

from __future__ import annotations

import logging
import sys
import types
from pathlib import Path

import pytest

from utils import log
from utils.log import describe_progress, format_seconds, get_logger, progress, setup_logging


@pytest.fixture(autouse=True)
def clean() -> object:
    root = logging.getLogger("unmasked")
    before = (list(root.handlers), root.level, root.propagate)
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level, root.propagate = before


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min 01 s"), (7380, "2 h 03 min"), (90_000, "1 d 1 h"), (-5, "0 s")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_one_line_of_progress() -> None:
    line = describe_progress("pseudo-masks", 120, 500, "image", 10.0)
    assert line == "pseudo-masks: 120 of 500 images, 12 images/s, 32 s left"
    assert describe_progress("reading", 5, None, "it", 10.0) == "reading: 5 it, 0.5 it/s"


def test_progress_without_a_terminal_logs_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(log, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    setup_logging()
    assert list(progress(range(25), description="embedding", unit="image")) == list(range(25))
    lines = [line for line in capsys.readouterr().err.splitlines() if "embedding" in line]
    assert len(lines) == 2
    assert "embedding: 9 of 25 images, 0.9 images/s, 18 s left" in lines[0]


def test_progress_on_a_terminal_shows_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert list(progress([1, 2], description="masks", unit="image")) == [1, 2]
    assert "masks" in capsys.readouterr().err


def test_ranks_other_than_zero_are_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    setup_logging()
    get_logger("training.loop").info("hello")
    get_logger("training.loop").error("broken")
    assert list(progress([1], description="x")) == [1]
    shown = capsys.readouterr().err
    assert "hello" not in shown
    assert "broken" in shown


def test_log_file_and_repeated_setup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(file=tmp_path / "logs" / "run.log")
    setup_logging("WARNING", file=tmp_path / "logs" / "run.log")
    get_logger("utils.x").info("not shown")
    get_logger("utils.x").warning("shown once")
    assert (tmp_path / "logs" / "run.log").read_text().count("shown") == 1
    assert capsys.readouterr().err.count("shown once") == 1
