"""One tiny world for all tests of systems."""

from __future__ import annotations

import pytest

from datasets.shapes.world import World
from tests.systems.tiny_world import make_tiny_world


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path_factory.mktemp("cache")))
