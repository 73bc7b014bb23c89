"""NamedMask end to end in a tiny world: experts, training, going on, evaluation, pictures, and what users get wrong."""

from __future__ import annotations

import json
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
from networks.deeplab import DeepLabV3Plus, deeplab_from_state_dict
from pseudo_labels.store import write_mask
from systems import experts, namedmask, scoring, stages
from systems.deeplab import check_batch
from tests.parity import fill
from tests.processes import run_process, run_ranks
from tests.systems.tiny_world import tiny_namedmask_settings as tiny_settings
from training.run_folder import RunFolder
from utils.errors import ConfigError, DataError, WeightsError
from utils.files import read_json
from utils.settings import NamedMaskSettings

ROOT = Path(__file__).parents[2]
NAMES = ["fish", "house", "car"]
EXPERTS = "use_expert_pseudo_masks=true"


def losses(run_dir: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(record["iteration"], record["loss"]) for record in records if "loss" in record]


def expert_dirs(run_dir: Path) -> dict[str, Path]:
    """Folders of a run's experts by category."""
    return {name: run_dir / "experts" / f"deeplabv3plus_mobilenet_n3_sr50100_{name}_s0" for name in NAMES}


def same_weights(one: Path, two: Path) -> bool:
    states = [torch.load(path, weights_only=True) for path in (one, two)]
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def make_weights(path: Path, num_classes: int, backbone: str = "mobilenet") -> Path:
    """A bare file with deterministic weights under the published names."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DeepLabV3Plus(backbone, num_classes).state_dict().items()}
    torch.save({name: torch.from_numpy(value) for name, value in fill.state_dict(shapes).items()}, path)
    return path


@pytest.fixture(scope="module")
def trained(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run with experts' masks."""
    output_dir = tmp_path_factory.mktemp("trained")
    os.environ["UNMASKED_CACHE"] = str(output_dir / "cache")
    return namedmask.train(tiny_settings(tiny_world, output_dir, EXPERTS)).path


@pytest.fixture(scope="module")
def retrieved(trained: Path) -> list[str]:
    """Words that spare a run retrieval and SelfMask's masks: those of `trained` are used."""
    return [
        f"category_to_p_images_fp={trained / 'category_to_p_images.json'}",
        f"dir_pseudo_masks={trained.parent / 'masks'}",
    ]


@pytest.fixture(scope="module")
def voc_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_weights(tmp_path_factory.mktemp("weights") / "namedmask_voc2012.pt", 21)


def voc_settings(world: World, output_dir: Path, *overrides: str) -> NamedMaskSettings:
    """Settings of an evaluation on the tiny VOC2012."""
    words = ["categories=null", "dataset_name=voc2012", f"dir_val_dataset={world.voc_dir}", *overrides]
    return tiny_settings(world, output_dir, *words, task="evaluate")


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(trained: Path) -> None:
    names = {"config.yaml", "checkpoint.pt", "final_model.pt", "metrics.jsonl", "tensorboard", "report.html"}
    assert names | {"category_to_p_images.json", "experts", "pictures"} <= {path.name for path in trained.iterdir()}
    page = (trained / "report.html").read_text()
    for text in ("Retrieved pictures and pseudo-masks", "fish", "SelfMask", "experts"):
        assert text in page
    assert all((trained / part.split('"')[0]).is_file() for part in page.split('src="')[1:])
    network = deeplab_from_state_dict(read_state_dict(trained / "final_model.pt"))
    assert (network.backbone_name, network.num_classes) == ("mobilenet", 4)


def test_networks_and_experts_learn(trained: Path) -> None:
    assert [iteration for iteration, _ in losses(trained)] == [1, 2, 3]
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert checkpoint["category_names"] == ["background", *NAMES]
    assert all(np.isfinite(value) for _, value in losses(trained))
    for folder in expert_dirs(trained).values():
        assert [iteration for iteration, _ in losses(folder)] == [1, 2]
        assert all(np.isfinite(value) for _, value in losses(folder))
        assert not (folder / "checkpoint.pt").exists()  # three times the weights, and nothing is left to do
        assert deeplab_from_state_dict(read_state_dict(folder / "final_model.pt")).num_classes == 2


def test_a_picture_of_two_categories_has_a_mask_for_each(trained: Path) -> None:
    pictures, masks = _categories_of_pictures(trained), trained.parent / "expert_masks"
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
    tiny_world: World, trained: Path, retrieved: list[str], tmp_path: Path, log_text: pytest.LogCaptureFixture
) -> None:
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, EXPERTS, "n_iters=1")
    store = experts.expert_mask_store(settings, {name: [] for name in NAMES}, RunFolder(tmp_path / "run"))
    for image in _categories_of_pictures(trained):
        with Image.open(image) as picture:
            mask = np.zeros(picture.size[::-1], np.uint8)
        mask[10:30, 10:30] = 1
        write_mask(store.path(image, "fish"), mask)
    before = _times(tmp_path / "expert_masks")
    run = namedmask.train(settings)
    assert _times(tmp_path / "expert_masks") == before  # one mask serves all categories of a picture
    assert not (run.path / "experts").exists()
    assert "no expert is needed" in log_text.text


# ---- interruptions and processes ------------------------------------------------------------------------------------


def _times(folder: Path, pattern: str = "*.json") -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}


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
    tiny_world: World, trained: Path, retrieved: list[str], tmp_path: Path
) -> None:
    kept: dict[Path, int] = {}
    for stage, num_masks, num_weights in (("experts", 0, 1), ("masks", 4, 3), ("training", 9, 3)):
        assert run_process(_train_killed, tiny_world, tmp_path, retrieved, stage) == -signal.SIGKILL
        masks, weights = _times(tmp_path / "expert_masks"), _times(tmp_path / "run", "final_model.pt")
        assert (len(masks), len(weights)) == (num_masks, num_weights)
        assert kept.items() <= {**masks, **weights}.items()  # what was finished before stayed as it was
        kept = {**masks, **weights}
        half = expert_dirs(tmp_path / "run")["house"] / "checkpoint.pt"
        assert half.exists() == (stage == "experts")
    run = namedmask.train(tiny_settings(tiny_world, tmp_path, EXPERTS, *retrieved))
    assert losses(run.path) == losses(trained)
    assert same_weights(run.final_model_path, trained / "final_model.pt")
    for name, folder in expert_dirs(run.path).items():
        assert losses(folder) == losses(expert_dirs(trained)[name])
    assert kept.items() <= {**_times(tmp_path / "expert_masks"), **_times(run.path, "final_model.pt")}.items()
    assert len(_times(tmp_path / "expert_masks")) == 9


def _train_and_score(world: World, output_dir: Path, words: list[str], weights: Path) -> None:
    batch = "train_dataloader_kwargs={batch_size: 4, num_workers: 0}"
    namedmask.train(tiny_settings(world, output_dir, EXPERTS, *words, batch, "n_iters=1"))
    namedmask.evaluate(voc_settings(world, output_dir), weights)


def test_two_processes_share_the_work(
    tiny_world: World, trained: Path, retrieved: list[str], voc_weights: Path, tmp_path: Path
) -> None:
    """Experts, their masks, and scores are those of one process; batch norm sees half a batch (on GPUs all of it)."""
    for name in ("fish", "car"):
        shutil.copytree(expert_dirs(trained)[name], expert_dirs(tmp_path / "run")[name])
    assert run_ranks(_train_and_score, 2, tiny_world, tmp_path, retrieved, voc_weights) == [0, 0]
    weights = [expert_dirs(run)["house"] / "final_model.pt" for run in (tmp_path / "run", trained)]
    assert same_weights(*weights)
    masks = {path.relative_to(tmp_path): path.read_bytes() for path in (tmp_path / "expert_masks").rglob("*.json")}
    assert masks == {path: (trained.parent / path).read_bytes() for path in masks}
    assert len(masks) == 9
    assert [iteration for iteration, _ in losses(tmp_path / "run")] == [1]
    one = namedmask.evaluate(voc_settings(tiny_world, tmp_path / "one"), voc_weights)
    results = read_json(scoring.evaluation_path(voc_settings(tiny_world, tmp_path), voc_weights) / "results.json")
    assert results["scores"] == pytest.approx(one.scores())


def test_experts_are_trained_side_by_side_and_by_category(
    tiny_world: World,
    trained: Path,
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
    first = _times(tmp_path / "run", "final_model.pt")
    assert [path.parent for path in first] == [expert_dirs(tmp_path / "run")["fish"]]
    run = namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "experts.at_once=2"))
    assert "experts: 2 to train, 2 at once" in log_text.text
    assert first.items() <= _times(run.path, "final_model.pt").items()
    for name, folder in expert_dirs(run.path).items():
        assert same_weights(folder / "final_model.pt", expert_dirs(trained)[name] / "final_model.pt")
    assert not run.final_model_path.exists()
    namedmask.train(tiny_settings(tiny_world, tmp_path, *words))
    assert "experts: 3 to train" not in log_text.text


def test_a_batch_too_small_for_the_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size 2 leaves one sample for each of 2 process\(es\).*batch_size=4"):
        check_batch(2, 2, 1)
    check_batch(4, 2, 1)


# ---- experts --------------------------------------------------------------------------------------------------------


def test_clustered_experts(tiny_world: World, trained: Path, retrieved: list[str], tmp_path: Path) -> None:
    settings = tiny_settings(
        tiny_world, tmp_path, *retrieved, EXPERTS, "experts.n_clusters=2", "experts.n_iters=1", "n_iters=1"
    )
    run = namedmask.train(settings)
    clusters = read_json(run.path / "expert_clusters.json")["clusters"]
    assert sorted(name for members in clusters for name in members) == sorted(NAMES)
    folder = run.path / "experts" / "kmeans" / "n_experts_2"
    experiment = "deeplabv3plus_mobilenet_n3_sr50100"
    assert {path.name for path in folder.iterdir()} == {f"{experiment}_cid0_s0", f"{experiment}_cid1_s0"}
    groups = experts.expert_groups(settings, ["background", *NAMES], run)
    assert [group.categories for group in groups] == [tuple(members) for members in clusters]
    assert all((experts.expert_path(settings, group, run) / "final_model.pt").is_file() for group in groups)
    assert run.final_model_path.is_file()


def test_experts_are_found_by_every_run_of_a_benchmark(tiny_world: World, tmp_path: Path) -> None:
    """What `experts_voc_category.sh` trains is what `voc_val_n500_cp2_ex` looks for, and so on for each benchmark."""
    for stem in ("voc", "coco2017", "coca", "cityscapes", "imagenet_s50", "imagenet_s300", "imagenet_s919"):
        (whole,) = (ROOT / "configs" / "namedmask").glob(f"{stem}*_n500_cp2_ex.yaml")
        paths = []
        for config in (whole, ROOT / "configs" / "namedmask" / f"{stem}_category.yaml"):
            settings = namedmask.load_settings(config, [f"dir_ckpt={tmp_path}"])
            run = RunFolder(namedmask.run_path(settings))
            groups = experts.expert_groups(settings, stages.category_names(settings), run)
            paths.append([experts.expert_path(settings, group, run) for group in groups])
        assert paths[0] == paths[1]
        assert len(set(paths[0])) == len(paths[0])
    voc = tmp_path / "voc2012_category" / "train" / "deeplabv3plus_resnet50_n500_sr10100_tv_monitor_s0"
    settings = namedmask.load_settings(ROOT / "configs/namedmask/voc_category.yaml", [f"dir_ckpt={tmp_path}"])
    (group,) = experts.expert_groups(
        settings.model_copy(update={"single_category": ["tv_monitor"]}), stages.category_names(settings), run
    )
    assert experts.expert_path(settings, group, run) == voc


def test_an_expert_of_voc_is_scored_while_it_is_trained_and_alone(tiny_world: World, tmp_path: Path) -> None:
    words = [
        *("categories=null", "dataset_name=voc2012_category", "split=train", f"dir_val_dataset={tiny_world.voc_dir}"),
        *("stop_after=experts", "n_images=1", "experts.n_iters=1"),
    ]
    benchmark = stages.open_benchmark(
        tiny_settings(tiny_world, tmp_path, *words[:4], "dataset_name=voc2012"), [], with_instances=False
    )
    labels = np.concatenate([np.unique(item.label) for item in benchmark])
    name = benchmark.category_names[int(labels[(labels > 0) & (labels < 255)][0])]
    settings = tiny_settings(tiny_world, tmp_path, *words, f"single_category=['{name}']")
    namedmask.train(settings)
    (expert,) = (tmp_path / "voc2012_category" / "train").iterdir()
    trained = read_json(expert / "results.json")
    assert trained["protocol"]["benchmark"] == "voc2012_category"
    settings = tiny_settings(tiny_world, tmp_path, *words, f"single_category=['{name}']", task="evaluate")
    result = namedmask.evaluate(settings, expert / "final_model.pt")
    assert result.scores() == pytest.approx(trained["scores"])
    assert result.protocol.category_names == ("background", name)


def test_experts_weights_that_lack_are_named_together(tiny_world: World, retrieved: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    make_weights(folder / "expert_house.pt", 2)
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, EXPERTS, f"experts.dir_weights={folder}")
    with pytest.raises(WeightsError, match=r"lacks the weights of 2 of 3 experts: expert_fish.pt, expert_car.pt\. Put"):
        namedmask.train(settings)
    for name in ("fish", "car"):
        shutil.copy(folder / "expert_house.pt", folder / f"expert_{name}.pt")
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, "stop_after=experts", f"experts.dir_weights={folder}")
    run = namedmask.train(settings)
    assert len(_times(tmp_path / "expert_masks")) == 9
    assert not (run.path / "experts").exists()
    make_weights(folder / "expert_car.pt", 4)
    shutil.rmtree(tmp_path / "expert_masks")
    with pytest.raises(WeightsError, match=r"expert_car.pt: these weights have 4 classes"):
        namedmask.train(settings)


def test_names_that_are_no_categories_are_refused(tiny_world: World, retrieved: list[str], tmp_path: Path) -> None:
    words = [*retrieved, "stop_after=experts"]
    with pytest.raises(
        ConfigError, match=r"single_category: 'whale' not among the 3 categories: 'fish', 'house', 'car'"
    ):
        namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "single_category=[fish, whale]"))
    with pytest.raises(ConfigError, match=r"experts.n_clusters: received 4, but there are only 3 categories"):
        namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "experts.n_clusters=4"))


# ---- stages and settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "num_masks"), [("retrieval", 0), ("pseudo_masks", 5)])
def test_a_run_stops_where_it_is_told_to(
    tiny_world: World, trained: Path, retrieved: list[str], tmp_path: Path, stage: str, num_masks: int
) -> None:
    settings = tiny_settings(tiny_world, tmp_path, retrieved[0], EXPERTS, f"stop_after={stage}")
    run = namedmask.train(settings)
    assert len(_times(tmp_path / "masks")) == num_masks == (len(_categories_of_pictures(trained)) if num_masks else 0)
    assert not (tmp_path / "expert_masks").exists()
    assert not (run.path / "experts").exists()
    assert not run.checkpoint_path.exists()


def test_dry_run_writes_nothing(
    tiny_world: World, trained: Path, retrieved: list[str], tmp_path: Path, log_text: pytest.LogCaptureFixture
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
    tiny_world: World, trained: Path, retrieved: list[str], tmp_path: Path, maker: str
) -> None:
    shutil.copytree(trained.parent / maker, tmp_path / maker)
    for path in (tmp_path / maker).rglob("*.json"):
        write_mask(path, np.ones((5, 7), np.uint8))
    words = [*retrieved, EXPERTS] if maker == "expert_masks" else retrieved[:1]
    with pytest.raises(
        DataError, match=r"this pseudo-mask is 5x7, but its picture .* is \d+x\d+ .* Delete the mask file"
    ):
        namedmask.train(tiny_settings(tiny_world, tmp_path, *words))


# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_reads_the_benchmark_and_the_weights_alone(
    tiny_world: World, voc_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_text
) -> None:
    monkeypatch.setattr("utils.download.download", lambda *_, **__: pytest.fail("something is downloaded"))
    words = ["dir_train_dataset=/none", "backbone_weights=dino", "retrieval_clip=ViT-B/16", EXPERTS]
    settings = voc_settings(
        tiny_world, tmp_path, *words, "selfmask_weights=/none", "segmenter_name=deeplabv3plus_resnet50"
    )
    result = namedmask.evaluate(settings, voc_weights)
    folder = scoring.evaluation_path(settings, voc_weights)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "voc2012"}
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "pictures", "results.json"}
    assert result.protocol.num_images == 4
    assert result.protocol.extra["segmenter"] == "deeplabv3plus_mobilenet"
    assert set(result.scores()) == {"mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"}


def test_evaluation_does_not_depend_on_batches_or_the_kind_of_file(
    tiny_world: World, voc_weights: Path, tmp_path: Path
) -> None:
    expected = namedmask.evaluate(voc_settings(tiny_world, tmp_path), voc_weights).scores()
    settings = voc_settings(tiny_world, tmp_path, "val_dataloader_kwargs={batch_size: 1, num_workers: 0}")
    assert namedmask.evaluate(settings, voc_weights).scores() == pytest.approx(expected)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(voc_weights, run / "final_model.pt")
    (run / "config.yaml").write_text("system: namedmask\ndataset_name: voc2012\n")
    assert namedmask.evaluate(voc_settings(tiny_world, tmp_path), run).scores() == pytest.approx(expected)


def test_weights_of_other_classes_are_refused(
    tiny_world: World, voc_weights: Path, trained: Path, tmp_path: Path
) -> None:
    settings = voc_settings(tiny_world, tmp_path)
    with pytest.raises(WeightsError, match=r"have 4 classes, the benchmark asks for 21\. Use the script or config"):
        namedmask.evaluate(settings, trained)
    with pytest.raises(WeightsError, match=r"weights of a DeepLabv3\+ were expected.*look like SelfMask weights"):
        namedmask.evaluate(settings, tiny_world.root / "selfmask.pt")


def test_labels_and_files_that_do_not_fit_the_benchmark(tiny_world: World, voc_weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "VOC2012"
    shutil.copytree(tiny_world.voc_dir, folder)
    labels = sorted((folder / "SegmentationClass").iterdir())
    settings = voc_settings(tiny_world, tmp_path, f"dir_val_dataset={folder}")
    whole = labels[0].read_bytes()
    label = Image.open(labels[0])
    label.putpixel((3, 3), 77)
    label.save(labels[0])
    with pytest.raises(DataError, match=rf"{labels[0].name}.*77"):
        namedmask.evaluate(settings, voc_weights)
    labels[0].write_bytes(whole)
    shutil.copy(labels[0], labels[0].with_name("of_nothing.png"))
    with pytest.raises(DataError, match=r"1 .*of_nothing\.png"):
        namedmask.evaluate(settings, voc_weights)
    labels[0].with_name("of_nothing.png").unlink()
    labels[0].unlink()
    with pytest.raises(DataError, match=rf"1 .*{labels[0].name}"):
        namedmask.evaluate(settings, voc_weights)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_segmenting_pictures(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(rng.integers(0, 255, (1, 1, 3), dtype=np.uint8)).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    results = namedmask.segment_pictures(trained, [folder], categories=None, output_dir=tmp_path / "all")
    assert {result.path.name for result in results if result.refusal} == {"broken.jpg"}
    assert Image.open(tmp_path / "all" / "labels" / "colour.png").size == (60, 40)
    document = orjson.loads((tmp_path / "all" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == NAMES
    namedmask.segment_pictures(trained, [folder], categories=["car", "fish"], output_dir=tmp_path / "some")
    document = orjson.loads((tmp_path / "some" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == ["car", "fish"]
    whole, some = (np.asarray(Image.open(tmp_path / part / "labels" / "colour.png")) for part in ("all", "some"))
    # The network's labels 0, 1 (fish), 3 (car) become 0, 2, 1; where it says something else, the next best is taken.
    for label, number in ((0, 0), (1, 2), (3, 1)):
        assert (some[whole == label] == number).all()
    assert some.max() <= 2
    (expert, *_) = expert_dirs(trained).values()
    namedmask.segment_pictures(expert, [folder / "colour.jpg"], categories=None, output_dir=tmp_path / "expert")
    document = orjson.loads((tmp_path / "expert" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == ["object"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fish", "whale"], "trained for 3 categories, and 'whale' is not among them: fish, house, car"),
        (["fish", ""], "one is empty"),
        (["fish", "fish"], "more than once: 'fish'"),
    ],
)
def test_names_that_the_network_does_not_know(trained: Path, tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        namedmask.segment_pictures(trained, [tmp_path], categories=names, output_dir=tmp_path)


def test_names_of_published_files(voc_weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "a.png")

    def names(weights: Path, *overrides: str) -> list[str]:
        namedmask.segment_pictures(
            weights, [tmp_path / "a.png"], categories=None, output_dir=tmp_path / "out", overrides=overrides
        )
        document = orjson.loads((tmp_path / "out" / "instances.json").read_bytes())
        return [category["name"] for category in document["categories"]]

    assert names(voc_weights)[:2] == ["aeroplane", "bicycle"]
    both = make_weights(tmp_path / "namedmask_coca.pt", 81)
    with pytest.raises(DataError, match=r"names of its 81 classes cannot be told.*dataset_name=coca"):
        names(both)
    assert names(both, "dataset_name=coca")[0] == "Accordion"
    assert names(both, "dataset_name=coco2017")[0] == "person"
    with pytest.raises(WeightsError, match="have 81 classes with background, but the settings name 21"):
        names(both, "dataset_name=voc2012")


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
