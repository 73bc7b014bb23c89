"""The measuring itself: medians, memory, ratios, the table and the JSON file. No time decides a test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.harness import Context, Measurement, peak_memory, time_call

NEEDED = {"name", "workload", "seconds", "plain_seconds", "ratio", "limit", "limit_fraction", "peak_mib"}
NEEDED |= {"plain_peak_mib", "threads", "device"}


def test_short_calls_are_repeated_and_long_ones_counted() -> None:
    calls = 0

    def work() -> None:
        nonlocal calls
        calls += 1

    timing = time_call(work, repeats=3, min_seconds=0.001)
    assert calls > 10
    assert timing.repeats == 3
    assert timing.seconds > 0


def test_pairs_are_taken_in_turns() -> None:
    order: list[str] = []
    ours, plain = Context(repeats=3).time_pair(lambda: order.append("o"), lambda: order.append("p"), plain_repeats=1)
    assert "".join(order) == "op" + "opoo"
    assert (ours.repeats, plain.repeats) == (3, 1)


@pytest.mark.parametrize("anonymous_only", [False, True])
def test_peak_memory_is_what_the_call_needs(anonymous_only: bool) -> None:
    def work() -> None:
        block = torch.ones(64 * 1024 * 1024, dtype=torch.uint8)
        block += 1

    for _ in range(2):  # memory freed by the first call must not hide the need of the second
        assert 60 <= peak_memory(work, anonymous_only=anonymous_only) <= 80
    assert peak_memory(lambda: None, anonymous_only=anonymous_only) < 8


def test_ratios_and_fractions() -> None:
    measured = Measurement("a", "w", seconds=2.0, plain_seconds=6.0, limit="copy", limit_seconds=1.0)
    assert (measured.ratio, measured.limit_fraction) == (3.0, 0.5)
    bare = Measurement("a", "w", seconds=2.0)
    assert (bare.ratio, bare.limit_fraction) == (None, None)
    assert set(measured.record(Context())) >= NEEDED


def test_limits_are_measured_once_and_positive() -> None:
    limits = Context().limits
    assert limits.matmul_seconds(8, 8, 8) == limits.matmul_seconds(8, 8, 8)
    assert limits.matmul_rate(8, 8, 8) > 0
    assert limits.copy_rate(1024) > 0
    assert limits.jpeg_seconds(32, 48) > 0


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stage(context: Context) -> list[Measurement]:
        return [Measurement("tiny", "2x2", 0.5, plain_seconds=1.0, peak_mib=3.0, note="a note", limit="copy")]

    monkeypatch.setattr(command, "discover", lambda: {"tiny": stage})
    assert command.main(["tiny", "--json", str(tmp_path / "out.json"), "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "500 ms" in shown
    assert "2.00x" in shown
    assert "tiny: a note" in shown
    (record,) = json.loads((tmp_path / "out.json").read_text())
    assert set(record) >= NEEDED
    assert (record["name"], record["ratio"], record["device"], record["threads"]) == ("tiny", 2.0, "cpu", 1)


def test_unknown_names_are_told_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["retreival"]) == 2
    assert "no benchmark named retreival; there are: " in capsys.readouterr().err


def test_every_stage_of_the_readme_is_there() -> None:
    stages = {"retrieval", "selfmask", "bilateral", "criterion", "predict", "train_step", "samples", "evaluation"}
    assert stages <= set(harness.discover())


def test_two_stages_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_STAGES", {})
    stage = harness.benchmark("x")(lambda context: [])
    stage.__module__ = "elsewhere"
    with pytest.raises(ValueError, match="two benchmarks named 'x'"):
        harness.benchmark("x")(lambda context: [])
