"""ReCo end to end in a stuff world: references, scores with and without the CRF, label PNGs, and what goes wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.build import build_benchmark
from datasets.metadata import category_table
from datasets.shapes.world import World
from pseudo_labels.references import read_references
from systems import find_system, reco, reco_labels, reco_places
from systems.evaluation_pictures import last_panels
from systems.reco_predict import RecoSegmenter, crf_input, make_refiner
from systems.reco_references import RecoNetworks
from systems.reco_stages import make_segmenter
from tests.processes import run_process, run_ranks
from tests.systems.tiny_reco import make_stuff_world, random_references, tiny_settings
from training.run_folder import RunFolder
from utils.errors import ConfigError, DataError, UserError, WeightsError
from utils.files import read_json

SCORES = {"mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    counts = {"num_stuff_index": 20, "num_cityscapes_stuff": 6, "num_coco_stuff": 2}
    return make_stuff_world(tmp_path_factory.mktemp("stuff"), **counts)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["UNMASKED_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(cache: None) -> None:
    """One cache for the module: text vectors are made once."""


@pytest.fixture(scope="module")
def scored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the val split."""
    return reco.train(tiny_settings(world, tmp_path_factory.mktemp("scored"))).path


@pytest.fixture(scope="module")
def references(scored: Path) -> str:
    """A word that spares a run retrieval and co-segmentation."""
    return f"reference_path={scored / 'references.safetensors'}"


def label_pngs(folder: Path) -> dict[str, np.ndarray]:
    return {
        f"{path.parent.name}/{path.name}": np.asarray(Image.open(path)) for path in sorted(folder.glob("dt*/*.png"))
    }


# ---- a whole run ----------------------------------------------------------------------------------------------------


def test_a_run_scores_both_label_maps(scored: Path, world: World) -> None:
    assert scored.parts[-5:] == ("cityscapes", "val", "reco", "clip_in_train_ce_ta_dc", "k003")
    assert {"config.yaml", "references.safetensors", "results.json", "report.html"} <= {
        p.name for p in scored.iterdir()
    }
    results = read_json(scored / "results.json")
    assert set(results["scores"]) == SCORES | {f"{name}_crf" for name in SCORES}
    assert list(results["class_iou"]) == list(results["class_iou_crf"]) == list(category_table("cityscapes27").names)
    assert results["class_iou"] != results["class_iou_crf"]
    protocol = results["protocol"]
    assert protocol["num_images"] == 3
    assert protocol["refiner"].startswith("scores with CRF: dense CRF, 1 iterations, place 3 x (1 px), colour 4 x (67")
    assert protocol["prompts"] == "1 templates for each of 27 names"
    page = (scored / "report.html").read_text()
    for text in ("What they have in common".lower(), "rail track", "mean IoU, CRF".lower(), "classes"):
        assert text in page.lower()
    assert all((scored / part.split('"')[0]).is_file() for part in page.split('src="')[1:])
    shared = scored.parents[3]
    assert (shared / "cosegmentation" / "clip_in_train_ce_ta_cat_to_img_feature_k3" / "coseg_parking_lot.png").is_file()
    archive = read_json(shared / "category_to_p_images.json")
    assert {"tree", "road"} <= set(archive)  # context categories, also those that are none of the benchmark's
    assert {len(paths) for paths in archive.values()} == {3}
    # imagenet_split: the folder of the index has one for each split
    assert {Path(path).parents[1] for path in archive["road"]} == {world.stuff_index_dir / "train"}


def test_labels_of_the_crf_are_those_of_each_picture_alone(scored: Path, world: World, references: str) -> None:
    settings = tiny_settings(world, scored.parent / "x", references)
    found = read_references(scored / "references.safetensors")
    segmenter, refiner = make_segmenter(settings, RecoNetworks(settings, torch.device("cpu")), found)
    images = torch.stack(
        [torch.from_numpy(item.image) for item in build_benchmark("cityscapes", settings.benchmark_dir)]
    )
    with torch.inference_mode():
        together = segmenter(images, (320, 320))
        refined = list(refiner(prediction.refinable for prediction in together))
        for image, prediction, labels in zip(images, together, refined, strict=True):
            (alone,) = segmenter(image[None], (320, 320))
            assert torch.equal(alone.labels, prediction.labels)
            (again,) = refiner([alone.refinable])
            assert torch.equal(again, labels)
            picture, scores = crf_input(alone.refinable)
            assert alone.refinable.shape == scores.shape
            assert scores.shape == (27, 320, 320)
            assert np.abs(picture[..., ::-1].astype(int) - image.numpy()).max() <= 1  # BGR, at most one level lower
            assert (scores.argmax(0) == prediction.labels.numpy()).mean() > 0.999  # but for rounding of equal ones
    assert any(not torch.equal(p.labels, r) for p, r in zip(together, refined, strict=True))


def test_references_as_weights(scored: Path, world: World, tmp_path: Path) -> None:
    expected = read_json(scored / "results.json")["scores"]
    settings = tiny_settings(world, tmp_path, task="evaluate")
    assert reco.evaluate(settings, scored).scores() == pytest.approx(expected, nan_ok=True)
    found = read_references(scored / "references.safetensors")
    published = tmp_path / "deit_s_16_sin_in_train_ce_ta_cat_to_img_feature_k50.pkl"
    published.write_bytes(pickle.dumps(dict(zip(found.names, found.vectors, strict=True))))
    result = reco.evaluate(settings, published)
    assert result.scores() == pytest.approx(expected, nan_ok=True)
    assert result.protocol.extra["references"] == published.name
    (written,) = tmp_path.glob("cityscapes/val/evaluation_deit*/results.json")
    assert read_json(written)["scores"] == pytest.approx(expected, nan_ok=True)
    assert find_system(published) == find_system(scored / "references.safetensors") == "reco"


def test_without_dense_clip_and_crf(world: World, tmp_path: Path, references: str) -> None:
    words = [references, "dense_clip_inference=false", "crf=off", "max_images=1"]
    run = reco.train(tiny_settings(world, tmp_path, *words))
    results = read_json(run.path / "results.json")
    assert set(results["scores"]) == SCORES
    assert results["protocol"]["refiner"] == "none"
    assert results["protocol"]["extra"]["dense CLIP"] == "not used"
    assert run.path.parent.name == "clip_in_train_ce_ta"


def test_finer_categories_are_scored_as_coarser_ones(world: World, tmp_path: Path) -> None:
    settings = tiny_settings(
        world, tmp_path, "dataset_name=coco_stuff", f"dir_val_dataset={world.coco_stuff_dir}", task="evaluate"
    )
    path = random_references(settings, tmp_path / "r.safetensors")
    result = reco.evaluate(settings, path)
    networks = RecoNetworks(settings, torch.device("cpu"))
    references, coarse = read_references(path), torch.tensor(category_table("coco_stuff171").scored_as).long()
    fine = RecoSegmenter(networks.with_references(references), torch.device("cpu"))
    segmenter, refiner = make_segmenter(settings, networks, references)
    (item,) = build_benchmark("coco_stuff", settings.benchmark_dir)
    with torch.inference_mode():
        (one,) = fine(torch.from_numpy(item.image)[None], (320, 320))
        (other,) = segmenter(torch.from_numpy(item.image)[None], (320, 320))
        assert torch.equal(other.labels, coarse[one.labels])
        (labels,), (mapped,) = make_refiner(settings, torch.device("cpu"))([one.refinable]), refiner([other.refinable])
        assert torch.equal(mapped, coarse[labels])
        assert labels.max() > 26
    truth = torch.from_numpy(item.label)
    accuracy = ((other.labels == truth) & (truth >= 0)).sum() / (truth >= 0).sum()
    assert result.scores()["pixel_accuracy"] == pytest.approx(float(accuracy))


# ---- label PNGs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled(world: World, references: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on the training split."""
    return reco.train(tiny_settings(world, tmp_path_factory.mktemp("labelled"), references, "split=train")).path


def test_label_pngs_have_the_names_of_the_release(labelled: Path) -> None:
    found = label_pngs(labelled)
    assert len(found) == 6
    assert all(name.endswith("_000019_gtFine_labelIds.png") for name in found)
    assert {name.split("/")[0] for name in found} == {"dt", "dt_crf"}
    assert all(
        labels.shape == (320, 320) and labels.dtype == np.uint8 and labels.max() < 27 for labels in found.values()
    )
    panels = last_panels(RunFolder(labelled))
    assert {panel.parts for panel in panels} == {("picture", "truth", "label PNG", "label PNG with CRF")}
    assert "Label PNGs, compared with the truth" in (labelled / "report.html").read_text()
    scores = read_json(labelled / "results_pseudo_labels.json")
    assert set(scores["scores"]) == SCORES | {f"{name}_crf" for name in SCORES}
    assert scores["protocol"]["split"] == "train"


def test_label_pngs_are_the_predictions_of_their_pictures(labelled: Path, world: World, references: str) -> None:
    settings = tiny_settings(world, labelled.parent / "x", references, "split=train")
    found = read_references(Path(references.partition("=")[2]))
    segmenter, refiner = make_segmenter(settings, RecoNetworks(settings, torch.device("cpu")), found)
    for item in build_benchmark("cityscapes", settings.benchmark_dir, "train"):
        name = item.path.name.replace("_leftImg8bit", "_gtFine_labelIds")
        with torch.inference_mode():
            (prediction,) = segmenter(torch.from_numpy(item.image)[None], (320, 320))
            (refined,) = refiner([prediction.refinable])
        assert np.array_equal(label_pngs(labelled)[f"dt/{name}"], prediction.labels)
        assert np.array_equal(label_pngs(labelled)[f"dt_crf/{name}"], refined)


def _label_killed(world: World, output_dir: Path, references: str) -> None:
    """Label the training split, and die of SIGKILL after two files."""
    from pseudo_labels import label_maps

    write, written = label_maps.write_label_map, []

    def dying(*arguments: object) -> None:
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        written.append(write(*arguments))

    label_maps.write_label_map = dying
    reco.train(tiny_settings(world, output_dir, references, "split=train"))


def test_killed_labelling_goes_on(labelled: Path, world: World, references: str, tmp_path: Path, log_text) -> None:
    assert run_process(_label_killed, world, tmp_path, references) == -signal.SIGKILL
    settings = tiny_settings(world, tmp_path, references, "split=train")
    folder = reco_places.run_path(settings)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("dt*/*.png")}
    assert 0 < len(before) < 6
    reco.train(settings)
    found = label_pngs(folder)
    assert found.keys() == label_pngs(labelled).keys()
    assert all(np.array_equal(labels, found[name]) for name, labels in label_pngs(labelled).items())
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    reco.train(settings)  # nothing is left to do, and no network is needed
    assert log_text.text.count("pseudo-labels: done") == 1


def _label(world: World, output_dir: Path, references: str) -> None:
    reco.train(tiny_settings(world, output_dir, references, "split=train"))


def test_two_processes_label_as_one(labelled: Path, world: World, references: str, tmp_path: Path) -> None:
    assert run_ranks(_label, 2, world, tmp_path, references) == [0, 0]
    folder = reco_places.run_path(tiny_settings(world, tmp_path, references, "split=train"))
    found = label_pngs(folder)
    assert found.keys() == label_pngs(labelled).keys()
    assert all(np.array_equal(labels, found[name]) for name, labels in label_pngs(labelled).items())
    assert read_json(folder / "results_pseudo_labels.json") == read_json(labelled / "results_pseudo_labels.json")


def test_labels_of_two_kinds_do_not_mix(labelled: Path, world: World, references: str) -> None:
    output_dir = labelled.parents[4]
    settings = tiny_settings(world, output_dir, references, "split=train", "crf={iterations: 2}")
    with pytest.raises(DataError, match=r"were made with other settings:\n  crf\.iterations: made with 1, now 2\n"):
        reco.train(settings)
    damaged = next(labelled.glob("dt/*.png"))
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-20])
    reco.train(tiny_settings(world, output_dir, references, "split=train"))
    assert damaged.read_bytes() == whole


def test_one_kind_of_label_is_enough(world: World, references: str, tmp_path: Path) -> None:
    words = [references, "split=train", "pseudo_label_folders=[dt]", "max_images=1"]
    folder = reco.train(tiny_settings(world, tmp_path, *words)).path
    assert [name.split("/")[0] for name in label_pngs(folder)] == ["dt"]
    assert set(read_json(folder / "results_pseudo_labels.json")["scores"]) == SCORES


def test_labels_with_a_crf_are_added_to_those_without(
    labelled: Path, world: World, references: str, tmp_path: Path
) -> None:
    reco.train(tiny_settings(world, tmp_path, references, "split=train", "crf=off"))
    folder = reco_places.run_path(tiny_settings(world, tmp_path, references, "split=train"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("dt/*.png")}
    assert len(before) == 3
    assert not (folder / "dt_crf").exists()
    reco.train(tiny_settings(world, tmp_path, references, "split=train"))
    found = label_pngs(folder)
    assert all(np.array_equal(labels, found[name]) for name, labels in label_pngs(labelled).items())
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with pytest.raises(DataError, match=r"crf\.iterations: made with 1, now 3"):
        reco.train(tiny_settings(world, tmp_path, references, "split=train", "crf.iterations=3"))


def test_labels_belong_to_the_content_of_references(labelled: Path, world: World, references: str, tmp_path) -> None:
    """Wherever the file lies and whatever it is called."""
    output_dir = labelled.parents[4]
    copied = tmp_path / "copy.safetensors"
    shutil.copy(references.partition("=")[2], copied)
    reco.train(tiny_settings(world, output_dir, f"reference_path={copied}", "split=train"))
    settings = tiny_settings(world, output_dir, "split=train")
    other = random_references(settings, tmp_path / "other.safetensors", seed=1)
    with pytest.raises(DataError, match="were made with other settings:\n  references: made with '"):
        reco.train(tiny_settings(world, output_dir, f"reference_path={other}", "split=train"))


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_references_and_archives_of_another_index_are_refused(scored: Path, world: World, tmp_path: Path) -> None:
    output_dir = scored.parents[4]
    index = tmp_path / "another index"
    shutil.copytree(world.stuff_index_dir, index)
    with pytest.raises(DataError, match=r"(?s)index_dirs: made with .*now .*another index/train.*another suffix or na"):
        reco.train(tiny_settings(world, output_dir, f"dir_train_dataset={index}"))
    shutil.copytree(output_dir, tmp_path / "runs")
    for path in (tmp_path / "runs" / "cityscapes").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"this image archive was made with other settings \(index_dirs: made with"):
        reco.train(tiny_settings(world, tmp_path / "runs", f"dir_train_dataset={index}"))


def test_references_of_other_settings_are_refused(scored: Path, world: World) -> None:
    output_dir = scored.parents[4]
    with pytest.raises(DataError, match=r"(?s)seed_window: made with 'published', now 'own'.*another suffix or name"):
        reco.train(tiny_settings(world, output_dir, "seed_window=own"))


def test_references_of_another_encoder_or_other_categories_are_refused(world: World, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, task="evaluate")
    path = random_references(settings, tmp_path / "r.safetensors", width=48)
    with pytest.raises(DataError, match="holds references of 48 channels, but the image encoder has 64"):
        reco.evaluate(settings, path)
    kitti = tiny_settings(world, tmp_path, "dataset_name=kitti_step", task=None)
    path = random_references(kitti, tmp_path / "kitti.safetensors")
    with pytest.raises(DataError, match=r"are of other categories, 8 of 27 are not in it:\n  missing: 'parking lot'"):
        reco.evaluate(settings, path)


def test_an_archive_without_a_category_is_refused(scored: Path, world: World, tmp_path: Path) -> None:
    archive = read_json(scored.parents[3] / "category_to_p_images.json")
    del archive["tree"]
    (tmp_path / "archive.json").write_text(json.dumps(archive))
    settings = tiny_settings(world, tmp_path, f"category_to_p_images_fp={tmp_path / 'archive.json'}")
    with pytest.raises(DataError, match=r"1 of 27 are not in it:\n  missing: 'tree'"):
        reco.train(settings)


def test_too_little_memory_for_the_crf(
    world: World, references: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pseudo_labels.crf_memory.available_memory", lambda: 50 << 20)
    with pytest.raises(UserError, match=r"27 classes on 320x320 pixels needs about .*, but 50 MiB are free.*crf=off"):
        reco.train(tiny_settings(world, tmp_path, references, "crf={num_threads: 3}"))


def test_names_that_cannot_be(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 names for the 27 labels of cityscapes"):
        reco.train(tiny_settings(world, tmp_path, "categories=[road, sky]"))
    with pytest.raises(ConfigError, match="ReCo gives every pixel one of the names and knows no 'background'"):
        reco.train(tiny_settings(world, tmp_path, "dataset_name=null", "categories=[background, sky]"))


def test_weights_of_the_other_method_are_refused(world: World, scored: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, task="evaluate")
    torch.save({"a": torch.zeros(1)}, tmp_path / "reco_plus.pt")
    with pytest.raises(WeightsError, match=r"expected reference embeddings .* weights of ReCo\+, use its own config"):
        reco.evaluate(settings, tmp_path / "reco_plus.pt")
    with pytest.raises(WeightsError, match="no reference embeddings in this folder"):
        reco.evaluate(settings, tmp_path)
    trained = settings.model_copy(update={"method": "reco_plus"})
    with pytest.raises(WeightsError, match=r"these are reference embeddings, but ReCo\+ is evaluated with weights"):
        reco.evaluate(trained, scored / "references.safetensors")


def test_dry_run_writes_nothing(world: World, references: str, tmp_path: Path, log_text) -> None:
    settings = tiny_settings(world, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    reco.train(settings, dry_run=True)
    reco.train(tiny_settings(world, tmp_path, references, "split=train"), dry_run=True)
    assert sorted(tmp_path.rglob("*")) == before
    for text in (
        "27 categories: road, sidewalk",
        "references to compute: 27",
        "cityscapes val, 3 images",
        "references: /",
    ):
        assert text in log_text.text


def test_a_run_stops_where_it_is_told(world: World, tmp_path: Path, log_text) -> None:
    run = reco.train(tiny_settings(world, tmp_path, "stop_after=retrieval", "name=mine"))
    assert (run.path / "category_to_p_images.json").is_file()
    assert not (run.path / "references.safetensors").exists()
    assert "stopped after retrieval, as asked" in log_text.text


def test_labels_that_do_not_fit_their_picture_are_named(world: World, references: str, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, references, "split=train")
    pictures = build_benchmark("cityscapes", settings.benchmark_dir, "train")
    folder = reco_labels.LabelFolder(tmp_path, pictures, ["dt"])
    for path in pictures.image_paths:
        (tmp_path / "dt").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder.file("dt", path))
    with pytest.raises(DataError, match="its label PNGs have other sizes than its label"):
        reco_labels.score_pseudo_labels(folder, protocol={}, num_workers=0)
