"""Runs parity cases: `python -m tests.parity DIR [DIR ...] [--case PATTERN] [--save OUT]`.

One line per case and a closing line `N passed, M failed`; exit status 1 if any failed. See `registry.py` for adapters.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from tests.parity.compare import Case, Row, compare, load_case, weights
from tests.parity.registry import find_adapter


def run_case(case: Case) -> dict[str, np.ndarray]:
    """Compute the outputs of one case with the adapter of its kind; KeyError if there is none."""
    function = find_adapter(case.kind)
    if function is None:
        raise KeyError(f"unknown kind {case.kind!r}: no adapter is registered for it")
    return function(case, weights(case))


def judge_case(case: Case, save_dir: Path | None = None) -> list[Row]:
    """Compute a case and compare it; an adapter that raises gives one failed row with the reason."""
    try:
        outputs = run_case(case)
    except Exception as error:  # noqa: BLE001 - any failure of the code under test is a failed case, not a crash
        reason = "".join(traceback.format_exception_only(error)).strip()
        where = traceback.extract_tb(error.__traceback__)[-1]
        return [Row("(run)", False, float("inf"), 0.0, f"{reason} [{Path(where.filename).name}:{where.lineno}]")]
    if save_dir is not None:
        file = save_dir / f"{case.name}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(file, **outputs)
    return compare(case, outputs)


def report(case: Case, rows: list[Row], seconds: float) -> bool:
    """Print the line of one case and, below it, every failed output; returns whether all passed."""
    failed = [row for row in rows if not row.ok]
    # A row without an allowance (exact) counts by its plain error, so that the worst row is always the printed one.
    worst = max(rows, key=lambda row: row.worst / (row.allowed or 1.0), default=Row("-", True, 0.0, 0.0, ""))
    verdict = "FAIL" if failed else "ok"
    print(
        f"{verdict:4}  {case.kind:32} {case.name:46} "
        f"{worst.worst:.3g} of {worst.allowed:.3g} ({worst.name})  {seconds:.1f} s",
        flush=True,
    )
    for row in failed:
        print(f"      {row.name}: {row.message}", flush=True)
    return not failed


def find_cases(dirs: list[Path], pattern: str) -> list[Path]:
    """Every case file below `dirs`, at any depth, whose name or system/name matches `pattern`."""
    paths = sorted({path for folder in dirs for path in folder.rglob("*.json") if path.with_suffix(".npz").exists()})
    return [
        path
        for path in paths
        if fnmatch.fnmatch(path.stem, pattern) or fnmatch.fnmatch(f"{path.parent.name}/{path.stem}", pattern)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run all cases below the given folders; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("dirs", type=Path, nargs="+", metavar="DIR", help="folders with cases, at any depth")
    parser.add_argument("--case", default="*", metavar="PATTERN", help="only cases whose name matches, e.g. 'nms_*'")
    parser.add_argument("--save", type=Path, metavar="OUT", help="also write OUT/<system>/<case>.npz")
    options = parser.parse_args(arguments)
    for folder in options.dirs:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    verdicts = []
    for path in find_cases(options.dirs, options.case):
        case, start = load_case(path), time.perf_counter()
        verdicts.append(report(case, judge_case(case, options.save), time.perf_counter() - start))
    if not verdicts:
        print(f"no case matches {options.case!r} below {', '.join(map(str, options.dirs))}")
    print(f"{sum(verdicts)} passed, {len(verdicts) - sum(verdicts)} failed")
    return 0 if verdicts and all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
