"""ReCo on users' own names and pictures, through the two commands, with and without a trained network."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import train
from datasets.shapes.world import World
from pseudo_labels.references import read_references
from systems import find_system
from systems.evaluation_pictures import last_panels
from systems.reco_shown import NUM_SHOWN
from systems.reco_weights import reference_file
from tests.systems.tiny_reco import make_stuff_world, tiny_words
from training.run_folder import RunFolder
from utils.files import read_json

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/reco/custom.yaml")
NAMES = ["road", "sky", "grass", "house"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_stuff_world(tmp_path_factory.mktemp("stuff"), num_stuff_index=8)


@pytest.fixture(scope="module")
def pictures(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in a folder without any layout, one of them broken."""
    folder = tmp_path_factory.mktemp("own") / "my pictures" / "2024"
    folder.mkdir(parents=True)
    for path in sorted((world.stuff_index_dir / "train").rglob("*.JPEG")):
        shutil.copy(path, folder / f"{path.stem}.jpeg")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder.parent


def words(world: World, pictures: Path, runs: Path) -> list[str]:
    names = ", ".join(NAMES)
    own = [f"categories=[{names}]", f"dir_train_dataset={pictures}", f"dir_ckpt={runs}", "name=mine"]
    return [*tiny_words(world), *own, "context_categories=[sky, tree]", "picture_shorter_side=40"]


@pytest.fixture(scope="module")
def run(world: World, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a ReCo run."""
    os.environ["UNMASKED_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    runs = tmp_path_factory.mktemp("runs")
    assert train.main(["--config", CONFIG, *words(world, pictures, runs)]) == 0
    return runs / "mine"


@pytest.fixture(autouse=True)
def own_cache(run: Path) -> None:
    """One cache for the module: text vectors are made once."""


def test_names_become_references(run: Path) -> None:
    assert read_references(run / "references.safetensors").names == tuple(NAMES)
    assert set(read_json(run / "category_to_p_images.json")) == {*NAMES, "tree"}
    (unreadable,) = run.rglob("unreadable.txt")
    assert "broken.jpg" in unreadable.read_text()
    page = (run / "report.html").read_text()
    assert "Retrieved pictures and what they have in common" in page
    assert "grass" in page
    assert find_system(run) == "reco"


def test_the_report_shows_own_pictures_segmented(run: Path, pictures: Path) -> None:
    panels = last_panels(RunFolder(run))
    assert 4 <= len(panels) <= NUM_SHOWN
    assert {panel.parts for panel in panels} == {("picture", "prediction with CRF")}
    assert {panel.name for panel in panels} <= {path.name for path in pictures.rglob("*.jpeg")}
    assert {name for panel in panels for name, _ in panel.colours.values()} <= set(NAMES)
    page = (run / "report.html").read_text()
    assert "From left to right: picture, prediction with CRF." in page
    assert all(panel.name in page for panel in panels)
    assert "rgb(" in page
    captions = re.findall("<figcaption>(.*?)</figcaption>", page.partition("have in common</h2>")[2])
    assert [caption.partition(":")[0] for caption in captions] == [*NAMES, "tree (context)"]


def test_pictures_are_segmented_by_names(
    run: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert inference.main(["--weights", str(run), "--images", str(pictures), "--output", str(out)]) == 0
    told = capfd.readouterr().err
    for text in ("segmenting by 4 names on cpu, with the CRF (crf=off is faster)", "refused", "broken.jpg"):
        assert text in told
    document = read_json(out / "instances.json")
    assert [(c["id"], c["name"]) for c in document["categories"]] == list(enumerate(NAMES, start=1))
    assert len(document["images"]) == 8
    for path in (out / "labels").rglob("*.png"):
        assert 1 <= np.asarray(Image.open(path)).min() <= np.asarray(Image.open(path)).max() <= 4


def test_some_of_the_names_with_and_without_the_crf(
    run: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (first, *_) = sorted(pictures.rglob("*.jpeg"))
    options = ["--weights", str(run / "references.safetensors"), "--images", str(first), "--categories", "house,sky"]
    for name, more in (("plain", ["crf=off"]), ("crf", []), ("small", ["picture_long_edge=32"])):
        assert inference.main([*options, "--output", str(tmp_path / name), *more]) == 0
        (path,) = (tmp_path / name / "labels").iterdir()
        labels = np.asarray(Image.open(path))
        assert labels.shape == Image.open(first).size[::-1]
        assert set(np.unique(labels)) <= {1, 2}
    assert [c["name"] for c in read_json(tmp_path / "crf" / "instances.json")["categories"]] == ["house", "sky"]
    assert "not used" not in capfd.readouterr().err  # the others were left out on purpose


def test_names_without_a_reference_are_refused(run: Path, pictures: Path, capfd: pytest.CaptureFixture) -> None:
    assert inference.main(["--weights", str(run), "--images", str(pictures), "--categories", "whale"]) == 2
    told = capfd.readouterr().err
    assert "--categories: this run has no reference of 'whale'; it knows road, sky, grass, house. Run train.py" in told
    assert inference.main(["--weights", str(run), "--images", str(pictures), "--categories", "Sky,houses"]) == 2
    told += capfd.readouterr().err
    assert "no reference of 'Sky' (did you mean 'sky'?), 'houses' (did you mean 'house'?); it knows" in told
    assert "Traceback" not in told


def test_a_network_trained_on_own_pictures(
    run: Path, world: World, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """In the folder of the ReCo run: its references are used."""
    shutil.copytree(run, tmp_path / "mine")
    command = ["--config", CONFIG, *words(world, pictures, tmp_path), "method=reco_plus", "n_iters=2"]
    assert train.main(command) == 0
    told = capfd.readouterr().err
    for text in ("no labels: ", "1 pictures without labels: ", "training set: 8 pictures", "trained for 2 iterations"):
        assert text in told
    assert "image archive" not in told
    labels = sorted((tmp_path / "mine").glob("dt_crf/2024/*.jpeg.png"))
    assert len(labels) == 8
    assert {min(np.asarray(Image.open(path)).shape) for path in labels} == {40}
    assert train.main(command) == 0
    told = capfd.readouterr().err
    assert "all 2 iterations are done already" in told
    assert "pseudo-labels: " not in told  # nothing is left to label: the broken picture is known
    out = tmp_path / "out"
    (first, *_) = sorted(pictures.rglob("*.jpeg"))
    assert inference.main(["--weights", str(tmp_path / "mine"), "--images", str(first), "--output", str(out)]) == 0
    assert [category["name"] for category in read_json(out / "instances.json")["categories"]] == NAMES
    page = (tmp_path / "mine" / "report.html").read_text()
    assert "ReCo+: your own categories" in page
    assert "Training" in page
    assert "picture, label that it learnt from, prediction with CRF." in page
    assert len(last_panels(RunFolder(tmp_path / "mine"))) == 8


def test_pictures_of_another_place_to_learn_from(run: Path, world: World, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "mine")
    other = tmp_path / "other"
    other.mkdir()
    for path in sorted(pictures.rglob("*.jpeg"))[:2]:
        shutil.copy(path, other)
    more = ["method=reco_plus", "n_iters=1", f"dir_pictures={other}", "crf=off"]
    assert train.main(["--config", CONFIG, *words(world, pictures, tmp_path), *more]) == 0
    assert len(list((tmp_path / "mine" / "dt").glob("*.jpeg.png"))) == 2
    assert not (tmp_path / "mine" / "dt_crf").exists()


def test_labels_of_other_pictures_are_refused_and_repaired_pictures_are_labelled(
    run: Path, world: World, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    shutil.copytree(run, tmp_path / "mine")
    folder, other = tmp_path / "pictures", tmp_path / "others of the same names"
    shutil.copytree(pictures, folder)
    shutil.copytree(pictures, other)
    more = ["method=reco_plus", "stop_after=prediction", "crf=off"]
    command = ["--config", CONFIG, *words(world, pictures, tmp_path), *more]
    assert train.main([*command, f"dir_pictures={folder}"]) == 0
    assert len(list((tmp_path / "mine" / "dt").rglob("*.png"))) == 8
    capfd.readouterr()
    assert train.main([*command, f"dir_pictures={other}"]) == 2
    told = capfd.readouterr().err
    assert "the label PNGs in this folder were made with other settings:\n  pictures: made with ['pictures'" in told
    shutil.copy(next(folder.rglob("*.jpeg")), folder / "2024" / "broken.jpg")
    assert train.main([*command, f"dir_pictures={folder}"]) == 0
    assert (tmp_path / "mine" / "dt" / "2024" / "broken.jpg.png").is_file()
    assert not (tmp_path / "mine" / "refused_pictures.txt").exists()


def test_given_references_leave_computed_ones_alone(run: Path, world: World, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "mine")
    computed = (run / "references.safetensors").read_bytes()
    vectors = dict(zip(NAMES, read_references(run / "references.safetensors").vectors.flip(0), strict=True))
    given = tmp_path / "published.pkl"
    given.write_bytes(pickle.dumps(vectors))
    command = ["--config", CONFIG, *words(world, pictures, tmp_path)]
    assert train.main([*command, f"reference_path={given}"]) == 0
    assert (tmp_path / "mine" / "references.safetensors").read_bytes() == computed
    assert reference_file(tmp_path / "mine", trains=False).read_bytes() == given.read_bytes()
    assert train.main(command) == 0
    assert reference_file(tmp_path / "mine", trains=False).read_bytes() == computed


def test_references_alone_need_to_be_told_their_networks_only(
    run: Path, world: World, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    shutil.copy(run / "references.safetensors", tmp_path / "alone.safetensors")
    (first, *_) = sorted(pictures.rglob("*.jpeg"))
    command = ["--weights", str(tmp_path / "alone.safetensors"), "--images", str(first), "--output", str(tmp_path)]
    clip = world.root / "clip.pt"
    networks = [f"encoder_arch={clip}", f"dense_clip_arch={clip}"]
    assert inference.main([*command, *networks, "prompts=['a photo of a {}.']", "crf=off"]) == 0
    capfd.readouterr()
    assert inference.main([*command, *networks, "prompts=['a {}.']", "crf=off"]) == 2
    told = capfd.readouterr().err
    assert "templates: made with ['a photo of a {}.'], now ['a {}.']" in told
    assert "num_images" not in told


def test_more_names_and_another_order(
    run: Path, world: World, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Only what is new is retrieved and computed; labels follow the order of the names."""
    shutil.copytree(run, tmp_path / "mine")
    before = read_references(run / "references.safetensors")
    archive = read_json(run / "category_to_p_images.json")
    names = ["water", "sky", "road", "grass", "house"]
    command = ["--config", CONFIG, *words(world, pictures, tmp_path)]
    assert train.main([*command, f"categories=[{', '.join(names)}]"]) == 0
    told = capfd.readouterr().err
    assert "searching 8 images for 1 categories" in told
    assert "references of 5 categories, 1 computed now" in told
    now = read_references(tmp_path / "mine" / "references.safetensors").by_name()
    assert now.keys() == before.by_name().keys() | {"water"}
    assert all(torch.equal(now[name], vector) for name, vector in before.by_name().items())
    grown = read_json(tmp_path / "mine" / "category_to_p_images.json")
    assert {name: grown[name] for name in archive} == archive
    fresh = ["--config", CONFIG, *words(world, pictures, tmp_path / "new"), "categories=[water, road]"]
    assert train.main(fresh) == 0
    vectors = read_references(tmp_path / "new" / "mine" / "references.safetensors").by_name()
    assert torch.allclose(now["water"], vectors["water"], atol=1e-6)
    (first, *_) = sorted(pictures.rglob("*.jpeg"))
    capfd.readouterr()
    maps = {}
    for chosen in (names[1:4], names[3:0:-1]):
        assert train.main([*command, f"categories=[{', '.join(chosen)}]"]) == 0
        out = tmp_path / chosen[0]
        options = ["--images", str(first), "--output", str(out), "crf=off"]
        assert inference.main(["--weights", str(tmp_path / "mine"), *options]) == 0
        assert [category["name"] for category in read_json(out / "instances.json")["categories"]] == chosen
        (path,) = (out / "labels").iterdir()
        maps[chosen[0]] = np.asarray(Image.open(path))
    assert np.array_equal(maps["sky"], 4 - maps["grass"])
    assert "computed now" not in capfd.readouterr().err


def test_pictures_that_were_added_to_the_index(
    world: World, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    own = tmp_path / "own"
    shutil.copytree(pictures, own)
    command = ["--config", CONFIG, *words(world, own, tmp_path)]
    assert train.main(command) == 0
    shutil.copy(next(own.rglob("*.jpeg")), own / "zz_added.jpeg")
    more = [*command, "categories=[road, sky, grass, house, water]"]
    assert train.main(more) == 2
    assert "allow it to be extended (embedding.extend=true, or --extend)" in capfd.readouterr().err
    assert train.main([*more, "embedding.extend=true"]) == 0
    assert "1 pictures are added to 9" in capfd.readouterr().err
