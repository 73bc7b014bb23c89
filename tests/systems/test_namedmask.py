"""NamedMask end to end in a tiny world: whole runs, interruptions, processes, stages and settings."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from PIL import Image

import inference
import train
from datasets.shapes.world import World
from networks.checkpoints import read_state_dict
from networks.deeplab import deeplab_from_state_dict
from pseudo_labels.store import write_mask
from systems import experts, namedmask, scoring
from systems.deeplab import check_batch
from tests.processes import run_process, run_ranks
from tests.systems.tiny_namedmask import (
    EXPERTS,
    NAMES,
    ROOT,
    expert_dirs,
    losses,
    same_weights,
    times,
    voc_settings,
)
from tests.systems.tiny_world import tiny_namedmask_settings as tiny_settings
from training.run_folder import RunFolder
from utils.errors import ConfigError, DataError, WeightsError
from utils.files import read_json

# ---- before anything that takes long --------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["stop_after=training", "stop_after=experts"])
def test_a_wrong_file_for_the_backbone_is_told_at_once(tiny_world: World, tmp_path: Path, word: str) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    settings = tiny_settings(tiny_world, tmp_path, f"backbone_weights={tmp_path / 'notes.txt'}", word)
    for dry_run in (False, True):
        with pytest.raises(WeightsError, match=r"notes\.txt"):
            namedmask.train(settings, dry_run=dry_run)
    assert not (tmp_path / "run" / "category_to_p_images.json").exists()


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(namedmask_run: Path) -> None:
    names = {"config.yaml", "checkpoint.pt", "final_model.pt", "metrics.jsonl", "tensorboard", "report.html"}
    assert names | {"category_to_p_images.json", "experts", "pictures"} <= {
        path.name for path in namedmask_run.iterdir()
    }
    page = (namedmask_run / "report.html").read_text()
    for text in ("Retrieved pictures and pseudo-masks", "fish", "SelfMask", "experts"):
        assert text in page
    assert all((namedmask_run / part.split('"')[0]).is_file() for part in page.split('src="')[1:])
    network = deeplab_from_state_dict(read_state_dict(namedmask_run / "final_model.pt"))
    assert (network.backbone_name, network.num_classes) == ("mobilenet", 4)


def test_networks_and_experts_learn(namedmask_run: Path) -> None:
    assert [iteration for iteration, _ in losses(namedmask_run)] == [1, 2, 3]
    checkpoint = torch.load(namedmask_run / "checkpoint.pt", weights_only=True)
    assert checkpoint["category_names"] == ["background", *NAMES]
    assert all(np.isfinite(value) for _, value in losses(namedmask_run))
    for folder in expert_dirs(namedmask_run).values():
        assert [iteration for iteration, _ in losses(folder)] == [1, 2]
        assert all(np.isfinite(value) for _, value in losses(folder))
        assert not (folder / "checkpoint.pt").exists()  # three times the weights, and nothing is left to do
        assert deeplab_from_state_dict(read_state_dict(folder / "final_model.pt")).num_classes == 2


def test_a_picture_of_two_categories_has_a_mask_for_each(namedmask_run: Path) -> None:
    pictures, masks = _categories_of_pictures(namedmask_run), namedmask_run.parent / "expert_masks"
    assert any(len(names) > 1 for names in pictures.values())
    for image, names in pictures.items():
        found = [path.relative_to(masks).parts for path in masks.rglob(f"{image.name}.json")]
        shared = {parts[1] for parts in found if parts[0] == "by_category"}
        assert shared == (set(names) if len(names) > 1 else set())
        assert len(found) == len(names)


def _categories_of_pictures(run_dir: Path) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for name, paths in read_json(run_dir / "category_to_p_images.json").items():
        for path in paths:
            found.setdefault(Path(path), []).append(name)
    return found


def test_published_masks_are_used_as_they_are(
    tiny_world: World, namedmask_run: Path, retrieved: list[str], tmp_path: Path, log_text: pytest.LogCaptureFixture
) -> None:
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, EXPERTS, "n_iters=1")
    store = experts.expert_mask_store(settings, {name: [] for name in NAMES}, RunFolder(tmp_path / "run"))
    for image in _categories_of_pictures(namedmask_run):
        with Image.open(image) as picture:
            mask = np.zeros(picture.size[::-1], np.uint8)
        mask[10:30, 10:30] = 1
        write_mask(store.path(image, "fish"), mask)
    before = times(tmp_path / "expert_masks")
    run = namedmask.train(settings)
    assert times(tmp_path / "expert_masks") == before  # one mask serves all categories of a picture
    assert not (run.path / "experts").exists()
    assert "no expert is needed" in log_text.text


# ---- interruptions and processes ------------------------------------------------------------------------------------


def _train_killed(world: World, output_dir: Path, words: list[str], stage: str) -> None:
    """Train, and die of SIGKILL in the middle of a stage: in the second expert, after 4 masks, after 2 iterations."""

    def die_after(number: int, function):
        calls = []

        def wrapped(*arguments, **options):
            calls.append(None)
            if len(calls) > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return wrapped

    if stage == "masks":
        import pseudo_labels.finishing as module

        module.write_mask = die_after(4, module.write_mask)
    else:
        from training.loop import _Training

        _Training._iterate = die_after(3 if stage == "experts" else 2, _Training._iterate)
    namedmask.train(tiny_settings(world, output_dir, EXPERTS, *words))


def test_a_run_killed_again_and_again_loses_nothing(
    tiny_world: World, namedmask_run: Path, retrieved: list[str], tmp_path: Path
) -> None:
    kept: dict[Path, int] = {}
    for stage, num_masks, num_weights in (("experts", 0, 1), ("masks", 4, 3), ("training", 9, 3)):
        assert run_process(_train_killed, tiny_world, tmp_path, retrieved, stage) == -signal.SIGKILL
        masks, weights = times(tmp_path / "expert_masks"), times(tmp_path / "run", "final_model.pt")
        assert (len(masks), len(weights)) == (num_masks, num_weights)
        assert kept.items() <= {**masks, **weights}.items()  # what was finished before stayed as it was
        kept = {**masks, **weights}
        half = expert_dirs(tmp_path / "run")["house"] / "checkpoint.pt"
        assert half.exists() == (stage == "experts")
    run = namedmask.train(tiny_settings(tiny_world, tmp_path, EXPERTS, *retrieved))
    assert losses(run.path) == losses(namedmask_run)
    assert same_weights(run.final_model_path, namedmask_run / "final_model.pt")
    for name, folder in expert_dirs(run.path).items():
        assert losses(folder) == losses(expert_dirs(namedmask_run)[name])
    assert kept.items() <= {**times(tmp_path / "expert_masks"), **times(run.path, "final_model.pt")}.items()
    assert len(times(tmp_path / "expert_masks")) == 9


def _train_and_score(world: World, output_dir: Path, words: list[str], weights: Path) -> None:
    batch = "train_dataloader_kwargs={batch_size: 4, num_workers: 0}"
    namedmask.train(tiny_settings(world, output_dir, EXPERTS, *words, batch, "n_iters=1"))
    namedmask.evaluate(voc_settings(world, output_dir), weights)


def test_two_processes_share_the_work(
    tiny_world: World, namedmask_run: Path, retrieved: list[str], voc_weights: Path, tmp_path: Path
) -> None:
    """Experts, their masks, and scores are those of one process; batch norm sees half a batch (on GPUs all of it)."""
    for name in ("fish", "car"):
        shutil.copytree(expert_dirs(namedmask_run)[name], expert_dirs(tmp_path / "run")[name])
    assert run_ranks(_train_and_score, 2, tiny_world, tmp_path, retrieved, voc_weights) == [0, 0]
    weights = [expert_dirs(run)["house"] / "final_model.pt" for run in (tmp_path / "run", namedmask_run)]
    assert same_weights(*weights)
    masks = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "expert_masks").rglob("*.json")}
    assert masks == {path: (namedmask_run.parent / path).read_bytes() for path in masks}
    assert len(masks) == 9
    assert [iteration for iteration, _ in losses(tmp_path / "run")] == [1]
    one = namedmask.evaluate(voc_settings(tiny_world, tmp_path / "one"), voc_weights)
    results = read_json(scoring.evaluation_path(voc_settings(tiny_world, tmp_path), voc_weights) / "results.json")
    assert results["scores"] == pytest.approx(one.scores())


def test_experts_are_trained_side_by_side_and_by_category(
    tiny_world: World,
    namedmask_run: Path,
    retrieved: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_text: pytest.LogCaptureFixture,
) -> None:
    """`fish` alone, then the others at once; the next run finds them all."""
    forkserver = multiprocessing.get_context("forkserver")  # starts sooner than what is used otherwise
    monkeypatch.setattr("systems.expert_workers.multiprocessing.get_context", lambda _: forkserver)
    words = [*retrieved, "stop_after=experts"]
    namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "single_category=[fish]"))
    first = times(tmp_path / "run", "final_model.pt")
    assert [path.parent for path in first] == [expert_dirs(tmp_path / "run")["fish"]]
    run = namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "experts.at_once=2"))
    assert "experts: 2 to train, 2 at once" in log_text.text
    assert first.items() <= times(run.path, "final_model.pt").items()
    for name, folder in expert_dirs(run.path).items():
        assert same_weights(folder / "final_model.pt", expert_dirs(namedmask_run)[name] / "final_model.pt")
    assert not run.final_model_path.exists()
    namedmask.train(tiny_settings(tiny_world, tmp_path, *words))
    assert "experts: 3 to train" not in log_text.text


def test_a_batch_too_small_for_the_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 2 leaves one sample for each of 2 process\(es\).*batch_size=4"):
        check_batch(2, 2, 1)
    check_batch(4, 2, 1)


# ---- stages and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "num_masks"), [("retrieval", 0), ("pseudo_masks", 5)])
def test_a_run_stops_where_it_is_told_to(
    tiny_world: World, namedmask_run: Path, retrieved: list[str], tmp_path: Path, stage: str, num_masks: int
) -> None:
    settings = tiny_settings(tiny_world, tmp_path, retrieved[0], EXPERTS, f"stop_after={stage}")
    run = namedmask.train(settings)
    assert (
        len(times(tmp_path / "masks")) == num_masks == (len(_categories_of_pictures(namedmask_run)) if num_masks else 0)
    )
    assert not (tmp_path / "expert_masks").exists()
    assert not (run.path / "experts").exists()
    assert not run.checkpoint_path.exists()


def test_dry_run_writes_nothing(
    tiny_world: World, namedmask_run: Path, retrieved: list[str], tmp_path: Path, log_text: pytest.LogCaptureFixture
) -> None:
    for words in ([], ["experts.dir_masks=null"]):
        settings = tiny_settings(tiny_world, tmp_path, *retrieved, EXPERTS, *words)
        before = sorted(tmp_path.rglob("*"))
        namedmask.train(settings, dry_run=True)
        assert sorted(tmp_path.rglob("*")) == before
    assert "9 pseudo-masks, to make: 9" in log_text.text
    namedmask.train(tiny_settings(tiny_world, tmp_path, *retrieved), dry_run=True)
    assert "5 pseudo-masks, to make: 0" in log_text.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train_dataloader_kwargs={batch_size: 1}"], "train_dataloader_kwargs: expected at least 2 samples in every"),
        ([EXPERTS, "experts.train_dataloader_kwargs={batch_size: 1}"], "experts.train_dataloader_kwargs: expected a b"),
        (["accumulate_steps=2"], "train_dataloader_kwargs: expected at least 2 samples in every pass"),
        (
            ["stop_after=expert"],
            "stop_after: received 'expert', expected one of retrieval, pseudo_masks, experts, trai",
        ),
        (["single_category=[fish]"], "single_category: chooses experts, but the segmenter needs those of all"),
        (["segmenter_name=deeplabv3plus_resnet18"], "segmenter_name: received 'deeplabv3plus_resnet18'"),
        ([EXPERTS, "experts.dir_weights=/none"], "experts.dir_weights: /none does not exist; expected the folder of"),
        (["categories=null", "dataset_name=voc2012_category"], "stop_after: voc2012_category scores single experts"),
    ],
)
def test_settings_that_cannot_work(tiny_world: World, tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tiny_settings(tiny_world, tmp_path, *words)
    assert message in str(caught.value)


def test_an_archive_of_other_categories_is_refused(tiny_world: World, retrieved: list[str], tmp_path: Path) -> None:
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, "categories=[fish, whale]")
    with pytest.raises(DataError, match="whale"):
        namedmask.train(settings)


@pytest.mark.parametrize("maker", ["masks", "expert_masks"])
def test_a_mask_of_another_size_is_refused(
    tiny_world: World, namedmask_run: Path, retrieved: list[str], tmp_path: Path, maker: str
) -> None:
    shutil.copytree(namedmask_run.parent / maker, tmp_path / maker)
    for path in (tmp_path / maker).rglob("*.json"):
        write_mask(path, np.ones((5, 7), np.uint8))
    words = [*retrieved, EXPERTS] if maker == "expert_masks" else retrieved[:1]
    with pytest.raises(
        DataError, match=r"this pseudo-mask is 5x7, but its picture .* is \d+x\d+ .* Delete the mask file"
    ):
        namedmask.train(tiny_settings(tiny_world, tmp_path, *words))


# ---- the two commands -----------------------------------------------------------------------------------------------


def test_from_names_to_pictures(
    tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Your own names and pictures, without any layout, with experts."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "my pictures" / "2024"
    pictures.mkdir(parents=True)
    for path in sorted((tiny_world.pass_dir / "images").iterdir()):
        shutil.copy(path, pictures)
    words = [
        *("categories=[fish, house]", f"dir_train_dataset={pictures.parent}", "name=mine", "dir_ckpt=runs"),
        *(f"retrieval_clip={tiny_world.root / 'clip.pt'}", f"selfmask_weights={tiny_world.root / 'selfmask.pt'}"),
        *("device=cpu", "selfmask_shorter_side=48", "train_image_size=33", "n_images=2", "n_iters=1", "iter_log=1"),
        *("segmenter_name=deeplabv3plus_mobilenet", "backbone_weights=null", EXPERTS, "prompts=['a {}']"),
        *("embedding.num_workers=0", "saliency.num_workers=0", "experts.masks.num_workers=0", "experts.n_iters=1"),
        *("train_dataloader_kwargs={batch_size: 2, num_workers: 0}", "experts.at_once=1"),
        "experts.train_dataloader_kwargs={batch_size: 2, num_workers: 0}",
    ]
    assert train.main(["--config", str(ROOT / "configs/namedmask/custom.yaml"), *words]) == 0
    run = tmp_path / "runs" / "mine"
    assert (run / "report.html").is_file()
    assert len(list((run / "expert_masks").rglob("*.json"))) == 4
    assert inference.main(["--weights", str(run), "--images", str(pictures), "--output", "out"]) == 0
    document = orjson.loads((tmp_path / "out" / "instances.json").read_bytes())
    assert len(document["images"]) == len(list(pictures.iterdir()))
    assert [category["name"] for category in document["categories"]] == ["fish", "house"]
    command = ["--weights", str(run), "--images", str(pictures), "--categories", "whale"]
    assert inference.main(command) == 2
    told = capfd.readouterr().err
    assert "'whale' is not among them: fish, house" in told
    assert "Traceback" not in told
