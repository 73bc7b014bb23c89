"""ReCo+'s training set: pairing by name in every layout, sizes, and what users get wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.build import build_benchmark
from datasets.central_square import resize_square, sample_square
from datasets.picture_folder import PictureFolder
from tests.datasets.small_folders import picture, write, write_cityscapes
from tests.datasets.test_reco_benchmarks import write_kitti, write_stuff_10k
from training import labelled_pictures
from training.labelled_pictures import LabelledPictures, SampleSettings
from utils.errors import DataError

SMALL = SampleSettings(image_size=24, seed=3)


def label_of(name: str, size: tuple[int, int] = (320, 320)) -> np.ndarray:
    """A label map that only this picture has."""
    return np.full(size, sum(name.encode()) % 19, np.uint8)


def cityscapes(root: Path, names: list[str]) -> LabelledPictures:
    write_cityscapes(root / "data", {name: np.zeros((40, 80), np.uint8) for name in names}, "train")
    for name in names:
        write(root / "dt" / f"{Path(name).name}_gtFine_labelIds.png", label_of(name))
    return LabelledPictures(
        build_benchmark("cityscapes", root / "data", "train", with_labels=False), root / "dt", SMALL
    )


def test_cityscapes_in_the_layout_of_the_release(tmp_path: Path) -> None:
    names = ["ulm/ulm_000001_000019", "bonn/bonn_000002_000019", "aachen/aachen_000000_000019"]
    samples = cityscapes(tmp_path, names)
    assert len(samples) == 3
    for row, path in enumerate(samples.image_paths):
        name = f"{path.parent.name}/{path.name.removesuffix('_leftImg8bit.png')}"
        image, labels = samples.read_pair(row)
        assert np.array_equal(labels, label_of(name))
        assert np.array_equal(image, resize_square(picture(40, 80), 320, Image.Resampling.BILINEAR))


def test_coco_stuff_pairs_by_name_and_not_by_order(tmp_path: Path) -> None:
    names = [f"COCO_train2014_{number:012d}" for number in (9, 3, 7)]  # the list's order is not that of the names
    write_stuff_10k(tmp_path / "coco", {name: np.zeros((30, 50), np.uint8) for name in names})
    for name in names:
        write(tmp_path / "dt" / f"{name}.png", label_of(name))
    pictures = build_benchmark("coco_stuff", tmp_path / "coco", "train", with_labels=False)
    samples = LabelledPictures(pictures, tmp_path / "dt", SMALL)
    assert [path.stem for path in samples.image_paths] == names
    for row, name in enumerate(names):
        assert np.array_equal(samples.read_pair(row)[1], label_of(name))


def test_kitti_labels_at_native_size_become_squares(tmp_path: Path) -> None:
    write_kitti(tmp_path / "kitti", {"0000/000004": np.zeros((37, 124), np.uint8)}, "train")
    labels = np.random.default_rng(0).integers(0, 19, (37, 124), dtype=np.uint8)
    write(tmp_path / "dt" / "0000" / "000004.png", labels)
    pictures = build_benchmark("kitti_step", tmp_path / "kitti", "train", with_labels=False)
    image, found = LabelledPictures(pictures, tmp_path / "dt", SMALL).read_pair(0)
    assert image.shape == (320, 320, 3)
    assert np.array_equal(found, sample_square(labels, 320))


def test_other_benchmarks_keep_their_size(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train2017" / "a.jpg", picture(30, 40))
    write(tmp_path / "dt" / "a.png", label_of("a", (30, 40)) % 2)
    pictures = build_benchmark("coco_layout", tmp_path / "data", "train", categories=["a", "b"], with_labels=False)
    image, labels = LabelledPictures(pictures, tmp_path / "dt", SMALL).read_pair(0)
    assert image.shape == (30, 40, 3)
    assert labels.shape == (30, 40)


def test_own_pictures_keep_their_shape(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a" / "x.jpg", picture(30, 60))
    write(tmp_path / "in" / "x.png", picture(60, 20))
    pictures = PictureFolder([tmp_path / "in"], ["road", "sky"], shorter_side=40)
    sizes = {}
    for item in pictures:
        label = np.ones(item.size, np.uint8)
        sizes[write(pictures.export_path(tmp_path / "dt", item.path), label).name] = label.shape
    assert sizes == {"x.jpg.png": (40, 80), "x.png.png": (120, 40)}
    assert (tmp_path / "dt" / "a" / "x.jpg.png").is_file()
    samples = LabelledPictures(pictures, tmp_path / "dt", SMALL)
    assert {samples.read_pair(row)[0].shape for row in range(2)} == {(40, 80, 3), (120, 40, 3)}
    assert samples[5].image.shape == (24, 24, 3)
    left_out = LabelledPictures(pictures, tmp_path / "dt", SMALL, left_out=[pictures.image_paths[0]])
    assert left_out.image_paths == pictures.image_paths[1:]
    with pytest.raises(DataError, match="none of the 2 pictures has a label PNG"):
        LabelledPictures(pictures, tmp_path / "dt", SMALL, left_out=pictures.image_paths)


def test_two_folders_with_the_same_names_stay_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "x.png", picture(8, 8))
    pictures = PictureFolder([tmp_path / "a", tmp_path / "b"], ["road"])
    paths = {pictures.export_path("dt", path).as_posix() for path in pictures.image_paths}
    assert paths == {"dt/0_a/x.png.png", "dt/1_b/x.png.png"}
    assert pictures.palette.shape == (1, 3)
    assert pictures.palette.any()  # black is left for pixels without a category


def test_samples_depend_on_seed_and_position_alone(tmp_path: Path) -> None:
    samples = cityscapes(tmp_path, ["ulm/a_1_2", "ulm/b_1_2", "ulm/c_1_2"])
    again = LabelledPictures(samples.pictures, tmp_path / "dt", SMALL)
    forwards, backwards = [samples[i] for i in range(7)], [again[i] for i in reversed(range(7))][::-1]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(forwards, backwards, strict=True))
    other = LabelledPictures(samples.pictures, tmp_path / "dt", SampleSettings(image_size=24, seed=4))
    assert any(not np.array_equal(samples[i].image, other[i].image) for i in range(7))
    first_epoch = sorted(int(samples.read_pair(samples._order[i])[1][0, 0]) for i in range(3))
    assert first_epoch == sorted(int(label_of(f"ulm/{n}_1_2")[0, 0]) for n in "abc")


def test_sizes_are_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_text) -> None:
    samples = cityscapes(tmp_path, [f"ulm/{name}_1_2" for name in "abcde"])
    samples.check_sizes()
    write(samples.label_paths[0], label_of("a", (40, 80)))  # of the whole picture
    samples.check_sizes()
    write(samples.label_paths[1], label_of("b", (80, 40)))
    samples.label_paths[2].write_bytes(samples.label_paths[2].read_bytes()[:-30])
    samples.label_paths[3].write_bytes(b"no picture")
    samples.image_paths[4].write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 5 pictures and label PNGs do not fit or cannot be read") as caught:
        samples.check_sizes()
    head, *lines = str(caught.value).splitlines()
    assert "dir_pseudo_masks" in head
    assert lines[0].endswith(f"80x40 (height x width), expected 320x320 or 40x80 for {samples.image_paths[1]}")
    assert "cut off or damaged" in lines[1]
    assert "10 bytes in no known picture format" in lines[2]
    assert lines[3].strip() == "... and 1 more"
    monkeypatch.setattr(labelled_pictures, "NUM_ALL", 4)
    monkeypatch.setattr(labelled_pictures, "NUM_SOME", 2)
    with pytest.raises(DataError, match="1 of 2 pictures"):  # the first and the last
        samples.check_sizes()
    assert "the sizes of 2 of the 5 are looked at, evenly spread" in log_text.text


def test_sizes_of_own_pictures(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(30, 60)).save(tmp_path / "in" / "x.jpg", exif=turned)
    pictures = PictureFolder([tmp_path / "in"], ["road", "sky"], shorter_side=40)
    (item,) = pictures
    path = write(pictures.export_path(tmp_path / "dt", item.path), np.ones(item.size, np.uint8))
    samples = LabelledPictures(pictures, tmp_path / "dt", SMALL)
    assert samples.read_pair(0)[1].shape == (80, 40)
    samples.check_sizes()
    write(path, np.ones((30, 60), np.uint8))
    with pytest.raises(DataError, match=r"30x60 \(height x width\), expected 40x80 or 80x40"):
        samples.check_sizes()


def test_a_missing_label_is_named(tmp_path: Path) -> None:
    samples = cityscapes(tmp_path, ["ulm/a_1_2", "ulm/b_1_2"])
    samples.label_paths[1].unlink()
    with pytest.raises(DataError, match=r"1 of 2 label PNGs are missing: .*b_1_2_gtFine_labelIds\.png\. Every picture"):
        LabelledPictures(samples.pictures, tmp_path / "dt", SMALL)


def test_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    samples = cityscapes(tmp_path, ["ulm/a_1_2"])
    write(samples.label_paths[0], np.full((320, 320), 27, np.uint8))
    with pytest.raises(DataError, match=r"holds 27 in 102400 pixels; expected 0 to 26, or 255"):
        samples[0]
    write(samples.label_paths[0], np.zeros((100, 320), np.uint8))
    with pytest.raises(DataError, match=r"this label PNG is 100x320, but its picture .* trained on at 320x320"):
        samples[0]
    write(samples.label_paths[0], np.zeros((320, 320, 3), np.uint8))
    with pytest.raises(DataError, match="expected a label PNG with one channel"):
        samples[0]
