"""Users' pictures through a segmenter that may take some ahead: the same files whatever it does, and few in memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from evaluation.pictures import PictureResult, Segmentation, format_table, output_names, segment_pictures
from evaluation.regions import region_results
from utils.errors import DataError
from utils.files import read_json

NAMES = ["background", "dark", "bright"]
PALETTE = np.array([[0, 0, 0], [200, 30, 30], [30, 200, 30]], np.uint8)


def segment_one(picture: np.ndarray) -> Segmentation:
    labels = np.where(picture[..., 0] > 120, 2, 1).astype(np.int16)
    return Segmentation(labels, region_results(labels, np.ones(labels.shape, np.float32)))


def segment_ahead(pictures: Iterable[np.ndarray], *, ahead: int) -> Iterator[Segmentation]:
    """Has taken so many pictures more than it gave back."""
    waiting: list[Segmentation] = []
    for picture in pictures:
        waiting.append(segment_one(picture))
        if len(waiting) > ahead:
            yield waiting.pop(0)
    yield from waiting


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several sizes; the first, two in the middle and the last cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(9):
        path = folder / f"{number}.png"
        if number in (0, 3, 4, 8):
            path.write_bytes(b"no picture")
        else:
            pixels = np.random.default_rng(number).integers(0, 256, (6 + number, 9, 1), dtype=np.uint8)
            Image.fromarray(pixels.repeat(3, axis=2)).save(path)
    return folder


def run(folder: Path, out: Path, segment: Callable) -> tuple[list[PictureResult], dict[str, bytes]]:
    results = segment_pictures([folder], segment, category_names=NAMES, palette=PALETTE, output_dir=out)
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return results, files


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_pictures_taken_ahead_change_nothing(folder: Path, tmp_path: Path, ahead: int) -> None:
    results, files = run(folder, tmp_path / "plain", partial(map, segment_one))
    assert run(folder, tmp_path / "ahead", partial(segment_ahead, ahead=ahead)) == (results, files)
    assert [result.path.name for result in results] == [f"{number}.png" for number in range(9)]
    assert [number for number, result in enumerate(results) if result.refusal] == [0, 3, 4, 8]
    assert set(files) >= {"labels/7.png", "overlays/7.jpg", "legend.png", "instances.json", "pictures.csv"}
    document = read_json(tmp_path / "ahead" / "instances.json")
    assert [(image["id"], image["height"]) for image in document["images"]] == [(i + 1, 6 + i) for i in (1, 2, 5, 6, 7)]
    assert [record["id"] for record in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    for number in (1, 2, 5, 6, 7):
        labels = np.asarray(Image.open(tmp_path / "ahead" / "labels" / f"{number}.png"))
        bright = np.asarray(Image.open(folder / f"{number}.png"))[..., 0] > 120
        assert np.array_equal(labels, np.where(bright, 2, 1))
        assert number + 1 in {record["image_id"] for record in document["annotations"]}


def test_refused_pictures_are_told_as_they_are_read(folder: Path, tmp_path: Path, log_text) -> None:
    told: list[int] = []

    def segment(pictures: Iterable[np.ndarray]) -> Iterator[Segmentation]:
        for picture in pictures:
            told.append(log_text.text.count("refused: "))
            yield segment_one(picture)

    run(folder, tmp_path / "out", segment)
    assert told == [1, 1, 3, 3, 3]
    assert "4 of 9 pictures were refused" in log_text.text


@pytest.mark.parametrize("ahead", [0, 2])
def test_pictures_are_kept_until_their_segmentation_comes(tmp_path: Path, ahead: int) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(12):
        Image.new("RGB", (9, 9), (20 * number,) * 3).save(folder / f"{number:02d}.png")
    seen: list[weakref.ref] = []
    most = 0

    def notice(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal most
        for picture in pictures:
            seen.append(weakref.ref(picture))
            most = max(most, sum(ref() is not None for ref in seen))
            yield picture

    run(folder, tmp_path / "out", lambda pictures: segment_ahead(notice(pictures), ahead=ahead))
    assert len(seen) == 12
    assert ahead + 1 <= most <= ahead + 2  # and the one whose files have just been written


# ---- names of the results -------------------------------------------------------------------------------------------

FILES = st.sampled_from(
    ["a.jpg", "a.png", "a.JPG", "a_jpg.bmp", "a_jpg.png", "a_jpg_2.gif", "a_png.jpg", "a", "a_", "a_.png", "b.c.jpg"]
)
FOLDERS = st.sampled_from(["", "a/", "a.png/", "a.jpg/", "a_jpg.png/", "a/a.jpg/", "b/"])


@settings(deadline=None)
@given(st.lists(st.builds(str.__add__, FOLDERS, FILES), min_size=1, max_size=12, unique=True))
def test_every_picture_has_an_output_name_of_its_own(files: list[str]) -> None:
    paths = [Path("/pictures") / file for file in files]
    names = output_names(paths)
    assert set(names) == set(paths)
    written = {PurePosixPath(f"{name}{ending}") for name in names.values() for ending in (".png", ".jpg")}
    assert len(written) == 2 * len(paths)
    assert not written & {folder for path in written for folder in path.parents}  # no file where a folder has to be


def test_names_are_plain_where_nothing_collides() -> None:
    def named(*files: str) -> list[str]:
        return list(output_names([Path("/pictures") / file for file in files]).values())

    assert named("a.jpg") == ["a"]
    assert named("a.jpg", "b/a.jpg", "b/c.d.png") == ["a", "b/a", "b/c.d"]
    assert named("b/a.jpg", "b/c/a.png") == ["a", "c/a"]
    assert named("a.jpg", "a.png", "b.png") == ["a_jpg", "a_png", "b"]
    assert named("a.jpg", "a.png", "a_jpg.bmp") == ["a_jpg_2", "a_png", "a_jpg"]


def test_one_file_by_two_paths_has_two_names(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    names = output_names([tmp_path / "a.jpg", tmp_path / "link.jpg"])
    assert sorted(names.values()) == ["a_jpg", "a_jpg_2"]


def test_pictures_of_colliding_names_all_have_results(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.jpg", "a.png", "a_jpg.bmp"):
        Image.new("RGB", (5, 4)).save(folder / name)
    _, files = run(folder, tmp_path / "out", partial(map, segment_one))
    assert sorted(name for name in files if name.startswith("labels/")) == [
        "labels/a_jpg.png",
        "labels/a_jpg_2.png",
        "labels/a_png.png",
    ]


# ---- what is told ---------------------------------------------------------------------------------------------------


def test_the_table_tells_pictures_of_one_name_apart() -> None:
    found = {"dark": 0.75, "bright": 0.25, "hardly": 0.001}
    results = [
        PictureResult(Path("/p/a.jpg"), (4, 4), found, 1),
        PictureResult(Path("/p/sub/a.jpg"), (4, 4), {}, 0),
        PictureResult(Path("/p/sub/b.jpg"), refusal="/p/sub/b.jpg: not a picture (3 bytes in no known format)."),
    ]
    assert format_table(results).splitlines() == [
        "  a.jpg      dark 75%, bright 25%  [1 instance]",
        "  sub/a.jpg  nothing found  [0 instances]",
        "  sub/b.jpg  refused",
    ]
    assert format_table(results[1:2]) == "  a.jpg  nothing found  [0 instances]"


def test_one_picture_and_one_refusal_are_told_once_and_in_the_singular(tmp_path: Path, log_text) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (5, 4)).save(folder / "a.png")
    run(folder, tmp_path / "one", partial(map, segment_one))
    assert "1 picture:\n  a.png  dark 100%  [1 instance]\nresults: " in log_text.text
    (folder / "broken.png").write_bytes(b"no picture")
    log_text.clear()
    run(folder, tmp_path / "two", partial(map, segment_one))
    assert "1 of 2 pictures was refused, see pictures.csv" in log_text.text
    assert log_text.text.count("not a picture") == 1
    assert "not a picture" in (tmp_path / "two" / "pictures.csv").read_text()


def test_nothing_but_broken_pictures_is_an_error(tmp_path: Path) -> None:
    for name in ("b0.png", "b1.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"the only picture cannot be read: .*b0\.png: not a picture"):
        run(tmp_path / "b0.png", tmp_path / "out", partial(segment_ahead, ahead=3))
    with pytest.raises(DataError, match=r"none of the 2 pictures can be read; the first: .*b0\.png"):
        run(tmp_path, tmp_path / "out", partial(segment_ahead, ahead=3))
    assert not (tmp_path / "out").exists()
