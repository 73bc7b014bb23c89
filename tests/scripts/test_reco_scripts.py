"""Every script of ReCo on the stuff world laid out as its benchmark: a few iterations, and given weights.

Commands are called in this process, with the words that their script hands over; one goes through bash to its end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import train
from networks.deeplab import DeepLabV3Plus
from retrieval.convert import write_embedding_pickle
from retrieval.index import ArrayIndex
from tests.parity import fill
from tests.systems.tiny_reco import make_stuff_world, random_references, tiny_words
from tests.systems.tiny_world import DIMENSIONS
from utils.config import load_settings
from utils.files import read_json

ROOT = Path(__file__).parents[2]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "scripts" / "reco").glob("*.sh"))}
BENCHMARKS = {"cityscapes": (27, 320), "coco_stuff": (27, 320), "kitti_step": (19, None), "pascal_context": (59, 320)}
TRAINED = ("cityscapes", "coco_stuff", "kitti_step")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stuff world under the names of `configs/paths.yaml`, with embeddings where downloads go (`cache`)."""
    root = tmp_path_factory.mktemp("data")
    counts = dict.fromkeys(("num_cityscapes_stuff", "num_coco_stuff", "num_kitti", "num_pascal_context"), 4)
    world = make_stuff_world(root / "world", num_stuff_index=6, **counts)
    for name, folder in (
        *(("cityscapes", world.cityscapes_stuff_dir), ("cocostuff", world.coco_stuff_dir)),
        *(("cocostuff10k", world.root / "coco_stuff10k"), ("kitti_step", world.kitti_dir)),
        *(("pascal_context", world.pascal_context_dir), ("ImageNet2012", world.stuff_index_dir)),
    ):
        (root / name).symlink_to(folder)
    names = sorted(path.name for path in world.stuff_index_dir.rglob("*.JPEG"))
    embeddings = np.random.default_rng(0).standard_normal((len(names), DIMENSIONS.embed_dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    index = ArrayIndex(embeddings, names, image_dir=root / "ImageNet2012" / "train", layout="imagenet")
    pickle = root / "cache/zutis/imagenet2012/filename_to_ViT_L_14_336px_train_img_embedding.pkl"
    pickle.parent.mkdir(parents=True)
    write_embedding_pickle(index, pickle)
    fake = root / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/usr/bin/env bash\ncase "$1" in scripts/*) ;; *) printf "%s\\n" "$@" ;; esac\n')
    fake.chmod(0o755)
    return root


@pytest.fixture(autouse=True)
def runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all runs of a test; the environment says where everything is, so that no script needs a path."""
    for name, folder in (("DATA", data), ("CACHE", data / "cache"), ("RUNS", tmp_path)):
        monkeypatch.setenv(f"UNMASKED_{name}", str(folder))
    return tmp_path / "reco"


def small(data: Path) -> list[str]:
    class World:
        root = data / "world"

    return [*tiny_words(World), "max_images=1", "n_iters=1", "iter_eval=1"]


def command_of(data: Path, script: str, *words: str) -> tuple[str, list[str]]:
    """Program and arguments that a script hands over."""
    path = f"{data / 'bin'}:{os.environ['PATH']}"
    command = ["bash", str(SCRIPTS[script]), *words]
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True)
    program, *arguments = done.stdout.splitlines()
    return Path(program).name, arguments


def run_script(data: Path, script: str, *words: str) -> int:
    """Let bash make the command of a script, and call it here."""
    program, arguments = command_of(data, script, *words)
    return {"train.py": train.main, "inference.py": inference.main}[program](arguments)


def references_for(data: Path, benchmark: str, path: Path) -> Path:
    settings = load_settings(ROOT / f"configs/reco/{benchmark}.yaml", small(data))
    return random_references(settings, path)


def make_weights(path: Path, num_classes: int) -> Path:
    """A file with deterministic weights under the published names, of the small backbone."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DeepLabV3Plus("mobilenet", num_classes).state_dict().items()}
    torch.save({name: torch.from_numpy(value) for name, value in fill.state_dict(shapes).items()}, path)
    return path


def test_every_script_is_tried_here() -> None:
    untrained = {f"{method}_{b}" for method in ("reco", "dense_clip") for b in BENCHMARKS}
    assert SCRIPTS.keys() == untrained | {f"reco_plus_{b}" for b in TRAINED} | {"custom"}
    for benchmark in BENCHMARKS:
        assert load_settings(ROOT / f"configs/reco/{benchmark}.yaml").method == "reco"
        assert load_settings(ROOT / f"configs/reco/dense_clip_{benchmark}.yaml").method == "dense_clip"
    for benchmark in TRAINED:
        assert load_settings(ROOT / f"configs/reco/plus_{benchmark}.yaml").method == "reco_plus"


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_reco_scores_labels_and_teaches(data: Path, runs: Path, benchmark: str) -> None:
    num_classes, side = BENCHMARKS[benchmark]
    references = references_for(data, benchmark, runs.parent / "r.safetensors")
    assert run_script(data, f"reco_{benchmark}", str(references), *small(data)) == 0
    (results,) = runs.glob(f"{benchmark}/val/evaluation_r/results.json")
    assert len(read_json(results)["class_iou"]) == len(read_json(results)["class_iou_crf"]) == num_classes
    first, given = [], []
    if benchmark == "cityscapes":  # all of the stages; elsewhere the references are given
        assert run_script(data, "reco_cityscapes", *small(data)) == 0
        assert (runs / "cityscapes/val/reco/clip_in_train_ce_ta_dc/k003/results.json").is_file()
    else:
        first, given = [str(references)], [f"reference_path={references}"]
    assert run_script(data, f"reco_{benchmark}", "train", *first, *small(data), "max_images=2") == 0
    assert (runs / benchmark / "category_to_p_images.json").is_file() == (not given)
    (folder,) = runs.glob(f"{benchmark}/train/reco/clip_in_train_ce_ta_dc/k003/dt_crf")
    pngs = [np.asarray(Image.open(path)) for path in folder.rglob("*.png")]
    assert len(pngs) == 2
    assert all(labels.max() < num_classes and labels.shape == (side or 49, side or 118) for labels in pngs)
    if benchmark in TRAINED:
        assert run_script(data, f"reco_plus_{benchmark}", *small(data), *given) == 0
        run = runs / benchmark / "val/reco_plus/deeplabv3plus_mobilenet"
        assert len(read_json(run / "results.json")["class_iou_crf"]) == num_classes
        assert run_script(data, f"reco_plus_{benchmark}", *small(data), f"dir_pseudo_masks={folder}", "name=given") == 0
        assert (runs / "given" / "final_model.pt").is_file()


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_dense_clip_alone_is_scored(data: Path, runs: Path, benchmark: str) -> None:
    num_classes, _ = BENCHMARKS[benchmark]
    assert run_script(data, f"dense_clip_{benchmark}", *small(data), "dir_train_dataset=nowhere") == 0
    (results,) = runs.rglob("results.json")
    assert results.parent == runs / benchmark / "val/dense_clip/clip"
    found = read_json(results)
    assert len(found["class_iou"]) == len(found["class_iou_crf"]) == num_classes
    assert found["protocol"]["extra"]["references"] == "none"
    assert not (runs / benchmark / "category_to_p_images.json").exists()


@pytest.mark.parametrize("name", ["r.pkl", "it's [mine] #1.pkl"])
def test_a_file_behind_train_is_what_labels_are_made_with(data: Path, tmp_path: Path, name: str) -> None:
    references = references_for(data, "cityscapes", tmp_path / "r.safetensors").rename(tmp_path / name)
    given = small(data)
    program, (flag, config, *words) = command_of(data, "reco_cityscapes", "train", str(references), *given)
    assert (program, flag) == ("train.py", "--config")
    settings = load_settings(config, words)
    assert settings.reference_path == references
    assert settings.split == "train"
    assert settings.max_images == 1
    program, arguments = command_of(data, "reco_cityscapes", "val", str(references), *given)
    assert (program, arguments[2:4]) == ("inference.py", ["--weights", str(references)])
    assert "split=val" in arguments
    program, arguments = command_of(data, "reco_cityscapes", "train", "reference_path=a.pkl")
    assert (program, arguments[2:]) == ("train.py", ["reference_path=a.pkl", "split=train"])


@pytest.mark.parametrize("benchmark", TRAINED)
def test_published_weights_are_scored(data: Path, runs: Path, benchmark: str) -> None:
    num_classes, _ = BENCHMARKS[benchmark]
    weights = make_weights(runs.parent / f"reco_plus_dlp_rn101_{benchmark}.pt", num_classes)
    assert run_script(data, f"reco_plus_{benchmark}", str(weights), *small(data)) == 0
    (results,) = runs.glob(f"{benchmark}/val/evaluation_{weights.stem}/results.json")
    assert "mean_iou_crf" in read_json(results)["scores"]


def test_own_pictures(data: Path, runs: Path) -> None:
    words = ["categories=[road, sky]", f"dir_train_dataset={data / 'world/stuff_index'}", "name=mine"]
    assert run_script(data, "custom", *words, *small(data)) == 0
    assert (runs.parent / "custom" / "mine" / "references.safetensors").is_file()


def test_a_script_from_its_folder_to_the_end(data: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    references = references_for(data, "cityscapes", tmp_path / "r.safetensors")
    command = ["bash", str(SCRIPTS["reco_cityscapes"]), "r.safetensors", *small(data)]
    done = subprocess.run(
        command, cwd=references.parent, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    for text in ("mean IoU", "mean IoU, CRF", "protocol", "dense CRF, 1 iterations", "27: road, sidewalk"):
        assert text in done.stderr + done.stdout
