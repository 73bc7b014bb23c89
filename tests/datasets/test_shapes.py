"""The built-in world: same seed same bytes, truth that fits the pictures, cues that overlap, layouts that read."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.build import build_benchmark
from datasets.shapes import CATEGORY_NAMES, World, make_scene, make_world, read_truth
from datasets.shapes.captions import mentioned_categories, write_caption
from datasets.shapes.categories import CATEGORIES, COLOURS
from datasets.shapes.layouts import RAW_CATEGORY_IDS
from datasets.shapes.scenes import SCENE_KINDS, Thing
from datasets.shapes.textures import TEXTURE_NAMES, paint_texture
from utils.errors import DataError

ROOT = Path(__file__).parents[2]
PARTS = {
    "num_imagenet": 12,
    "num_pass": 5,
    "num_val": 9,
    "num_voc": 6,
    "num_cityscapes": 5,
    "num_coca": 14,
    "num_imagenet_s": 14,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small world with every layout but the shards."""
    return make_world(tmp_path_factory.mktemp("world"), **PARTS, image_size=64, seed=3, num_workers=0)


def _bytes(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def test_at_least_twelve_categories_of_one_word():
    assert len(CATEGORY_NAMES) >= 12
    assert len(set(CATEGORY_NAMES)) == len(CATEGORY_NAMES)
    assert all(name.isalpha() for name in CATEGORY_NAMES)


@pytest.mark.parametrize("kind", list(SCENE_KINDS))
def test_same_arguments_give_the_same_scene_and_others_do_not(kind: str):
    first, again, other = make_scene(kind, 5), make_scene(kind, 5), make_scene(kind, 5, seed=1)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.instances, again.instances)
    assert first.things == again.things
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_truth_lists_exactly_the_things_that_are_visible():
    for index in range(60):
        scene = make_scene("scene", index)
        assert scene.image.dtype == np.uint8
        assert scene.image.shape == (*scene.instances.shape, 3)
        assert min(scene.instances.shape) == 128
        numbers, pixels = np.unique(scene.instances, return_counts=True)
        assert set(numbers) - {0} == set(range(1, len(scene.things) + 1))
        assert pixels[numbers > 0].min(initial=1000) >= 24


def test_benchmark_pictures_hold_one_to_six_things_of_many_sizes():
    scenes = [make_scene("scene", index) for index in range(150)]
    counts = collections.Counter(len(scene.things) for scene in scenes)
    assert set(counts) <= set(range(7))
    assert len(counts) >= 5
    sizes = [thing.size for scene in scenes for thing in scene.things]
    assert min(sizes) >= 0.08
    assert max(sizes) <= 0.7
    assert np.mean(np.array(sizes) < 0.2) > 0.15
    assert np.mean(np.array(sizes) > 0.4) > 0.15


def test_some_index_pictures_show_nothing_that_has_a_name():
    empty = np.mean([not make_scene("web", index).things for index in range(200)])
    assert 0.03 < empty < 0.25


def test_things_differ_from_what_is_around_them():
    """The mask is where the picture changes: inside and a ring around it have other colours, mostly."""
    distinct = []
    for index in range(80):
        scene = make_scene("single", index)
        inside = scene.instances == 1
        wide = cv2.dilate(inside.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
        near = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        ring = wide & ~near
        image = scene.image.astype(np.float32)
        outside = image[ring].mean(axis=0)
        distinct.append(np.abs(image[inside] - outside).max(axis=1).mean() > 2 * image[ring].std(axis=0).mean())
    assert np.mean(distinct) > 0.85


def test_backgrounds_are_never_flat():
    for index in range(40):
        scene = make_scene("web", index)
        ground = cv2.blur(scene.image, (3, 3))[scene.instances == 0]
        assert ground.astype(np.float32).std(axis=0).max() > 4


def _guess_rate(seen: list[tuple[str, ...]], names: list[int]) -> float:
    """Accuracy of the best guess from a cue: fitted on even, judged on odd examples."""
    table: dict[tuple[str, ...], collections.Counter] = collections.defaultdict(collections.Counter)
    for cue, name in zip(seen[::2], names[::2], strict=True):
        table[cue][name] += 1
    guesses = [table[cue].most_common(1)[0][0] if cue in table else -1 for cue in seen[1::2]]
    return float(np.mean(np.array(guesses) == np.array(names[1::2])))


def test_no_single_cue_decides_but_cues_help():
    things = [thing for index in range(1200) for thing in make_scene("single", index, image_size=32).things]
    things = things[: len(things) // 2 * 2]
    names = [thing.category for thing in things]
    colour = _guess_rate([(thing.colour,) for thing in things], names)
    texture = _guess_rate([(thing.texture,) for thing in things], names)
    both = _guess_rate([(thing.colour, thing.texture) for thing in things], names)
    assert 0.2 < colour < 0.5
    assert 0.2 < texture < 0.5
    assert max(colour, texture) < both < 0.9


def test_every_colour_and_texture_is_shared_by_kinds():
    colours = collections.Counter(colour for category in CATEGORIES for colour in category.colours)
    textures = collections.Counter(texture for category in CATEGORIES for texture in category.textures)
    assert set(colours) == set(COLOURS)
    assert set(textures) <= set(TEXTURE_NAMES)
    assert min(colours.values()) >= 2
    assert sum(count >= 2 for count in textures.values()) >= len(textures) - 1
    for category in CATEGORIES:
        for weights in (category.colours, category.second_colours, category.textures):
            assert sum(weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("name", TEXTURE_NAMES)
def test_textures_stay_in_range(name: str):
    v, u = np.mgrid[-1:1:40j, -1:1:40j].astype(np.float32)
    field = paint_texture(name, u, v, np.random.default_rng(0))
    assert field.shape == u.shape
    assert field.min() >= 0
    assert field.max() <= 1
    assert name == "plain" or field.std() > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_scene("forest", 0), "unknown kind of scene 'forest': choose one of web, scene, single, caption"),
        (lambda: make_scene("web", 0, image_size=16), "image_size must be at least 32, received 16"),
        (
            lambda: paint_texture("fur", np.zeros((2, 2)), np.zeros((2, 2)), np.random.default_rng(0)),
            "unknown texture 'fur'",
        ),
    ],
)
def test_wrong_arguments_are_told(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_captions_name_what_is_there_and_nothing_else():
    rng = np.random.default_rng(0)
    for index in range(150):
        scene = make_scene("caption", index, image_size=48)
        shown = {CATEGORY_NAMES[thing.category] for thing in scene.things}
        for _ in range(4):
            caption = write_caption(scene.things, rng)
            named = mentioned_categories(caption)
            assert named <= shown
            assert bool(named) == bool(shown)
            if not shown:
                assert "background" in caption


def test_captions_hold_bare_names_and_vary():
    things = (Thing(0, "red", "plain", 0.6),)
    captions = {write_caption(things, np.random.default_rng(seed)) for seed in range(400)}
    assert CATEGORY_NAMES[0] in captions
    assert len(captions) > 60


def test_index_datasets_tell_nothing_by_their_paths(world: World):
    pictures = sorted(world.imagenet_dir.glob("train/*/*.JPEG"))
    assert len(pictures) == PARTS["num_imagenet"]
    assert all(path.name.startswith(path.parent.name + "_") for path in pictures)
    hashes = sorted((world.pass_dir / "images").glob("*.jpg"))
    assert len(hashes) == PARTS["num_pass"]
    for path in [*pictures, *hashes]:
        assert not mentioned_categories(str(path.relative_to(world.root)).replace("/", " "))
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            assert min(picture.size) == 64


def test_truth_of_the_index_lies_outside_and_fits(world: World):
    truth = read_truth(world, "ImageNet2012")
    assert set(truth) == {path.name for path in world.imagenet_dir.glob("train/*/*.JPEG")}
    for index in range(PARTS["num_imagenet"]):
        scene = make_scene("web", index, image_size=64, seed=3)
        name = next(name for name in truth if name.endswith(f"_{index}.JPEG"))
        assert [thing["category"] for thing in truth[name]] == [CATEGORY_NAMES[t.category] for t in scene.things]
        for number, thing in enumerate(truth[name], start=1):
            mask = coco_mask.decode({"size": thing["size"], "counts": thing["counts"].encode()})
            np.testing.assert_array_equal(mask > 0, scene.instances == number)


def test_coco_layout_reads_with_pycocotools_and_agrees_with_its_label_maps(world: World):
    coco = COCO(world.coco_dir / "annotations" / "instances_val2017.json")
    assert coco.getCatIds() == list(RAW_CATEGORY_IDS)
    assert max(RAW_CATEGORY_IDS) > len(RAW_CATEGORY_IDS)
    assert len(coco.imgs) == PARTS["num_val"]
    train_ids = {raw: 1 + row for row, raw in enumerate(RAW_CATEGORY_IDS)}
    for image_id, record in coco.imgs.items():
        stem = Path(record["file_name"]).stem
        picture = np.asarray(Image.open(world.coco_dir / "val2017" / record["file_name"]))
        label = np.asarray(Image.open(world.coco_dir / "annotations" / "semantic_segmentation_masks" / f"{stem}.png"))
        assert picture.shape[:2] == label.shape == (record["height"], record["width"])
        made = np.zeros_like(label)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image_id)):
            mask = coco.annToMask(annotation) > 0
            assert annotation["area"] == mask.sum()
            made[mask] = train_ids[annotation["category_id"]]
        np.testing.assert_array_equal(made, label)


def test_voc_layout_has_palette_labels_with_outlines(world: World):
    lists = {
        split: (world.voc_dir / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()
        for split in ("train", "val", "trainval")
    }
    assert [len(names) for names in lists.values()] == [2, 4, 6]
    assert sorted(lists["train"] + lists["val"]) == lists["trainval"]
    for stem in lists["trainval"]:
        label = Image.open(world.voc_dir / "SegmentationClass" / f"{stem}.png")
        assert label.mode == "P"
        assert label.getpalette()[3:6] == [128, 0, 0]
        values = set(np.unique(np.asarray(label)))
        assert 255 in values
        assert values <= {*range(len(CATEGORY_NAMES) + 1), 255}
        assert (world.voc_dir / "JPEGImages" / f"{stem}.jpg").exists()


def test_layouts_are_read_as_their_benchmarks(world: World):
    folders = {
        "voc2012": (world.voc_dir, 4),
        "cityscapes_object": (world.cityscapes_dir, 5),
        "coca": (world.coca_dir, 14),
        "coco2017": (world.coco_dir, 9),
    }
    for name, (folder, num_pictures) in folders.items():
        benchmark = build_benchmark(name, folder, with_instances=False)
        assert len(benchmark) == num_pictures
        seen = {int(label) for item in benchmark for label in np.unique(item.label)}
        assert seen - {255} <= set(range(15))
        assert len(seen) > 3
        assert (255 in seen) == (name == "voc2012")


def test_cityscapes_layout_holds_raw_ids(world: World):
    truth = make_scene("scene", 2_000_003, image_size=64, seed=3).category_map.astype(int)
    truth[[0, -1]], truth[:, [0, -1]] = 0, 0
    (item,) = [
        item for item in build_benchmark("cityscapes_object", world.cityscapes_dir) if "_000003_" in item.path.name
    ]
    np.testing.assert_array_equal(item.label, truth)
    raw = np.asarray(Image.open(next(world.cityscapes_dir.glob("gtFine/val/*/*_000003_*"))))
    assert {3, 22} < set(np.unique(raw).tolist()) <= {3, 22, *range(17, 21), *range(24, 34)}


def test_single_class_layouts_use_the_benchmarks_folders(world: World):
    labels = build_benchmark("coca", world.coca_dir)
    assert {item.path.parent.name for item in labels} == set(labels.category_names[1 : len(CATEGORY_NAMES) + 1])
    benchmark = build_benchmark("imagenet-s", world.imagenet_s_dir, num_categories=50)
    for number, item in enumerate(benchmark, start=1):
        assert benchmark.table.folders[item.path.parent.name] == number
        assert {number, 1000} <= set(np.unique(item.label).tolist())


def test_imagenet_s_of_another_size(tmp_path: Path):
    made = make_world(tmp_path, num_imagenet_s=3, imagenet_s_categories=919, image_size=32, num_workers=0)
    assert len(build_benchmark("imagenet-s", made.imagenet_s_dir, num_categories=919)) == 3


def test_shards_hold_pairs_of_picture_and_caption(tmp_path: Path):
    made = make_world(tmp_path, num_caption_shards=1, image_size=32, num_workers=0)
    with tarfile.open(made.captions_dir / "00000.tar") as archive:
        names = archive.getnames()
        assert len(names) == 1000
        assert [name.split(".")[1] for name in names[:4]] == ["jpg", "txt", "jpg", "txt"]
        pixels = np.frombuffer(archive.extractfile(names[0]).read(), np.uint8)
        assert cv2.imdecode(pixels, cv2.IMREAD_COLOR).shape == (32, 32, 3)
        assert archive.extractfile(names[1]).read().decode().strip()


def test_a_complete_world_is_left_alone_and_lost_files_come_back(world: World):
    before = _bytes(world.root)
    times = {path: path.stat().st_mtime_ns for path in world.imagenet_dir.rglob("*.JPEG")}
    make_world(world.root, **PARTS, image_size=64, seed=3, num_workers=0)
    assert times == {path: path.stat().st_mtime_ns for path in world.imagenet_dir.rglob("*.JPEG")}
    next(world.pass_dir.rglob("*.jpg")).unlink()
    make_world(world.root, **PARTS, image_size=64, seed=3, num_workers=0)
    assert _bytes(world.root) == before


def test_another_world_is_not_written_over(world: World):
    with pytest.raises(DataError, match=r"holds another shapes world: expected .* Choose another folder, or delete"):
        make_world(world.root, num_pass=1, image_size=96, seed=3, num_workers=0)


def test_killed_writing_goes_on_to_the_same_bytes(tmp_path: Path):
    counts = ["--num-imagenet", "500", "--num-pass", "0", "--num-val", "40", "--num-workers", "0"]
    command = [sys.executable, "-m", "datasets.shapes", str(tmp_path / "cut"), *counts, "--image-size", "32"]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cut/.parts/*/*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "truth" / "ImageNet2012.json").exists()
    settings = {"num_imagenet": 500, "num_val": 40, "image_size": 32, "num_workers": 0}
    whole, cut = make_world(tmp_path / "whole", **settings), make_world(tmp_path / "cut", **settings)
    cut_bytes = {name: content for name, content in _bytes(cut.root).items() if not name.endswith(".partial")}
    assert cut_bytes == _bytes(whole.root)


def test_the_number_of_processes_changes_nothing(tmp_path: Path):
    alone = make_world(tmp_path / "alone", num_pass=300, image_size=32, num_workers=0)
    shared = make_world(tmp_path / "shared", num_pass=300, image_size=32, num_workers=2)
    assert _bytes(alone.root) == _bytes(shared.root)


def test_command_reports_a_wrong_folder_without_a_traceback(tmp_path: Path):
    make_world(tmp_path, image_size=32, num_workers=0)
    command = [sys.executable, "-m", "datasets.shapes", str(tmp_path), "--image-size", "64"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "holds another shapes world" in result.stderr
    assert "Traceback" not in result.stderr


def test_world_file_names_the_categories(world: World):
    assert json.loads((world.root / "world.json").read_text())["categories"] == list(CATEGORY_NAMES)
