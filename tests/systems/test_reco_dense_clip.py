"""Dense CLIP alone, ReCo's baseline, end to end in a stuff world: what it says, what it leaves, what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.build import build_benchmark
from datasets.metadata import category_table
from datasets.shapes.world import World
from networks.interpolation import resize
from systems import find_system, reco, reco_dense_clip, reco_places
from systems.reco_references import RecoNetworks
from tests.systems.tiny_reco import make_stuff_world, tiny_settings
from training.run_folder import RunFolder
from utils.errors import WeightsError
from utils.files import read_json
from utils.normalisation import normalise_images

ALONE = "method=dense_clip"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_stuff_world(tmp_path_factory.mktemp("stuff"), num_cityscapes_stuff=4, num_coco_stuff=2)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["UNMASKED_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(cache: None) -> None:
    """One cache for the module: text vectors are made once."""


@pytest.fixture(scope="module")
def scored(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; there are no index pictures."""
    return reco.train(tiny_settings(world, tmp_path_factory.mktemp("scored"), ALONE, "dir_train_dataset=[]")).path


def test_a_run_scores_both_label_maps(scored: Path) -> None:
    assert scored.parts[-4:] == ("cityscapes", "val", "dense_clip", "clip")
    assert {path.name for path in scored.parents[2].iterdir()} == {"val"}  # nothing of retrieval or references
    results = read_json(scored / "results.json")
    assert list(results["class_iou"]) == list(results["class_iou_crf"]) == list(category_table("cityscapes27").names)
    assert results["scores"]["mean_iou"] != results["scores"]["mean_iou_crf"]
    protocol = results["protocol"]
    assert protocol["refiner"].startswith("scores with CRF: dense CRF, 1 iterations")
    assert protocol["prompts"] == "1 templates for each of 27 names"
    assert protocol["extra"]["dense CLIP"].endswith("clip.pt")
    assert protocol["extra"]["references"] == "none"
    assert "image encoder" not in protocol["extra"]
    assert "Dense CLIP: cityscapes" in (scored / "report.html").read_text()
    assert find_system(scored) == "reco"


def test_labels_are_those_of_the_enlarged_cosines(scored: Path, world: World, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, ALONE, "crf=off")
    networks, names = RecoNetworks(settings, torch.device("cpu")), category_table("cityscapes27").names
    right = total = 0
    for item in build_benchmark("cityscapes", settings.benchmark_dir):
        with torch.inference_mode():
            image = torch.from_numpy(item.image).permute(2, 0, 1)[None]  # (h, w, 3) -> (1, 3, h, w)
            features = torch.nn.functional.normalize(networks.tower(normalise_images(image)), dim=1)
            cosines = torch.einsum("nd,bdhw->bnhw", networks.text(names), features)
            labels = resize((10 * cosines).sigmoid(), item.size).argmax(dim=1)[0].numpy()
        right, total = right + int((labels == item.label)[item.label >= 0].sum()), total + int((item.label >= 0).sum())
    run = reco.train(settings)
    found = read_json(run.path / "results.json")
    assert found["scores"]["pixel_accuracy"] == pytest.approx(right / total, abs=1e-4)
    assert found["scores"] == {
        name: pytest.approx(value, nan_ok=True)
        for name, value in read_json(scored / "results.json")["scores"].items()
        if not name.endswith("_crf")
    }
    assert found["protocol"]["refiner"] == "none"


def test_finer_categories_are_scored_as_coarser_ones(world: World, tmp_path: Path) -> None:
    words = ["dataset_name=coco_stuff", f"dir_val_dataset={world.coco_stuff_dir}", "suffix=try"]
    run = reco.train(tiny_settings(world, tmp_path, ALONE, *words))
    assert run.path.name == "clip_try"
    results = read_json(run.path / "results.json")
    assert len(results["class_iou"]) == len(results["class_iou_crf"]) == 27
    assert results["protocol"]["prompts"] == "1 templates for each of 171 names"


def test_a_training_split_is_scored_where_no_label_pngs_are_wanted(world: World, tmp_path: Path) -> None:
    words = ["split=train", "write_pseudo_labels=false", "crf=off", "name=mine"]
    settings = tiny_settings(world, tmp_path, ALONE, *words)
    result = reco_dense_clip.score_benchmark(settings, RunFolder(reco_places.run_path(settings)))
    assert result.protocol.split == "train"
    assert (tmp_path / "mine" / "results.json").is_file()
    assert not list(tmp_path.rglob("dt"))


def test_weights_are_refused(world: World, scored: Path, tmp_path: Path) -> None:
    settings = tiny_settings(world, tmp_path, ALONE, task="evaluate")
    for weights in (scored, tmp_path / "references.pkl"):
        with pytest.raises(
            WeightsError, match=r"dense CLIP alone .* no weights but CLIP's own .* To score it give none"
        ):
            reco.evaluate(settings, weights)
    with pytest.raises(WeightsError, match=r"references\.pkl: dense CLIP alone .* Give the folder of one of its runs"):
        reco.segment_pictures(
            tmp_path / "references.pkl", [tmp_path], categories=None, output_dir=tmp_path, settings=settings
        )


def test_pictures_by_names_that_nobody_trained(scored: Path, tmp_path: Path) -> None:
    for name, size in (("a.png", (40, 70)), ("tiny.png", (1, 1))):
        pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    out = tmp_path / "out"
    results = reco.segment_pictures(
        scored, [tmp_path / "a.png", tmp_path / "tiny.png"], categories=["sky", "whale"], output_dir=out
    )
    assert len(results) == 2
    found = np.asarray(Image.open(out / "labels" / "a.png"))
    assert found.shape == (40, 70)
    assert set(np.unique(found)) <= {1, 2}
    assert [category["name"] for category in read_json(out / "instances.json")["categories"]] == ["sky", "whale"]
