"""One tiny world for all tests of systems, and one run of NamedMask in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datasets.shapes.world import World
from systems import namedmask
from tests.systems.tiny_namedmask import EXPERTS, make_weights
from tests.systems.tiny_world import make_tiny_world, tiny_namedmask_settings


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def namedmask_run(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run with experts' masks."""
    output_dir = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNMASKED_CACHE", str(output_dir / "cache"))
        return namedmask.train(tiny_namedmask_settings(tiny_world, output_dir, EXPERTS)).path


@pytest.fixture(scope="session")
def retrieved(namedmask_run: Path) -> list[str]:
    """Words that spare a run retrieval and SelfMask's masks: those of `namedmask_run` are used."""
    return [
        f"category_to_p_images_fp={namedmask_run / 'category_to_p_images.json'}",
        f"dir_pseudo_masks={namedmask_run.parent / 'masks'}",
    ]


@pytest.fixture(scope="session")
def voc_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the classes of VOC2012."""
    return make_weights(tmp_path_factory.mktemp("weights") / "namedmask_voc2012.pt", 21)
