"""The project's own copy of the parity cases: every system computes what its published implementation computed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.__main__ import find_cases, judge_case
from tests.parity.compare import load_case

CASES = find_cases([Path(__file__).parent / "cases"], "*")


@pytest.mark.parametrize("path", CASES, ids=[f"{path.parent.name}/{path.stem}" for path in CASES])
def test_case(path: Path) -> None:
    failed = [f"{row.name}: {row.message}" for row in judge_case(load_case(path), None) if not row.ok]
    assert not failed, "\n".join(failed)


def test_every_system_has_cases() -> None:
    assert {path.parent.name for path in CASES} >= {"zutis", "selfmask", "namedmask"}
