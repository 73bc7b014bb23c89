"""The stuff variant of the built-in world: same seed same bytes, a name for every pixel, layouts that are read."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.build import build_benchmark
from datasets.central_square import sample_square
from datasets.coco import annotated_names
from datasets.metadata import category_table
from datasets.shapes import STUFF_CATEGORY_NAMES, World, make_stuff_scene, make_world, read_truth
from datasets.shapes.captions import mentioned_categories, write_stuff_caption
from datasets.shapes.render import finish
from datasets.shapes.stuff_scenes import HOMES, STUFF_KINDS, VOID
from datasets.shapes.surfaces import SURFACE_NAMES, SURFACES, paint_surface

PARTS = {
    "num_stuff_index": 30,
    "num_stuff_val": 6,
    "num_stuff_train": 4,
    "num_cityscapes_stuff": 4,
    "num_kitti": 20,
    "num_coco_stuff": 4,
    "num_pascal_context": 4,
}
NAMES = ["background", *STUFF_CATEGORY_NAMES]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A small world with every layout of stuff."""
    return make_world(tmp_path_factory.mktemp("stuff"), **PARTS, image_size=64, seed=3, num_workers=0)


def _scene(index: int, **options) -> np.ndarray:
    """Labels of a benchmark picture of the world above, -1 for void."""
    labels = make_stuff_scene("stuff_scene", index, image_size=64, seed=3, **options).labels.astype(int)
    return np.where(labels == VOID, -1, labels)


@pytest.mark.parametrize("kind", list(STUFF_KINDS))
def test_same_arguments_give_the_same_scene_and_others_do_not(kind: str):
    first, again, other = (make_stuff_scene(kind, 5, image_size=96, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.labels, again.labels)
    np.testing.assert_array_equal(first.instances, again.instances)
    assert first.things == again.things
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_every_pixel_has_a_category_but_those_of_unnamed_things():
    is_void = []
    for index in range(80):
        scene = make_stuff_scene("stuff_scene", index, image_size=96)
        assert scene.image.shape == (*scene.labels.shape, 3)
        assert min(scene.labels.shape) == 96
        assert set(np.unique(scene.labels)) <= {*range(len(STUFF_CATEGORY_NAMES)), VOID}
        is_void.append((scene.labels == VOID).mean())
        assert sum(scene.shares.values()) == pytest.approx(1 - is_void[-1])
        for number, thing in enumerate(scene.things, start=1):
            (label,) = np.unique(scene.labels[scene.instances == number])
            assert STUFF_CATEGORY_NAMES[label] == list(HOMES)[label - len(SURFACE_NAMES)]
            assert thing.size <= STUFF_KINDS["stuff_scene"].sizes[1]
        on_ground = scene.labels[scene.instances == 0]
        assert set(on_ground) <= {*range(len(SURFACE_NAMES)), VOID}
    assert 0 < np.mean(is_void) < 0.02
    assert max(is_void) < 0.1


@pytest.mark.parametrize("kind", list(STUFF_KINDS))
def test_all_categories_occur_often(kind: str):
    shown = [make_stuff_scene(kind, index, image_size=48).shares for index in range(300)]
    for name in STUFF_CATEGORY_NAMES:
        assert 0.03 < np.mean([name in shares for shares in shown]) < 0.7
    counts = [sum(name in SURFACE_NAMES for name in shares) for shares in shown]
    assert {1, 2, 3} <= set(counts)


def test_things_are_mostly_where_they_belong():
    at_home = []
    for index in range(150):
        scene = make_stuff_scene("stuff_scene", index, image_size=64)
        for number, thing in enumerate(scene.things, start=1):
            name = STUFF_CATEGORY_NAMES[scene.labels[scene.instances == number][0]]
            assert thing.category >= 0
            homes = [SURFACE_NAMES.index(home) for home in HOMES[name]]
            if np.isin(scene.labels, homes).any():
                cover = (scene.instances == number).astype(np.uint8)
                ring = (cv2.dilate(cover, np.ones((5, 5), np.uint8)) > 0) & (scene.instances == 0)
                at_home.append(np.isin(scene.labels[ring], homes).mean() > 0.5)
    assert 0.5 < np.mean(at_home) < 0.95


def test_grounds_are_regions_rather_than_crumbs():
    for index in range(60):
        scene = make_stuff_scene("stuff_scene", index, image_size=96)
        ground = np.where(scene.instances > 0, VOID, scene.labels).astype(np.uint8)
        for row in np.unique(ground[ground != VOID]):
            number, _, stats, _ = cv2.connectedComponentsWithStats((ground == row).astype(np.uint8))
            areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
            assert number - 1 <= 12
            assert areas[-1] >= 0.3 * areas.sum()


def _nearest_rate(features: np.ndarray, names: np.ndarray) -> float:
    """How often the nearest other example, by standardised features, has the same name."""
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    distances = np.linalg.norm(features[:, None] - features[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float((names[distances.argmin(axis=1)] == names).mean())


def test_structure_tells_grounds_apart_better_than_colour_or_brightness():
    colours, structures, names = [], [], []
    for seed in range(40):
        for row, surface in enumerate(SURFACES):
            rng = np.random.default_rng([seed, row])
            picture = finish(paint_surface(surface, (96, 96), 0.0, rng), rng)[32:].astype(np.float32)
            colours.append(picture.mean(axis=(0, 1)))
            grey = cv2.GaussianBlur(picture.mean(axis=2) / picture.mean(), (0, 0), 1)
            steps = [np.abs(np.diff(grey[:, ::step], axis=1)).mean() for step in (1, 4)]
            steps += [np.abs(np.diff(grey[::step], axis=0)).mean() for step in (1, 4)]
            structures.append(np.log(steps))
            names.append(row)
    colour = _nearest_rate(np.array(colours), np.array(names))
    structure = _nearest_rate(np.array(structures), np.array(names))
    assert 0.2 < colour < 0.7
    print(colour, structure)
    assert structure > max(0.7, colour)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_stuff_scene("web", 0), "unknown kind of scene 'web': choose one of stuff_web, stuff_scene"),
        (lambda: make_stuff_scene("stuff_web", 0, image_size=16), "image_size must be at least 32, received 16"),
    ],
)
def test_wrong_arguments_are_told(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_unknown_part_is_told_before_anything_is_written(tmp_path: Path):
    with pytest.raises(TypeError, match=r"knows no part 'num_stuf': choose from num_imagenet, .*num_stuff_index"):
        make_world(tmp_path / "world", num_stuf=3)
    assert not (tmp_path / "world").exists()


def test_captions_name_what_is_there_one_by_one_or_all_together():
    rng, bare, is_complete = np.random.default_rng(0), set(), []
    for index in range(150):
        scene = make_stuff_scene("stuff_caption", index, image_size=48)
        seen = {name for name, share in scene.shares.items() if share >= 0.015}
        captions = [write_stuff_caption(scene.shares, scene.things, rng) for _ in range(8)]
        named = [mentioned_categories(caption, STUFF_CATEGORY_NAMES) for caption in captions]
        assert all(names == seen or len(names) == 1 for names in named)
        assert frozenset().union(*named) == seen
        is_complete += [names == seen for names in named if len(seen) > 1]
        bare |= set(captions)
    assert 0.4 < np.mean(is_complete) < 0.7
    assert bare & set(SURFACE_NAMES)
    assert len(bare) > 400


def test_the_index_tells_nothing_and_its_truth_fits(world: World):
    truth = read_truth(world, "stuff_index")
    paths = {path.name: path for path in world.stuff_index_dir.glob("train/*/*.JPEG")}
    assert set(truth) == set(paths)
    assert len(paths) == PARTS["num_stuff_index"]
    for name, path in paths.items():
        assert name.startswith(path.parent.name + "_")
        scene = make_stuff_scene("stuff_web", int(path.stem.split("_")[1]), image_size=64, seed=3)
        assert {region["category"] for region in truth[name]} == set(scene.shares)
        labels = np.full(scene.labels.shape, VOID)
        for region in truth[name]:
            mask = coco_mask.decode({"size": region["size"], "counts": region["counts"].encode()}) > 0
            assert (labels[mask] == VOID).all()
            labels[mask] = STUFF_CATEGORY_NAMES.index(region["category"])
        np.testing.assert_array_equal(labels, scene.labels)
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            difference = np.abs(np.asarray(picture).astype(int) - scene.image)
            assert difference.mean() < 12


@pytest.mark.parametrize(("split", "first"), [("val", 0), ("train", 1_000_000)])
def test_own_categories_in_cocos_layout(world: World, split: str, first: int):
    assert annotated_names(world.stuff_dir, split) == NAMES
    benchmark = build_benchmark("coco2017", world.stuff_dir, split, categories=NAMES)
    assert len(benchmark) == PARTS[f"num_stuff_{split}"]
    annotations = COCO(world.stuff_dir / "annotations" / f"instances_{split}2017.json")
    for index, item in enumerate(benchmark):
        truth = _scene(first + index)
        np.testing.assert_array_equal(item.label, np.where(truth < 0, 255, truth + 1))
        made = np.full(truth.shape, 255)
        for annotation in annotations.loadAnns(annotations.getAnnIds(imgIds=item.image_id)):
            made[annotations.annToMask(annotation) > 0] = annotation["category_id"]
        np.testing.assert_array_equal(made, item.label)


def test_training_pictures_are_read_without_labels_too(world: World):
    options = {"categories": NAMES, "with_labels": False, "with_instances": False}
    benchmark = build_benchmark("coco2017", world.stuff_dir, "train", **options)
    assert len(benchmark) == PARTS["num_stuff_train"]
    assert benchmark[0].label is None


@pytest.mark.parametrize(("split", "indices"), [("val", (0, 2)), ("train", (1, 3))])
def test_cityscapes_layout(world: World, split: str, indices: tuple[int, ...]):
    benchmark = build_benchmark("cityscapes", world.cityscapes_stuff_dir, split)
    assert len(benchmark) == len(indices)
    items = {int(item.path.name.split("_")[1]): item for item in benchmark}
    for index in indices:
        truth = _scene(2_000_000 + index, shape=(1.0, 2.0))
        assert truth.shape == (64, 128)
        truth[[0, -1]], truth[:, [0, -1]] = -1, -1
        np.testing.assert_array_equal(items[index].label, sample_square(truth, 320))
    for path in world.cityscapes_stuff_dir.glob(f"gtFine/{split}/*/*_labelIds.png"):
        assert set(np.unique(np.asarray(Image.open(path)))) <= {0, 3, *range(7, 7 + len(STUFF_CATEGORY_NAMES))}


@pytest.mark.parametrize("split", ["val", "train"])
def test_kitti_layout(world: World, split: str):
    benchmark = build_benchmark("kitti_step", world.kitti_dir, split)
    assert len(benchmark) == PARTS["num_kitti"] // 2
    assert {path.parent.name for path in benchmark.image_paths} == {"0000", "0001"}
    for number, item in enumerate(benchmark):
        index = 3_000_000 + 2 * number + (split == "train")
        scene = make_stuff_scene("stuff_scene", index, image_size=64, seed=3, shape=(1.03, 2.46))
        np.testing.assert_array_equal(item.label, np.where(scene.labels == VOID, -1, scene.labels.astype(int)))
        np.testing.assert_array_equal(item.image, scene.image)
        assert all(side % 16 for side in item.size)
        panoptic = np.asarray(Image.open(benchmark.label_paths[number]))
        np.testing.assert_array_equal(panoptic[..., 2], scene.instances)


@pytest.mark.parametrize(("split", "indices"), [("val", (0, 2)), ("train", (1, 3))])
def test_coco_stuff_layout(world: World, split: str, indices: tuple[int, ...]):
    benchmark = build_benchmark("coco_stuff", world.coco_stuff_dir, split)
    assert len(benchmark) == len(indices)
    assert {path.suffix for path in benchmark.label_paths} == {".png" if split == "val" else ".mat"}
    for item, index in zip(benchmark, indices, strict=True):
        np.testing.assert_array_equal(item.label, sample_square(_scene(4_000_000 + index), 320))


@pytest.mark.parametrize(("split", "indices"), [("val", (0, 2)), ("train", (1, 3))])
def test_pascal_context_layout(world: World, split: str, indices: tuple[int, ...]):
    benchmark = build_benchmark("pascal_context", world.pascal_context_dir, split)
    assert len(benchmark) == len(indices)
    for item, index in zip(benchmark, indices, strict=True):
        np.testing.assert_array_equal(item.label, sample_square(_scene(5_000_000 + index), 320))


def test_every_benchmark_has_room_for_the_categories():
    for name in ("cityscapes27", "kitti_step19", "coco_stuff27", "pascal_context59"):
        assert category_table(name).num_classes >= len(STUFF_CATEGORY_NAMES)


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(world: World, tmp_path: Path):
    again = make_world(tmp_path, **PARTS, image_size=64, seed=3, num_workers=2)
    files = sorted(path.relative_to(world.root) for path in world.root.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert all((world.root / path).read_bytes() == (again.root / path).read_bytes() for path in files)
