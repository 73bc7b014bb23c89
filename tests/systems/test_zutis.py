"""ZUTIS end to end in a tiny world: train, resume, evaluate, segment pictures, and what users get wrong."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from PIL import Image

from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.world import World
from networks.checkpoints import read_state_dict
from networks.zutis import zutis_from_state_dict
from systems import namedmask, zutis
from tests.processes import run_process, run_ranks
from tests.systems.tiny_world import tiny_namedmask_settings, tiny_settings
from utils.errors import ConfigError, DataError, UserError, WeightsError


def losses(run_dir: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(record["iteration"], record["loss"]) for record in records if "loss" in record]


@pytest.fixture(scope="module")
def trained(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    output_dir = tmp_path_factory.mktemp("trained")
    os.environ["UNMASKED_CACHE"] = str(output_dir / "cache")
    return zutis.train(tiny_settings(tiny_world, output_dir)).path


def test_a_run_folder_holds_everything(trained: Path) -> None:
    names = {"config.yaml", "checkpoint.pt", "best.pt", "final_model.pt", "metrics.jsonl", "tensorboard", "pictures"}
    assert names | {"report.html", "results.json", "category_to_p_images.json"} <= {p.name for p in trained.iterdir()}
    page = (trained / "report.html").read_text()
    assert "Retrieved pictures and pseudo-masks" in page
    assert "fish" in page
    assert all((trained / source).is_file() for source in _sources(page))
    assert zutis_from_state_dict(read_state_dict(trained / "final_model.pt")).query_embed.shape == (5, 64)
    archive = orjson.loads((trained / "category_to_p_images.json").read_bytes())
    assert {name: len(paths) for name, paths in archive.items()} == dict.fromkeys(CATEGORY_NAMES, 3)


def _sources(page: str) -> list[str]:
    return [part.split('"')[0] for part in page.split('src="')[1:]]


def test_training_learns(trained: Path) -> None:
    values = losses(trained)
    assert [iteration for iteration, _ in values] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(value) for _, value in values)
    before = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert before["iteration"] == 6
    assert before["category_names"] == ["background", *CATEGORY_NAMES]


KILLED_IN = ("embedding", "masks", "training")


def _train_killed(world: World, output_dir: Path, stage: str) -> None:
    """Train, and die of SIGKILL in the middle of a stage."""

    def die_after(number: int, function):
        calls = []

        def wrapped(*arguments, **options):
            calls.append(None)
            if len(calls) > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    if stage == "embedding":
        import retrieval.embed as module

        module.write_part = die_after(1, module.write_part)  # the first folder is done, the second is not
    elif stage == "masks":
        import pseudo_labels.finishing as module

        module.write_mask = die_after(4, module.write_mask)
    else:
        from training.loop import _Training

        _Training._iterate = die_after(5, _Training._iterate)
    zutis.train(tiny_settings(world, output_dir))


@pytest.mark.parametrize("stage", KILLED_IN)
def test_killed_runs_reach_the_same_losses(tiny_world: World, trained: Path, tmp_path: Path, stage: str) -> None:
    assert run_process(_train_killed, tiny_world, tmp_path, stage) == -signal.SIGKILL
    run = zutis.train(tiny_settings(tiny_world, tmp_path))
    assert losses(run.path) == losses(trained)


def _train(world: World, output_dir: Path) -> None:
    zutis.train(tiny_settings(world, output_dir))


def test_two_processes_train_and_evaluate_as_one(tiny_world: World, trained: Path, tmp_path: Path) -> None:
    assert run_ranks(_train, 2, tiny_world, tmp_path) == [0, 0]
    one, two = losses(trained), losses(tmp_path / "run")
    assert [iteration for iteration, _ in one] == [iteration for iteration, _ in two]
    np.testing.assert_allclose([v for _, v in two], [v for _, v in one], rtol=2e-4)
    first, second = (
        orjson.loads((path / "results.json").read_bytes())["scores"] for path in (trained, tmp_path / "run")
    )
    assert second["mean_iou"] == pytest.approx(first["mean_iou"], abs=2e-3)


def test_evaluation_of_a_bare_file_and_of_a_run_agree(tiny_world: World, trained: Path, tmp_path: Path) -> None:
    settings = tiny_settings(tiny_world, tmp_path, task="evaluate")
    from_run = zutis.evaluate(settings, trained)
    bare = tmp_path / "published.pt"
    bare.write_bytes((trained / "best.pt").read_bytes())
    from_file = zutis.evaluate(settings, bare)
    assert from_file.scores() == pytest.approx(from_run.scores(), nan_ok=True)
    assert from_run.protocol.num_images == 5
    results = orjson.loads((zutis.evaluation_path(settings, bare) / "results.json").read_bytes())
    assert results["protocol"]["prompts"] == "bare category names"


def test_segmenting_pictures_of_every_kind(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(rng.integers(0, 255, (33, 21), dtype=np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 255, (1, 1, 3), dtype=np.uint8)).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes((folder / "colour.jpg").read_bytes()[:200])
    results = zutis.segment_pictures(trained, [folder], categories=None, output_dir=tmp_path / "out")
    assert {result.path.name for result in results if result.refusal} == {"broken.jpg"}
    for name, size in (("colour", (60, 40)), ("grey", (21, 33)), ("tiny", (1, 1))):
        labels = Image.open(tmp_path / "out" / "labels" / f"{name}.png")
        assert labels.size == size
        assert labels.mode == "P"
    document = orjson.loads((tmp_path / "out" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == list(CATEGORY_NAMES)
    assert "broken.jpg" in (tmp_path / "out" / "pictures.csv").read_text()


def test_a_run_needs_no_clip_file_for_its_own_names(trained: Path, tiny_world: World, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "a.png")
    overrides = ["clip_weights=gone.pt"]
    zutis.segment_pictures(trained, [tmp_path / "a.png"], categories=["star"], output_dir=tmp_path, overrides=overrides)
    with pytest.raises(UserError, match=r"gone\.pt"):
        zutis.segment_pictures(
            trained, [tmp_path / "a.png"], categories=["whale"], output_dir=tmp_path, overrides=overrides
        )
    results = zutis.segment_pictures(trained, [tmp_path / "a.png"], categories=["whale"], output_dir=tmp_path)
    assert len(results) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [(["cat", ""], "one is empty"), (["cat", "cat"], "more than once: 'cat'")],
)
def test_bad_names_for_pictures(trained: Path, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        zutis.segment_pictures(trained, [tmp_path], categories=names, output_dir=tmp_path)


def test_categories_of_another_benchmark_are_refused(tiny_world: World, tmp_path: Path) -> None:
    settings = tiny_settings(tiny_world, tmp_path, "dataset_name=coca", task=None)
    with pytest.raises(ConfigError, match=r"differ from the 81 of the benchmark coca \(.*missing"):
        zutis.train(settings)


def test_weights_of_another_network_are_refused(tiny_world: World, tmp_path: Path) -> None:
    settings = tiny_settings(tiny_world, tmp_path, task="evaluate")
    with pytest.raises(WeightsError, match="not weights of a ZUTIS segmenter"):
        zutis.evaluate(settings, tiny_world.root / "clip.pt")


def test_weights_of_another_architecture_are_refused(tiny_world: World, trained: Path, tmp_path: Path) -> None:
    bare = tmp_path / "published.pt"
    bare.write_bytes((trained / "best.pt").read_bytes())
    settings = tiny_settings(tiny_world, tmp_path, "clip_arch=ViT-B/32", "clip_weights=null", task="evaluate")
    with pytest.raises(WeightsError, match=r"look like ViT \(width 64, patch 8, grid 4\) weights.*ViT-B/32"):
        zutis.evaluate(settings, bare)


def test_an_archive_of_other_categories_is_refused(tiny_world: World, trained: Path, tmp_path: Path) -> None:
    archive = trained / "category_to_p_images.json"
    settings = tiny_settings(tiny_world, tmp_path, f"category_to_p_images_fp={archive}", "categories=[fish, whale]")
    with pytest.raises(DataError, match="whale"):
        zutis.train(settings)


def test_a_folder_without_pictures_is_refused(tiny_world: World, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    settings = tiny_settings(tiny_world, tmp_path, f"dir_train_dataset={tmp_path / 'empty'}")
    with pytest.raises(UserError, match="empty"):
        zutis.train(settings)


@pytest.mark.parametrize("system", ["zutis", "namedmask"])
def test_a_dry_run_counts_the_pictures_to_retrieve_from(
    tiny_world: World, tmp_path: Path, log_text: pytest.LogCaptureFixture, system: str
) -> None:
    recipe, make = {"zutis": (zutis, tiny_settings), "namedmask": (namedmask, tiny_namedmask_settings)}[system]
    recipe.train(make(tiny_world, tmp_path), dry_run=True)
    assert f"index: 24 pictures to retrieve from in {tiny_world.imagenet_dir / 'train'}" in log_text.text
    (tmp_path / "empty").mkdir()
    settings = make(tiny_world, tmp_path, f"dir_train_dataset={tmp_path / 'empty'}")
    with pytest.raises(DataError, match=r"dir_train_dataset: no pictures found in .*empty\. Expected files ending in"):
        recipe.train(settings, dry_run=True)


def test_dry_run_writes_nothing(tiny_world: World, trained: Path, tmp_path: Path, log_text) -> None:
    settings = tiny_settings(tiny_world, tmp_path, f"category_to_p_images_fp={trained / 'category_to_p_images.json'}")
    before = sorted(tmp_path.rglob("*"))
    zutis.train(settings, dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    assert "pseudo-masks to make: " in log_text.text
