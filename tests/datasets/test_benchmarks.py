"""Benchmark readers on folders written here, the COCO mask tool, ImageNet-S export, and what users are told."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.build import build_benchmark
from datasets.coco20k import build_coco20k_subset, parse_coco20k_list
from datasets.coco_masks import main as make_masks
from datasets.coco_masks import paint_instances
from datasets.imagenet_s import ImageNetSBenchmark, network_size, write_imagenet_s_label
from datasets.metadata import bit_palette, category_table, coco20k_image_ids, table_names
from tests.datasets.small_folders import picture, write
from utils.errors import ConfigError, DataError, UnreadableImageError

LABELS = Path("annotations", "semantic_segmentation_masks")


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    sizes = {30: (20, 24), 4: (16, 16), 17: (9, 31)}
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}
        for number, (height, width) in sizes.items()
    ]
    annotations = [
        {"id": 1, "image_id": 30, "category_id": 90, "iscrowd": 0, "segmentation": rectangle(4, 4, 4, 4)},
        {"id": 2, "image_id": 30, "category_id": 1, "iscrowd": 0, "segmentation": rectangle(2, 2, 12, 12)},
        {
            "id": 3,
            "image_id": 30,
            "category_id": 2,
            "iscrowd": 1,
            "segmentation": {"size": [20, 24], "counts": [0, 20 * 24]},
        },
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}, {"id": 90, "name": "toothbrush"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_bytes(orjson.dumps(document))
    for number, size in sizes.items():
        write(tmp_path / "val2017" / f"{number:012d}.jpg", picture(*size))
    return tmp_path


def test_tables_are_complete() -> None:
    for name in table_names():
        table = category_table(name)
        assert len(set(table.names)) == table.num_classes == len(table.palette)
        assert len(table.label_colours) == (table.num_classes if table.ignore_index < 0 else table.ignore_index + 1)
        assert np.array_equal(table.label_colours[: table.num_classes], table.palette)
        if table.label_map is not None:
            assert set(table.label_map.tolist()) - {-1, -2} == set(range(table.num_classes))
    with_background = {name for name in table_names() if category_table(name).names[0] == "background"}
    assert len(with_background) == len(table_names()) - 5
    assert category_table("coco2017").raw_category_ids[80] == 90
    assert [category_table(f"imagenet_s{n}").num_classes for n in (50, 300, 919)] == [51, 301, 920]
    assert len(coco20k_image_ids()) == len(set(coco20k_image_ids())) == 19817


def test_ignore_colours_are_those_of_the_palettes() -> None:
    assert category_table("coco2017").label_colours[255].tolist() == [255, 255, 255]
    assert category_table("coca").label_colours[255].tolist() == [224, 224, 192]
    assert category_table("imagenet_s50").label_colours[1000].tolist() == [255, 255, 255]
    assert bit_palette(4).tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_tables_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        category_table("coca").palette[0] = 1


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no category table 'coco2018' \(did you mean 'coco2017'\?\)"):
        category_table("coco2018")
    with pytest.raises(ConfigError, match=r"no benchmark 'imagenets' \(did you mean 'imagenet-s'\?\)"):
        build_benchmark("imagenets", "nowhere")
    with pytest.raises(ConfigError, match=r"50, 300 and 919 categories .* got n_categories=100"):
        build_benchmark("imagenet-s", "nowhere", num_categories=100)


def test_mask_tool_paints_small_objects_over_large_ones_and_crowds_below(coco: Path, capsys) -> None:
    assert make_masks(["--dir_dataset", str(coco), "--split", "val2017"]) == 0
    benchmark = build_benchmark("coco2017", coco)
    item = benchmark[2]
    expected = np.full((20, 24), 2)
    expected[2:14, 2:14] = 1
    expected[4:8, 4:8] = 80
    assert np.array_equal(item.label, expected)
    assert not benchmark[0].label.any()
    with Image.open(coco / LABELS / f"{30:012d}.png") as image:
        assert image.mode == "P"


def test_mask_tool_keeps_what_is_there_and_can_ignore_crowds(coco: Path) -> None:
    kept = write(coco / LABELS / f"{4:012d}.png", np.full((16, 16), 7, np.uint8)).read_bytes()
    assert make_masks(["--dir_dataset", str(coco), "--crowd", "ignore", "--num_workers", "1"]) == 0
    assert (coco / LABELS / f"{4:012d}.png").read_bytes() == kept
    label = build_benchmark("coco2017", coco)[2].label
    assert label[0, 0] == 255
    assert label[3, 3] == 1


def test_mask_tool_reads_every_form_of_segmentation() -> None:
    mask = np.zeros((6, 7), np.uint8)
    mask[1:3, 2:6] = 1
    code = coco_mask.encode(np.asfortranarray(mask))
    for segmentation in ({"size": [6, 7], "counts": code["counts"].decode()}, rectangle(2, 1, 4, 2)):
        annotation = {"id": 1, "category_id": 9, "segmentation": segmentation}
        assert np.array_equal(paint_instances([annotation], (6, 7), {9: 5}, crowd_label=None), mask * 5)
    empty = {"id": 1, "category_id": 9, "segmentation": []}
    assert not paint_instances([empty], (6, 7), {9: 5}, crowd_label=None).any()


def test_mask_tool_names_bad_annotations() -> None:
    with pytest.raises(DataError, match="annotation 8 has the category id 12, which is none of the 1 categories"):
        paint_instances([{"id": 8, "category_id": 12, "segmentation": []}], (4, 4), {0: 0, 1: 1}, crowd_label=None)
    wrong = {"id": 8, "category_id": 1, "segmentation": {"size": [2, 2], "counts": [4]}}
    with pytest.raises(DataError, match="annotation 8: its mask is 2x2, the picture 4x4"):
        paint_instances([wrong], (4, 4), {0: 0, 1: 1}, crowd_label=None)


def test_mask_tool_ends_with_status_two_and_the_reason(tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        make_masks(["--dir_dataset", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "the folder with the COCO dataset does not exist" in capsys.readouterr().err


def test_coco_reads_all_pictures_by_ascending_id(coco: Path) -> None:
    make_masks(["--dir_dataset", str(coco)])
    benchmark = build_benchmark("coco2017", coco, "val")
    items = list(benchmark)
    assert [item.image_id for item in items] == benchmark.image_ids == [4, 17, 30]
    assert [item.size for item in items] == [(16, 16), (9, 31), (20, 24)]
    assert np.array_equal(items[0].image, picture(16, 16))
    assert items[0].label.dtype == np.int16
    assert benchmark.annotations_path == coco / "annotations" / "instances_val2017.json"
    assert benchmark.num_classes == 81
    assert benchmark.raw_category_ids[80] == 90
    assert benchmark.protocol["benchmark"] == "coco2017 val, 3 images"


def test_coco_layout_with_own_categories(coco: Path) -> None:
    names = ["background", "toothbrush", "person"]
    benchmark = build_benchmark("coco2017", coco, categories=names, with_labels=False)
    assert benchmark.category_names == names
    assert benchmark.raw_category_ids == (0, 90, 1)
    assert benchmark[0].label is None
    assert not benchmark.has_labels
    with pytest.raises(DataError, match="1 of 2 categories are not among its 3: 'sheep'"):
        build_benchmark("coco2017", coco, categories=["background", "person", "sheep"], with_labels=False)
    with pytest.raises(DataError, match="first category has to be 'background'"):
        build_benchmark("coco2017", coco, categories=["person"], with_labels=False)


def test_missing_coco_files_are_named_with_the_remedy(coco: Path) -> None:
    with pytest.raises(
        DataError, match=r"3 of 3 semantic label PNGs are missing: .*000000000004\.png.*coco_masks --dir_d"
    ):
        build_benchmark("coco2017", coco)
    (coco / "val2017" / f"{17:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 3 pictures are missing: .*000000000017\.jpg\. They are listed in"):
        build_benchmark("coco2017", coco, with_labels=False)
    with pytest.raises(DataError, match=r"instances_train2017\.json: COCO annotation file not found"):
        build_benchmark("coco2017", coco, "train")
    with pytest.raises(DataError, match="splits 'val' and 'train' here, got 'test'"):
        build_benchmark("coco2017", coco, "test")
    (coco / "annotations" / "instances_val2017.json").write_bytes(b'{"images": []}')
    with pytest.raises(DataError, match="it has no list 'annotations' and no list 'categories'"):
        build_benchmark("coco2017", coco)


def test_coco_labels_without_a_picture_are_refused(coco: Path) -> None:
    make_masks(["--dir_dataset", str(coco)])
    extra = write(coco / LABELS / f"{99:012d}.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(
        DataError, match=r"semantic_segmentation_masks: 1 of 4 label files belong to no picture: 0+99\.png"
    ):
        build_benchmark("coco2017", coco)
    write(coco / "train2017" / f"{99:012d}.jpg", picture(4, 4))
    assert len(build_benchmark("coco2017", coco)) == 3
    (coco / "train2017" / f"{99:012d}.jpg").unlink()
    with pytest.raises(DataError, match=r"or put their pictures into val2017 or train2017"):
        build_benchmark("coco2017", coco)
    (coco / "train2017").rmdir()
    (coco / "annotations" / "instances_train2017.json").write_bytes(b"{}")
    assert len(build_benchmark("coco2017", coco)) == 3
    extra.unlink()


def test_coco_without_instance_annotations(coco: Path) -> None:
    make_masks(["--dir_dataset", str(coco)])
    whole = build_benchmark("coco2017", coco)
    (coco / "annotations" / "instances_val2017.json").unlink()
    benchmark = build_benchmark("coco2017", coco, with_instances=False)
    assert benchmark.image_paths == whole.image_paths
    assert benchmark.annotations_path is None
    assert benchmark.raw_category_ids is None
    assert np.array_equal(benchmark[2].label, whole[2].label)
    write(coco / "val2017" / f"{5:012d}.jpg", picture(4, 4))
    with pytest.raises(DataError, match=r"1 of 4 semantic label PNGs are missing: .*0+5\.png"):
        build_benchmark("coco2017", coco, with_instances=False)
    own = build_benchmark("coco2017", coco, categories=["background", "x"], with_instances=False, with_labels=False)
    assert own.num_classes == 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((16, 16), 90, np.uint8), r"holds 90 in 256 pixels; expected 0 to 80, or 255 .*raw COCO ids"),
        (np.zeros((8, 16), np.uint8), r"this label is 8x16, but its picture .* is 16x16"),
        (np.zeros((16, 16, 3), np.uint8), "expected a label PNG with one channel"),
    ],
)
def test_wrong_coco_labels_are_named(coco: Path, array: np.ndarray, message: str) -> None:
    make_masks(["--dir_dataset", str(coco)])
    path = write(coco / LABELS / f"{4:012d}.png", array)
    with pytest.raises(DataError, match=rf"{path}.*{message}"):
        build_benchmark("coco2017", coco)[0]


def test_damaged_label_is_named(coco: Path) -> None:
    make_masks(["--dir_dataset", str(coco)])
    path = coco / LABELS / f"{4:012d}.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UnreadableImageError, match=f"{path}: this label file is cut off or damaged"):
        build_benchmark("coco2017", coco)[0]


def test_coca_pairs_by_name_and_warns_of_greys(tmp_path: Path, caplog, monkeypatch) -> None:
    for name, value in (("dice/b", 255), ("dice/a", 3), ("UAV/z", 255)):
        write(tmp_path / "image" / f"{name}.jpg", picture(6, 5))
        mask = np.zeros((6, 5), np.uint8)
        mask[2:4] = value
        write(tmp_path / "binary" / f"{name}.png", mask)
    benchmark = build_benchmark("coca", tmp_path)
    monkeypatch.setattr(logging.getLogger("unmasked"), "propagate", True)
    with caplog.at_level(logging.WARNING):
        items = list(benchmark)
    assert [item.path.stem for item in items] == ["z", "a", "b"]
    assert [np.unique(item.label).tolist() for item in items] == [[0, 2], [0, 3], [0, 19]]
    assert "a.png: 10 pixels are neither 0 nor 255. Such greys count as labels" in caplog.text
    (tmp_path / "binary" / "dice" / "a.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 masks are missing: .*dice/a\.png"):
        build_benchmark("coca", tmp_path)
    (tmp_path / "image" / "dice" / "a.jpg").unlink()
    assert len(build_benchmark("coca", tmp_path)) == 2
    write(tmp_path / "binary" / "dice" / "c.png", mask)
    with pytest.raises(
        DataError, match=r"binary: 1 of 3 label files belong to no picture: dice/c\.png\. Put their pictures"
    ):
        build_benchmark("coca", tmp_path)
    write(tmp_path / "image" / "unicorn" / "a.jpg", picture(6, 5))
    with pytest.raises(DataError, match="1 folders are no CoCA classes: unicorn"):
        build_benchmark("coca", tmp_path)


def test_empty_and_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image: the folder with the CoCA pictures does not exist\. Expected layout"):
        build_benchmark("coca", tmp_path)
    (tmp_path / "image").mkdir()
    (tmp_path / "binary").mkdir()
    with pytest.raises(DataError, match="coca val: the split holds no picture"):
        build_benchmark("coca", tmp_path)
    with pytest.raises(DataError, match=r"ImageNetS50/validation: the folder with the ImageNet-S pictures"):
        build_benchmark("imagenet-s", tmp_path, num_categories=50)


def test_imagenet_s_limits_the_picture_not_the_label(tmp_path: Path) -> None:
    base = tmp_path / "ImageNetS50"
    colours = np.zeros((60, 1500, 3), np.uint8)
    colours[10:20] = (50, 0, 0)
    colours[20:30] = (232, 3, 0)
    write(base / "validation" / "n1" / "x.JPEG", picture(60, 1500))
    write(base / "validation-segmentation" / "n1" / "x.png", colours)
    (item,) = build_benchmark("imagenet-s", tmp_path, num_categories=50)
    assert item.image.shape == (40, 1024, 3)
    assert item.size == item.label.shape == (60, 1500)
    assert np.unique(item.label).tolist() == [0, 50, 1000]
    colours[0] = (51, 0, 0)
    path = write(base / "validation-segmentation" / "n1" / "x.png", colours)
    with pytest.raises(DataError, match=rf"{path}: the label file holds 51 in 1500 pixels; expected 0 to 50, or 1000"):
        build_benchmark("imagenet-s", tmp_path, num_categories=50)[0]
    write(base / "validation-segmentation" / "n2" / "y.png", colours)
    with pytest.raises(DataError, match=r"validation-segmentation: 1 of 2 label files belong to no picture: n2/y\.png"):
        build_benchmark("imagenet-s", tmp_path, num_categories=50)


def test_network_sizes() -> None:
    sizes = [(1024, 3), (3000, 2999), (1500, 1000), (2000, 2000), (1, 4000)]
    assert [network_size(size) for size in sizes] == [(1024, 3), (1024, 1023), (1024, 682), (1024, 1024), (1, 1024)]


def test_imagenet_s_test_split_is_exported(tmp_path: Path) -> None:
    write(tmp_path / "ImageNetS919" / "test" / "n7" / "y.JPEG", picture(8, 9))
    benchmark = build_benchmark("imagenet-s", tmp_path, "test", 919)
    assert isinstance(benchmark, ImageNetSBenchmark)
    item = benchmark[0]
    assert item.label is None
    labels = np.arange(72).reshape(8, 9) * 12
    path = benchmark.export_path(tmp_path / "out", item.path)
    assert path == tmp_path / "out" / "n7" / "y.png"
    write_imagenet_s_label(path, labels)
    with Image.open(path) as image:
        stored = np.asarray(image).astype(int)
    assert image.mode == "RGB"
    assert np.array_equal(stored[..., 0] + 256 * stored[..., 1], labels)
    assert not stored[..., 2].any()
    with pytest.raises(ValueError, match=r"labels 0 \.\.\. 65535"):
        write_imagenet_s_label(path, labels - 1)
    with pytest.raises(DataError, match="got 'train'"):
        build_benchmark("imagenet-s", tmp_path, "train", 919)


@pytest.fixture
def coco2014(tmp_path: Path) -> Path:
    images = [{"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": 8, "width": 9} for n in (5, 6, 7)]
    annotations = [{"id": i, "image_id": n, "category_id": 1} for i, n in enumerate((7, 5, 7, 6))]
    document = {"info": {}, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2014.json").write_bytes(orjson.dumps(document))
    for image in images:
        write(tmp_path / "train2014" / image["file_name"], picture(8, 9))
    return tmp_path


def test_coco20k_makes_its_subset_once_in_list_order(coco2014: Path, monkeypatch) -> None:
    monkeypatch.setattr("datasets.coco20k.coco20k_image_ids", lambda: (7, 5))
    benchmark = build_benchmark("coco20k", coco2014)
    assert benchmark.image_ids == [7, 5]
    assert benchmark.annotations_path == coco2014 / "annotations" / "instances_train2014_sel20k.json"
    subset = orjson.loads(benchmark.annotations_path.read_bytes())
    assert list(subset) == ["images", "annotations", "categories"]
    assert [annotation["id"] for annotation in subset["annotations"]] == [0, 2, 1]
    assert benchmark[0].label is None
    (coco2014 / "annotations" / "instances_train2014.json").unlink()
    assert len(build_benchmark("coco20k", coco2014)) == 2


def test_coco20k_subset_goes_to_the_cache_when_the_dataset_is_read_only(coco2014: Path, tmp_path_factory, monkeypatch):
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("datasets.coco20k.coco20k_image_ids", lambda: (6,))
    monkeypatch.setattr("datasets.coco20k._is_writable", lambda folder: folder == cache)
    benchmark = build_benchmark("coco20k", coco2014, cache_dir=cache)
    assert benchmark.annotations_path == cache / "instances_train2014_sel20k.json"
    (cache / "instances_train2014_sel20k.json").unlink()
    with pytest.raises(DataError, match="cannot be written and there is no other folder for it"):
        build_benchmark("coco20k", coco2014)


def test_coco20k_names_what_is_missing(coco2014: Path) -> None:
    with pytest.raises(
        DataError, match=r"19817 of 19817 pictures of COCO-20K are not in the annotations \(the first has id"
    ):
        build_benchmark("coco20k", coco2014)
    with pytest.raises(DataError, match="1 of 2 pictures"):
        build_coco20k_subset({"images": [{"id": 1}], "annotations": [], "categories": []}, [1, 2])


def test_coco20k_list() -> None:
    text = "train2014/COCO_train2014_000000000009.jpg\n\nCOCO_train2014_000000581921.jpg\n"
    assert parse_coco20k_list(text) == [9, 581921]
    with pytest.raises(DataError, match=r"line 2 of the file list: .* got 'nonsense'"):
        parse_coco20k_list("a_1.jpg\nnonsense")
