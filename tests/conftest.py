"""Fixtures for tests of all packages."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def log_text(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the program logs, whichever commands (which set logging up) ran before in the same process."""
    logger = logging.getLogger("unmasked")
    propagates, logger.propagate = logger.propagate, True
    with caplog.at_level(logging.INFO, logger="unmasked"):
        yield caplog
    logger.propagate = propagates
