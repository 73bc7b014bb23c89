"""Which adapter serves which kind of parity case.

An adapter translates the names and shapes of a case into calls of the project's public functions and back; it has no
maths of its own. All modules `tests/parity/adapters_*.py` are imported once, on first use.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.parity.compare import Case

Adapter = Callable[[Case, dict[str, np.ndarray]], dict[str, np.ndarray]]
_ADAPTERS: dict[str, Adapter] = {}


def adapter(kind: str) -> Callable[[Adapter], Adapter]:
    """Register the decorated function `(case, weights) -> outputs` for a kind of case."""

    def register(function: Adapter) -> Adapter:
        if kind in _ADAPTERS:
            raise ValueError(f"two adapters for the kind {kind!r}")
        _ADAPTERS[kind] = function
        return function

    return register


def find_adapter(kind: str) -> Adapter | None:
    """The adapter of a kind, or None if nobody registered one."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.startswith("adapters_"):
            importlib.import_module(f"tests.parity.{module.name}")
    return _ADAPTERS.get(kind)
