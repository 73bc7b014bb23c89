"""Users' own pictures as a dataset: links, names of label PNGs, and arrays of their own."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import torch

from datasets.picture_folder import PictureFolder
from tests.datasets.small_folders import picture, write
from utils.errors import DataError


def labels_of(pictures: PictureFolder) -> list[str]:
    return [pictures.export_path("out", path).as_posix() for path in pictures.image_paths]


def test_links_to_pictures_elsewhere_keep_their_names(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in (2, 10):
        stored = write(tmp_path / "store" / f"{number}.bin", picture(8, number))
        (tmp_path / "in" / f"photo{number}.png").symlink_to(stored)
    pictures = PictureFolder([tmp_path / "in"], ["road"], shorter_side=4)
    assert [path.name for path in pictures.image_paths] == ["photo2.png", "photo10.png"]
    assert labels_of(pictures) == ["out/photo2.png.png", "out/photo10.png.png"]
    assert [item.size for item in pictures] == [(16, 4), (4, 5)]


def test_a_linked_folder_is_searched_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "store" / "deep" / "a.png", picture(8, 8))
    (tmp_path / "mine").symlink_to(tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    pictures = PictureFolder(["mine"], ["road"])
    assert pictures.image_paths == [tmp_path / "mine" / "deep" / "a.png"]
    assert labels_of(pictures) == ["out/deep/a.png.png"]


def test_a_picture_that_is_reached_twice_is_one(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(folder / "a.png", picture(8, 8))
    write(folder / "sub" / "b.png", picture(8, 9))
    (folder / "c.png").symlink_to(folder / "a.png")
    os.link(folder / "a.png", folder / "d.png")
    (tmp_path / "again").symlink_to(folder)
    assert labels_of(PictureFolder([folder], ["road"])) == ["out/a.png.png", "out/sub/b.png.png"]
    for folders in ([folder, folder / "sub"], [folder / "sub", folder]):  # the first folder that holds it names it
        pictures = PictureFolder(folders, ["road"])
        assert pictures.image_paths == [folder / "a.png", folder / "sub" / "b.png"]
        assert len(set(labels_of(pictures))) == 2
    assert len(PictureFolder([folder, tmp_path / "again"], ["road"])) == 2


def test_a_link_to_nothing_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="no pictures found in"):
        PictureFolder([tmp_path], ["road"])


@pytest.mark.parametrize("size", [(8, 12), (30, 21)])
def test_pictures_are_arrays_of_their_own(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "a.png", picture(*size))
    (item,) = PictureFolder([tmp_path], ["road"], shorter_side=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that it may not write to
        assert torch.from_numpy(item.image).shape == (*item.size, 3)
    assert item.image.flags.writeable
