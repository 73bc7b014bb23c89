"""ReCo+ end to end in a stuff world: training on ReCo's labels, going on, scores, and what users get wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.shapes.world import World
from networks.checkpoints import read_state_dict
from networks.deeplab import DeepLabV3Plus, deeplab_from_state_dict
from systems import find_system, reco, reco_places
from tests.parity import fill
from tests.processes import run_process, run_ranks
from tests.systems.tiny_reco import make_stuff_world, random_references, tiny_settings
from utils.errors import ConfigError, DataError, UnreadableImageError, WeightsError
from utils.files import read_json, write_json

PLUS = "method=reco_plus"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_stuff_world(tmp_path_factory.mktemp("stuff"), num_stuff_index=1, num_cityscapes_stuff=6)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["UNMASKED_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(cache: None) -> None:
    """One cache for the module: text vectors are made once."""


@pytest.fixture(scope="module")
def references(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("references")
    path = random_references(tiny_settings(world, folder, task=None), folder / "r.safetensors")
    return f"reference_path={path}"


@pytest.fixture(scope="module")
def trained(world: World, references: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run, which made its label PNGs itself."""
    return reco.train(tiny_settings(world, tmp_path_factory.mktemp("trained"), PLUS, references)).path


@pytest.fixture(scope="module")
def labels(trained: Path) -> str:
    """A word that spares a run ReCo: its label PNGs are given."""
    (folder,) = trained.parents[3].glob("cityscapes/train/reco/*/k003/dt_crf")
    return f"dir_pseudo_masks={folder}"


def losses(run_dir: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(record["iteration"], record["loss"]) for record in records if "loss" in record]


def make_weights(path: Path, num_classes: int, backbone: str = "mobilenet") -> Path:
    """A bare file with deterministic weights under the published names."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DeepLabV3Plus(backbone, num_classes).state_dict().items()}
    torch.save({name: torch.from_numpy(value) for name, value in fill.state_dict(shapes).items()}, path)
    return path


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(trained: Path) -> None:
    assert trained.parts[-4:] == ("cityscapes", "val", "reco_plus", "deeplabv3plus_mobilenet")
    names = {"config.yaml", "checkpoint.pt", "final_model.pt", "metrics.jsonl", "results.json", "report.html"}
    assert names <= {path.name for path in trained.iterdir()}
    assert not (trained / "best.pt").exists()  # which would need validation labels
    assert [iteration for iteration, _ in losses(trained)] == [1, 2, 3, 4]
    assert all(np.isfinite(value) for _, value in losses(trained))
    network = deeplab_from_state_dict(read_state_dict(trained / "final_model.pt"))
    assert (network.backbone_name, network.num_classes) == ("mobilenet", 27)
    checkpoint = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert checkpoint["category_names"][:2] == ["road", "sidewalk"]


def test_the_crf_is_left_for_the_last_evaluation(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    scored = {record["iteration"]: record for record in records if "mean_iou" in record}
    assert list(scored) == [2, 4]
    assert "mean_iou_crf" not in scored[2]
    assert "mean_iou_crf" in scored[4]
    assert read_json(trained / "results.json")["scores"]["mean_iou_crf"] == pytest.approx(scored[4]["mean_iou_crf"])


def test_the_best_weights_need_to_be_asked_for(world: World, labels: str, tmp_path: Path) -> None:
    words = [PLUS, labels, "select_on=val", "validate_with_crf=true", "n_iters=2", "iter_eval=1", "max_images=1"]
    run = reco.train(tiny_settings(world, tmp_path, *words)).path
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len([record for record in records if "mean_iou_crf" in record]) == 2
    assert torch.load(run / "checkpoint.pt", weights_only=True)["best"]["metric"] == "mean_iou_crf"
    assert (run / "best.pt").is_file()


def _train_killed(world: World, output_dir: Path, labels: str) -> None:
    """Train, and die of SIGKILL in the third iteration."""
    from training.loop import _Training

    iterate, calls = _Training._iterate, []

    def dying(*arguments: object) -> None:
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        iterate(*arguments)

    _Training._iterate = dying
    reco.train(tiny_settings(world, output_dir, PLUS, labels, "iter_eval=100", "max_images=1"))


def test_a_killed_training_reaches_the_same_losses(world: World, trained: Path, labels: str, tmp_path: Path) -> None:
    assert run_process(_train_killed, world, tmp_path, labels) == -signal.SIGKILL
    run = reco.train(tiny_settings(world, tmp_path, PLUS, labels, "iter_eval=100", "max_images=1")).path
    assert losses(run) == losses(trained)


def test_a_training_does_not_go_on_with_other_labels(world: World, labels: str, tmp_path: Path) -> None:
    reco.train(tiny_settings(world, tmp_path, PLUS, labels, "iter_eval=100", "max_images=1"))
    folder = Path(labels.partition("=")[2])
    plain = f"dir_pseudo_masks={folder.with_name('dt')}"
    with pytest.raises(ConfigError, match=r"labels\.folder: 'dt_crf' in the checkpoint, 'dt' now"):
        reco.train(tiny_settings(world, tmp_path, PLUS, plain, "iter_eval=100", "max_images=1"))
    shutil.copytree(folder.parent, tmp_path / "others")
    record = read_json(tmp_path / "others" / "pseudo_labels.json")
    write_json(tmp_path / "others" / "pseudo_labels.json", record | {"temperature": 7.0})
    others = f"dir_pseudo_masks={tmp_path / 'others' / 'dt_crf'}"
    with pytest.raises(ConfigError, match=r"labels\.made\.temperature: 10\.0 in the checkpoint, 7\.0 now"):
        reco.train(tiny_settings(world, tmp_path, PLUS, others, "iter_eval=100", "max_images=1"))


def test_a_run_with_given_labels_stops_where_it_is_told_to(world: World, labels: str, tmp_path: Path) -> None:
    for stage in ("retrieval", "references", "prediction"):
        run = reco.train(tiny_settings(world, tmp_path, PLUS, labels, f"stop_after={stage}"))
        assert not run.metrics_path.exists()


def _train(world: World, output_dir: Path, references: str) -> None:
    words = ["train_dataloader_kwargs={batch_size: 4, num_workers: 0}", "n_iters=2", "max_images=2", "crf.iterations=1"]
    reco.train(tiny_settings(world, output_dir, PLUS, references, *words))


def test_two_processes_label_and_train_as_one(world: World, references: str, tmp_path: Path) -> None:
    assert run_ranks(_train, 2, world, tmp_path / "two", references) == [0, 0]
    _train(world, tmp_path / "one", references)
    one, two = ((tmp_path / name / "cityscapes/val/reco_plus/deeplabv3plus_mobilenet") for name in ("one", "two"))
    pngs = {name: sorted((tmp_path / name).rglob("dt_crf/*.png")) for name in ("one", "two")}
    assert [path.read_bytes() for path in pngs["one"]] == [path.read_bytes() for path in pngs["two"]]
    assert len(pngs["one"]) == 3
    assert [iteration for iteration, _ in losses(two)] == [1, 2]
    # Batch norm has the statistics of its own process's samples on a CPU, so losses are near but not equal.
    np.testing.assert_allclose([v for _, v in losses(two)], [v for _, v in losses(one)], rtol=0.25)
    scores = [read_json(path / "results.json")["scores"] for path in (one, two)]
    assert scores[0].keys() == scores[1].keys()


def test_evaluation_of_a_bare_file_and_of_a_run_agree(world: World, trained: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, PLUS, task="evaluate")
    from_run = reco.evaluate(settings, trained)
    bare = tmp_path / "reco_plus_dlp_rn101_cityscapes.pt"
    shutil.copy(trained / "final_model.pt", bare)
    from_file = reco.evaluate(settings, bare)
    assert from_file.scores() == pytest.approx(from_run.scores(), nan_ok=True)
    written = read_json(trained / "results.json")["scores"]
    assert from_run.scores() == pytest.approx(written, nan_ok=True)
    (results,) = tmp_path.glob("cityscapes/val/evaluation_reco_plus_dlp_rn101_cityscapes/results.json")
    assert read_json(results)["protocol"]["prompts"] == "none: the classes are the network's own"


# ---- a run that did not come to training ----------------------------------------------------------------------------


def _label_killed(world: World, output_dir: Path, references: str) -> None:
    """Label, and die of SIGKILL at the first picture."""
    from pseudo_labels import label_maps

    label_maps.LabelWriter.write = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    reco.train(tiny_settings(world, output_dir, PLUS, references))


def test_a_run_killed_while_labelling_segments_by_its_references(
    world: World, references: str, tmp_path: Path, log_text
) -> None:
    assert run_process(_label_killed, world, tmp_path, references) == -signal.SIGKILL
    (run,) = tmp_path.glob("cityscapes/val/reco_plus/*")
    assert find_system(run) == "reco"
    (picture, *_) = (world.cityscapes_stuff_dir / "leftImg8bit" / "val").rglob("*.png")
    reco.segment_pictures(run, [picture], categories=["sky", "road"], output_dir=tmp_path / "out")
    assert "has no weights yet; its references segment the pictures" in log_text.text
    assert (tmp_path / "out" / "labels" / f"{picture.stem}.png").is_file()
    evaluation = tiny_settings(world, tmp_path, PLUS, task="evaluate")
    with pytest.raises(WeightsError, match="no weights in this folder"):
        reco.evaluate(evaluation, run)


def test_a_run_that_stops_at_references_segments_by_them(world: World, references: str, tmp_path: Path) -> None:
    run = reco.train(tiny_settings(world, tmp_path, PLUS, references, "stop_after=references"))
    assert (run.path / "given_references.safetensors").is_file()
    assert find_system(run.path) == "reco"


def test_a_refused_run_leaves_the_settings_of_a_good_one(
    world: World, references: str, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.parents[3], tmp_path / "runs")
    run = tmp_path / "runs" / trained.relative_to(trained.parents[3])
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(DataError, match=r"temperature: made with 10\.0, now 7\.0"):  # of the label PNGs
        reco.train(tiny_settings(world, tmp_path / "runs", PLUS, references, "temperature=7.0"))
    with pytest.raises(ConfigError, match="scale_range"):  # of the checkpoint
        reco.train(tiny_settings(world, tmp_path / "runs", PLUS, references, "scale_range=[1.0, 2.0]"))
    assert (run / "config.yaml").read_bytes() == before
    (run / "checkpoint.pt").unlink()
    with pytest.raises(DataError, match="temperature"):
        reco.train(tiny_settings(world, tmp_path / "runs", PLUS, references, "temperature=7.0"))
    assert (run / "config.yaml").read_bytes() == before


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_missing_label_png_is_named(world: World, labels: str, tmp_path: Path) -> None:
    shutil.copytree(labels.partition("=")[2], tmp_path / "labels")
    first = min((tmp_path / "labels").iterdir())
    first.unlink()
    settings = tiny_settings(world, tmp_path, PLUS, f"dir_pseudo_masks={tmp_path / 'labels'}")
    with pytest.raises(DataError, match=rf"1 of 3 label PNGs are missing: .*{first.name}"):
        reco.train(settings)


def test_label_pngs_of_another_size_are_told_before_training(world: World, labels: str, tmp_path: Path) -> None:
    shutil.copytree(labels.partition("=")[2], tmp_path / "labels")
    last = max((tmp_path / "labels").iterdir())
    Image.new("L", (30, 20)).save(last)
    settings = tiny_settings(world, tmp_path, PLUS, f"dir_pseudo_masks={tmp_path / 'labels'}")
    for dry_run in (True, False):
        with pytest.raises(DataError, match=rf"1 of 3 pictures(.|\n)*{last.name}: 20x30 .*expected 320x320 or"):
            reco.train(settings, dry_run=dry_run)


def test_a_damaged_training_picture_stops_the_labelling(world: World, references: str, tmp_path: Path) -> None:
    shutil.copytree(world.cityscapes_stuff_dir, tmp_path / "data")
    broken = next((tmp_path / "data").glob("leftImg8bit/train/*/*.png"))
    broken.write_bytes(b"no picture")
    words = [PLUS, references, f"dir_val_dataset={tmp_path / 'data'}"]
    with pytest.raises(UnreadableImageError, match=broken.name):
        reco.train(tiny_settings(world, tmp_path, *words))


def test_weights_of_other_classes_are_refused(world: World, trained: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, PLUS, task="evaluate")
    other = make_weights(tmp_path / "reco_plus_kitti.pt", 19)
    with pytest.raises(WeightsError, match=r"19.*27"):
        reco.evaluate(settings, other)
    shutil.copytree(trained, tmp_path / "run")
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    content["category_names"][0] = "street"
    torch.save(content, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(WeightsError, match="of cityscapes: 'street' where the benchmark has 'road'"):
        reco.evaluate(settings, tmp_path / "run")


def test_a_wrong_file_for_the_backbone_is_told_at_once(
    world: World, trained: Path, labels: str, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no weights")
    wrong = f"backbone_weights={tmp_path / 'notes.txt'}"
    for dry_run in (False, True):
        with pytest.raises(WeightsError, match=r"notes\.txt"):
            reco.train(tiny_settings(world, tmp_path / "runs", PLUS, wrong), dry_run=dry_run)
    other = f"backbone_weights={make_weights(tmp_path / 'whole.pt', 27)}"
    with pytest.raises(WeightsError, match=r"whole\.pt"):
        reco.train(tiny_settings(world, tmp_path / "runs", PLUS, other))
    assert not any((tmp_path / "runs").rglob("*.json"))  # nothing was retrieved
    shutil.copytree(trained.parents[3], tmp_path / "again")  # which goes on with its checkpoint
    words = [PLUS, labels, wrong, "iter_eval=100", "max_images=1"]
    reco.train(tiny_settings(world, tmp_path / "again", *words))


def test_other_categories_than_those_of_the_benchmark(world: World, labels: str, trained: Path, tmp_path: Path) -> None:
    few = "categories=[a, b]"
    with pytest.raises(ConfigError, match="2 names for the 27 labels of cityscapes"):
        reco.evaluate(tiny_settings(world, tmp_path, PLUS, few, task="evaluate"), trained)
    with pytest.raises(ConfigError, match="2 names for the 27 labels of cityscapes"):
        reco.train(tiny_settings(world, tmp_path, PLUS, labels, few))


def test_settings_of_another_run_are_refused(world: World, trained: Path, labels: str) -> None:
    settings = tiny_settings(world, trained.parents[3], PLUS, labels, "scale_range=[1.0, 2.0]")
    with pytest.raises(ConfigError, match="scale_range"):
        reco.train(settings)


def test_lone_files_are_told_from_namedmask(tmp_path: Path) -> None:
    def system_of(num_classes: int, backbone: str) -> str:
        """Told by names and the number of classes alone, so the other tensors may be small."""
        with torch.device("meta"):
            names = DeepLabV3Plus(backbone, num_classes).state_dict()
        state = dict.fromkeys(names, torch.zeros(1)) | {"classifier.classifier.3.weight": torch.zeros(num_classes, 1)}
        torch.save(state, tmp_path / "lone.pt")
        return find_system(tmp_path / "lone.pt")

    assert system_of(27, "resnet101") == system_of(19, "resnet101") == "reco"
    assert system_of(27, "resnet50") == system_of(21, "resnet101") == "namedmask"


def test_dry_run_writes_nothing(world: World, references: str, labels: str, tmp_path: Path, log_text) -> None:
    settings = tiny_settings(world, tmp_path, PLUS, references)
    before = sorted(tmp_path.rglob("*"))
    reco.train(settings, dry_run=True)
    assert "label PNGs and a batch are left for the real run" in log_text.text
    reco.train(tiny_settings(world, tmp_path, PLUS, references, labels), dry_run=True)
    assert "batch (two samples read)" in log_text.text
    assert sorted(tmp_path.rglob("*")) == before


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_pictures_by_a_trained_network(trained: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 70)), ("tiny.png", (1, 1)), ("large.jpg", (90, 700))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    out = tmp_path / "out"
    results = reco.segment_pictures(trained, [tmp_path], categories=["sky", "road"], output_dir=out)
    assert len(results) == 3
    for name, size in (("a", (40, 70)), ("tiny", (1, 1)), ("large", (90, 700))):
        found = np.asarray(Image.open(out / "labels" / f"{name}.png"))
        assert found.shape == size
        assert set(np.unique(found)) <= {1, 2}  # no pixel is without a category
    document = read_json(out / "instances.json")
    assert [category["name"] for category in document["categories"]] == ["sky", "road"]
    with pytest.raises(ConfigError) as caught:
        reco.segment_pictures(trained, [tmp_path], categories=["Sky", "road", "xylophone"], output_dir=out)
    assert "was not trained for 'Sky' (did you mean 'sky'?), 'xylophone'; it knows road, sidewalk" in str(caught.value)
    assert "Train one for these names (train.py), or use ReCo itself (method=reco)" in str(caught.value)


def test_pictures_by_a_published_file(tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (90, 120, 30)).save(tmp_path / "a.png")
    options = {"categories": None, "output_dir": tmp_path / "out"}
    kitti = make_weights(tmp_path / "kitti.pt", 19)
    reco.segment_pictures(kitti, [tmp_path / "a.png"], **options)
    assert read_json(tmp_path / "out" / "instances.json")["categories"][1] == {"id": 2, "name": "sidewalk"}
    stuff = make_weights(tmp_path / "stuff.pt", 27)
    with pytest.raises(DataError, match=r"27 classes cannot be told .*\(cityscapes and coco_stuff both have 27\)"):
        reco.segment_pictures(stuff, [tmp_path / "a.png"], **options)
    reco.segment_pictures(stuff, [tmp_path / "a.png"], **options, overrides=["dataset_name=coco_stuff", "crf=off"])
    assert read_json(tmp_path / "out" / "instances.json")["categories"][0]["name"] == "electronic"
    with pytest.raises(WeightsError, match="these weights have 19 classes, but the settings name 27"):
        reco.segment_pictures(kitti, [tmp_path / "a.png"], **options, overrides=["dataset_name=cityscapes"])


def test_label_names_are_the_benchmarks_own(world: World, tmp_path: Path) -> None:
    stuff = tiny_settings(world, tmp_path, "dataset_name=coco_stuff", task=None)
    assert len(reco_places.label_names(stuff)) == 27
    assert len(reco_places.category_names(stuff)) == 171
