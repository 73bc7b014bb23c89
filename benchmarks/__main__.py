"""`python -m benchmarks [NAME ...] [--json FILE]`: time the stages and show how close each is to its limit."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness import Context, Measurement, discover, thread_count
from utils.cli import run_command
from utils.device import select_device
from utils.errors import UserError
from utils.files import write_json
from utils.log import get_logger

logger = get_logger(__name__)
_HEADER = ("stage", "workload", "time", "spread", "plain", "ratio", "of limit", "peak MiB", "plain MiB", "limit")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, run the stages, print the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="stages (default: all)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the numbers to this file")
    parser.add_argument("--repeats", type=int, default=5, help="timings per stage (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:<number> or auto")
    parser.add_argument("--list", action="store_true", help="show the names of the stages and end")
    options = parser.parse_args(arguments)
    return run_command(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Run the chosen stages in the order given."""
    stages = discover()
    if options.list:
        print("\n".join(stages))
        return
    unknown = [name for name in options.names if name not in stages]
    if unknown:
        raise UserError(f"no benchmark named {', '.join(unknown)}; there are: {', '.join(stages)}")
    if options.repeats < 1 or options.threads < 1:
        raise UserError("--repeats and --threads: expected at least 1")
    context = Context(repeats=options.repeats, threads=options.threads, device=select_device(options.device))
    found: list[Measurement] = []
    with thread_count(options.threads):
        for name in options.names or list(stages):
            logger.info("measuring %s", name)
            for measurement in stages[name](context):
                found.append(measurement)
                if options.json is not None:  # after every stage: a long run that is stopped keeps what it has
                    write_json(options.json, [m.record(context) for m in found])
    print(format_table(found))
    print(f"{context.threads} thread(s), {context.device_name}, torch {torch.__version__}")


def format_table(measurements: Sequence[Measurement]) -> str:
    """The measurements as text, one line each, notes below."""
    rows = [_HEADER, *(_row(m) for m in measurements)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [f"{m.name}: {m.note}" for m in measurements if m.note]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *notes])


def _row(m: Measurement) -> tuple[str, ...]:
    return (
        m.name,
        m.workload,
        _seconds(m.seconds),
        _seconds(m.spread),
        "" if m.plain_seconds is None else _seconds(m.plain_seconds),
        "" if m.ratio is None else f"{m.ratio:.2f}x",
        "" if m.limit_fraction is None else f"{100 * m.limit_fraction:.0f} %",
        "" if m.peak_mib is None else f"{m.peak_mib:.0f}",
        "" if m.plain_peak_mib is None else f"{m.plain_peak_mib:.0f}",
        m.limit or "",
    )


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} us"


if __name__ == "__main__":
    sys.exit(main())
