"""Every script of NamedMask on the built-in world laid out as its benchmark: a few iterations, and given weights.

Most commands are called in this process, with what their script hands over; one of each kind goes through bash.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import train
from datasets.shapes.world import make_world
from networks.checkpoints import read_state_dict
from networks.deeplab import DeepLabV3Plus, deeplab_from_state_dict
from pseudo_labels.store import imagenet_mask_path, write_mask
from retrieval.convert import write_embedding_pickle
from retrieval.index import ArrayIndex
from systems.experts import expert_settings
from systems.stages import category_names, open_benchmark
from tests.parity import fill
from tests.systems.tiny_world import DIMENSIONS, make_tiny_world
from utils.config import load_settings
from utils.files import read_json

ROOT = Path(__file__).parents[2]
SCRIPTS = {path.stem: path for path in sorted((ROOT / "scripts" / "namedmask").glob("*.sh"))}
# Scripts of benchmarks: folder of their runs, number of classes in the world.
BENCHMARKS = {
    "voc_val_n500_cp2_sr10100": ("voc2012", 21),
    "coco2017_val_n500_cp2_sr10100": ("coco2017", 15),  # the world's own 14 names
    "coca_n500_cp2_sr10100": ("coca", 81),
    "cityscapes_val_n500_cp2_sr10100": ("cityscapes_object", 15),
    "imagenet_s50_n500_cp2_sr10100": ("imagenet-s50", 51),
    "imagenet_s300_n500_cp2_sr10100": ("imagenet-s300", 301),
    "imagenet_s919_n500_cp2_sr10100": ("imagenet-s919", 920),
}
# Where the masks of `_ex` come from: experts trained for clusters, given experts, or an archive of masks (of the name).
WITH_EXPERTS = {
    "voc_val_n500_cp2_sr10100": "clusters",
    "coco2017_val_n500_cp2_sr10100": "weights",
    "coca_n500_cp2_sr10100": "coca",
    "cityscapes_val_n500_cp2_sr10100": "clusters",
    "imagenet_s50_n500_cp2_sr10100": "imagenet_s50",
    "imagenet_s300_n500_cp2_sr10100": "imagenet_s300",
    "imagenet_s919_n500_cp2_sr10100": "imagenet_s919",
}
# Scripts of experts: folder of the experts.
EXPERTS = {
    "experts_voc_category": "voc2012_category",
    "experts_coco2017_category": "coco2017_category",
    "experts_coca_category": "coca_category",
    "experts_cityscapes_category": "cityscapes_object_category",
    "experts_imagenet_s50_category": "imagenet-s50_category",
    "experts_imagenet_s300_category": "imagenet-s300_category",
    "experts_imagenet_s919_category": "imagenet-s919_category",
}
OTHERS = {"selfmask", "custom"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world under the names of `configs/paths.yaml`, with embeddings where downloads go (`cache`)."""
    root = tmp_path_factory.mktemp("data")
    world = make_tiny_world(root / "world")
    small = {"image_size": 48, "num_workers": 0}
    make_world(world.root, num_cityscapes=2, num_coca=2, **small)
    for number in (50, 300, 919):
        make_world(world.root, num_imagenet_s=2, imagenet_s_categories=number, **small)
    for name, folder in (
        *(("ImageNet2012", world.imagenet_dir), ("VOC2012", world.voc_dir), ("coco", world.coco_dir)),
        *(("coca", world.coca_dir), ("cityscapes", world.cityscapes_dir), ("imagenet-s", world.imagenet_s_dir)),
    ):
        (root / name).symlink_to(folder)
    names = sorted(path.name for path in world.imagenet_dir.rglob("*.JPEG"))
    embeddings = np.random.default_rng(0).standard_normal((len(names), DIMENSIONS.embed_dim)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    index = ArrayIndex(embeddings, names, image_dir=root / "ImageNet2012" / "train", layout="imagenet")
    pickle = root / "cache/zutis/imagenet2012/filename_to_ViT_L_14_336px_train_img_embedding.pkl"
    pickle.parent.mkdir(parents=True)
    write_embedding_pickle(index, pickle)
    return root


@pytest.fixture(autouse=True)
def runs(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of all runs of a test; the environment says where everything is, so that no script needs a path."""
    for name, folder in (("DATA", data), ("CACHE", data / "cache"), ("RUNS", tmp_path)):
        monkeypatch.setenv(f"UNMASKED_{name}", str(folder))
    return tmp_path / "namedmask"


def small(data: Path) -> list[str]:
    """Words that make a recipe small and offline."""
    loader = "{batch_size: 2, num_workers: 0}"
    return [
        *("device=cpu", "segmenter_name=deeplabv3plus_mobilenet", "backbone_weights=null", "train_image_size=33"),
        *(f"retrieval_clip={data / 'world/clip.pt'}", "prompts=['a photo of a {}.']", "n_images=2", "n_iters=2"),
        *(f"selfmask_weights={data / 'world/selfmask.pt'}", "selfmask_shorter_side=48", "saliency.num_workers=0"),
        *("embedding.num_workers=0", "iter_log=1", f"train_dataloader_kwargs={loader}", "max_images=1"),
        *("val_dataloader_kwargs={num_workers: 0}", "experts.at_once=1", "experts.masks={num_workers: 0}"),
    ]


def config_of(script: str) -> Path:
    """The config that a script hands to `run.sh`."""
    (name,) = re.findall(r'run\.sh" (?:--experts )?(configs/namedmask/\w+\.yaml) "\$@"\n', SCRIPTS[script].read_text())
    return ROOT / name


def make_weights(path: Path, num_classes: int, backbone: str = "mobilenet") -> Path:
    """A file with deterministic weights under the published names."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DeepLabV3Plus(backbone, num_classes).state_dict().items()}
    torch.save({name: torch.from_numpy(value) for name, value in fill.state_dict(shapes).items()}, path)
    return path


def run_bash(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(SCRIPTS[script]), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_every_script_is_covered() -> None:
    assert set(SCRIPTS) == {*BENCHMARKS, *(f"{name}_ex" for name in WITH_EXPERTS), *EXPERTS, *OTHERS}
    assert all(os.access(path, os.X_OK) and config_of(name).is_file() for name, path in SCRIPTS.items())
    assert set(WITH_EXPERTS) == set(BENCHMARKS)


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs/namedmask").glob("*_n500_cp2*.yaml")))
def test_configurations_hold_the_published_recipe(name: str) -> None:
    s = load_settings(ROOT / "configs" / "namedmask" / f"{name}.yaml")
    assert (s.segmenter, s.backbone_weights, s.num_images, s.max_objects) == ("deeplabv3plus_resnet50", "dino", 500, 2)
    assert (s.train_loader.batch_size, s.num_iterations, s.eval_interval, s.log_interval) == (16, 20000, 1000, 100)
    assert (s.optimiser.head_lr, s.optimiser.backbone_lr, s.optimiser.weight_decay) == (5e-4, 5e-5, 2e-4)
    assert (s.train_image_size, s.scale_range, s.val_loader.batch_size, s.precision) == (384, (0.1, 1.0), 1, "fp32")
    assert (s.experts.num_iterations, s.experts.train_loader.batch_size) == (5000, 8)
    assert s.use_expert_masks == name.endswith("_ex")
    assert s.ignore_index == (1000 if s.dataset_name == "imagenet-s" else 255)
    plain = load_settings(ROOT / "configs" / "namedmask" / f"{name.removesuffix('_ex')}.yaml")
    assert s.model_copy(update={"use_expert_masks": False}) == plain


@pytest.mark.parametrize("script", EXPERTS)
def test_configurations_of_experts_hold_the_published_recipe(script: str) -> None:
    s = expert_settings(load_settings(config_of(script)))
    assert (s.train_loader.batch_size, s.num_iterations, s.eval_interval, s.max_objects) == (8, 5000, 1000, 1)
    assert (s.train_image_size, s.ignore_index, s.use_expert_masks) == (384, 255, False)
    assert s.evaluates_in_training == (s.dataset_name == "voc2012_category")
    assert s.split == ("train" if s.dataset_name == "voc2012_category" else "val")


# ---- benchmarks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def no_report(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the report, half of the time of so short a run, but for one script."""
    if "imagenet_s919" not in request.node.name:
        monkeypatch.setattr("systems.run_report.write_training_report", lambda run, *_, **__: run.report_path.touch())


def check_run(run: Path, num_classes: int) -> None:
    """Trained, scored and reported."""
    network = deeplab_from_state_dict(read_state_dict(run / "final_model.pt"))
    assert network.num_classes == num_classes
    results = read_json(run / "results.json")
    assert results["protocol"]["num_images"] == 1
    assert len(results["protocol"]["category_names"]) == num_classes
    assert (run / "report.html").is_file()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("script", BENCHMARKS)
def test_benchmarks_with_selfmasks_masks(script: str, data: Path, runs: Path) -> None:
    folder, num_classes = BENCHMARKS[script]
    assert train.main(["--config", str(config_of(script)), *small(data)]) == 0
    check_run(runs / folder / "val" / "deeplabv3plus_mobilenet_n2_cp2_sr10100_s0", num_classes)
    assert any((data / "ImageNet2012/train_pseudo_masks_selfmask").rglob("*.json"))


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("script", WITH_EXPERTS)
def test_benchmarks_with_experts_masks(script: str, data: Path, runs: Path, tmp_path: Path) -> None:
    (folder, num_classes), origin = BENCHMARKS[script], WITH_EXPERTS[script]
    config, words = str(config_of(f"{script}_ex")), ["experts.n_iters=1"]
    if origin == "clusters":
        words += ["experts.n_clusters=2", "experts.train_dataloader_kwargs={batch_size: 2, num_workers: 0}"]
    elif origin == "weights":
        names = category_names(load_settings(config))[1:]
        weights = make_weights(tmp_path / f"expert_{names[0]}.pt", 2)
        for name in names[1:]:
            os.link(weights, tmp_path / f"expert_{name}.pt")
        words.append(f"experts.dir_weights={tmp_path}")
    else:  # an archive of masks, unzipped
        _write_masks(data, origin)
    assert train.main(["--config", config, *small(data), *words]) == 0
    check_run(runs / folder / "val" / "deeplabv3plus_mobilenet_n2_cp2_sr10100_ex_s0", num_classes)
    experts = list(runs.glob(f"{folder}_category/train/kmeans/n_experts_2/*_cid*_s0/final_model.pt"))
    assert len(experts) == (2 if origin == "clusters" else 0)
    makers = f"{folder.replace('-', '_')}{'_n_experts_2' if origin == 'clusters' else ''}"
    masks = data / "ImageNet2012" / "train_pseudo_masks_experts" / makers
    assert any(masks.rglob("*.json"))


def _write_masks(data: Path, benchmark: str) -> None:
    """One mask for every picture, as the published archives have them."""
    for path in (data / "ImageNet2012" / "train").rglob("*.JPEG"):
        with Image.open(path) as picture:
            mask = np.zeros(picture.size[::-1], np.uint8)
        mask[10:30, 10:30] = 1
        write_mask(imagenet_mask_path(path, maker=f"experts/{benchmark}"), mask)


@pytest.mark.parametrize("script", [f"{name}{ex}" for name in BENCHMARKS for ex in ("", "_ex")])
def test_benchmarks_with_given_weights(script: str, data: Path, runs: Path, tmp_path: Path) -> None:
    """Nothing but the benchmark is read."""
    folder, num_classes = BENCHMARKS[script.removesuffix("_ex")]
    weights = make_weights(tmp_path / "published.pt", num_classes)
    words = ["dir_train_dataset=/none", "device=cpu", "val_dataloader_kwargs={num_workers: 0}"]
    assert inference.main(["--config", str(config_of(script)), "--weights", str(weights), *words]) == 0
    assert [path.name for path in runs.iterdir()] == [folder]
    results = read_json(runs / folder / "val" / "evaluation_published" / "results.json")
    assert len(results["protocol"]["category_names"]) == num_classes
    assert 0 <= results["scores"]["mean_iou"] <= 1
    assert results["protocol"]["extra"]["segmenter"] == "deeplabv3plus_mobilenet"


def test_a_published_file_through_bash(data: Path, runs: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "namedmask_voc2012.pt", 21, "resnet50")
    assert len(torch.load(weights, weights_only=True)) == 372
    words = ["val_dataloader_kwargs={num_workers: 0}", "device=cpu"]
    done = run_bash("voc_val_n500_cp2_sr10100_ex", str(weights), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("mean IoU", "pixel accuracy", "21: background, aeroplane", "deeplabv3plus_resnet50"):
        assert text in done.stderr + done.stdout
    assert (runs / "voc2012/val/evaluation_namedmask_voc2012/results.json").is_file()


def test_weights_of_another_benchmark_stop_the_command(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    weights = make_weights(tmp_path / "namedmask_coca.pt", 81)
    config = config_of("voc_val_n500_cp2_sr10100")
    assert inference.main(["--config", str(config), "--weights", str(weights)]) == 2
    told = capfd.readouterr().err
    assert "these weights have 81 classes, the benchmark asks for 21. Use the script or config of the benchmark" in told
    assert "Traceback" not in told


# ---- experts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", EXPERTS)
def test_experts_of_named_categories(script: str, data: Path, runs: Path, tmp_path: Path) -> None:
    """Two are trained, write their masks, and are found again; `n_iters` and the loader are those of the experts."""
    settings = load_settings(config_of(script))
    names = category_names(settings)
    chosen = f"single_category=['{names[1]}', '{names[-1]}']"
    words = [*small(data), "n_iters=1", chosen, f"experts.dir_masks={tmp_path / 'masks'}"]
    assert train.main(["--config", str(config_of(script)), *words]) == 0
    folders = [path for path in (runs / EXPERTS[script] / "train").iterdir() if (path / "final_model.pt").is_file()]
    assert len(folders) == 2
    network = deeplab_from_state_dict(read_state_dict(folders[0] / "final_model.pt"))
    assert network.num_classes == 2
    assert len(list((tmp_path / "masks").rglob("*.json"))) == 4  # two pictures each
    if script != "experts_voc_category":
        assert not list(runs.rglob("results.json"))  # only VOC's experts are scored while they are trained


@pytest.mark.parametrize("script", EXPERTS)
def test_experts_with_given_weights(script: str, data: Path, runs: Path, tmp_path: Path) -> None:
    weights = make_weights(tmp_path / "expert.pt", 2)
    name = _shown_category(config_of(script))
    words = ["device=cpu", "val_dataloader_kwargs={num_workers: 0}", f"single_category=['{name}']"]
    assert inference.main(["--config", str(config_of(script)), "--weights", str(weights), *words]) == 0
    (results,) = (runs / EXPERTS[script]).rglob("results.json")
    assert read_json(results)["protocol"]["category_names"] == ["background", name]
    assert 0 <= read_json(results)["scores"]["iou"] <= 1


def _shown_category(config: Path) -> str:
    """A category that the first picture of the benchmark shows."""
    settings = load_settings(config)
    whole = settings.model_copy(update={"dataset_name": settings.base_dataset})
    item = next(iter(open_benchmark(whole, category_names(settings), with_instances=False)))
    names = category_names(settings)
    return next(names[label] for label in np.unique(item.label) if 0 < label < len(names))


def test_experts_through_bash(data: Path, runs: Path, tmp_path: Path) -> None:
    """Names of several words, quotes for YAML, and a category that no picture of the split shows."""
    words = [*small(data), "n_iters=1"]
    done = run_bash("experts_voc_category", "dining table", "tv/monitor", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    experts = runs / "voc2012_category" / "train"
    for name in ("dining_table", "tv_monitor"):
        assert (experts / f"deeplabv3plus_mobilenet_n2_sr10100_{name}_s0" / "final_model.pt").is_file()
    assert "voc2012 train: no picture shows 'tv/monitor'. The expert is trained without scores." in done.stderr


def test_weights_are_told_from_names_of_categories(tmp_path: Path) -> None:
    """The problems that are told show which command was run."""
    done = run_bash("experts_voc_category", "expert_cat.pt", "dir_val_dataset=none", cwd=tmp_path)
    assert done.returncode == 2
    assert "expert_cat.pt does not exist; expected a run folder or weight file" in done.stderr
    assert "single_category: received None, expected the one category that the expert was trained for" in done.stderr


# ---- SelfMask's masks, and your own names ---------------------------------------------------------------------------


def test_selfmasks_masks_alone(data: Path, runs: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    words = [*small(data), f"dir_pseudo_masks={masks}", "dataset_name=coca"]
    assert train.main(["--config", str(config_of("selfmask")), *words]) == 0
    archive = read_json(data / "archives/namedmask/coca_category_to_p_images_n500.json")
    assert len(archive) == 80
    assert len(list(masks.rglob("*.json"))) == len({path for paths in archive.values() for path in paths})
    assert not list(runs.rglob("*.pt"))


def test_your_own_names(data: Path, tmp_path: Path) -> None:
    words = [*small(data), "categories=[fish, house]", f"dir_train_dataset={data / 'world/pass/images'}", "name=mine"]
    assert train.main(["--config", str(config_of("custom")), *words, f"dir_pseudo_masks={tmp_path / 'masks'}"]) == 0
    assert (tmp_path / "custom" / "mine" / "report.html").is_file()
