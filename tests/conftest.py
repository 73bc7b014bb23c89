"""Fixtures for tests of all packages."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

# Some tests compare a process with its children bit by bit; sums differ with the number of threads. Set before PyTorch
# is imported anywhere, and handed on to the children.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def log_text(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the program logs, whichever commands (which set logging up) ran before in the same process."""
    logger = logging.getLogger("unmasked")
    propagates, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, logger="unmasked"):
        yield caplog
    logger.propagate = propagates
