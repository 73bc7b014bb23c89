"""A benchmark's own names are known to its table alone: an `ignore_index` among them is refused before any stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from systems import namedmask, zutis
from systems.reco_stages import open_training_pictures
from utils.config import settings_from_dict
from utils.errors import ConfigError
from utils.settings import RunSettings


def settings(folder: Path, system: str, benchmark: str, ignore_index: int, **more: object) -> RunSettings:
    values = {"system": system, "dataset_name": benchmark, "ignore_index": ignore_index, "dir_ckpt": str(folder)}
    return settings_from_dict({**values, **more}, source="test")


@pytest.mark.parametrize(("system", "benchmark"), [(namedmask, "voc2012"), (zutis, "coca")])
def test_a_label_of_the_benchmark_is_refused(tmp_path: Path, system, benchmark: str) -> None:
    name = system.__name__.rpartition(".")[2]
    for dry_run in (True, False):
        with pytest.raises(ConfigError, match=r"^ignore_index: 7 is the label of .*, which would not be learnt"):
            system.train(settings(tmp_path, name, benchmark, 7), dry_run=dry_run)
    assert not list(tmp_path.iterdir())


def test_labels_are_those_that_are_learnt(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^ignore_index: 26 is the label of .* such as 255\.$"):
        open_training_pictures(settings(tmp_path, "reco", "coco_stuff", 26, method="reco_plus"))
    many = settings(tmp_path, "namedmask", "imagenet-s", 255, n_categories=300)
    with pytest.raises(ConfigError, match=r"^ignore_index: 255 is the label of .* such as 301\.$"):
        namedmask.train(many, dry_run=True)
