"""Run-length codes and the mask store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from pseudo_labels import rle, store
from pseudo_labels.store import is_complete, pseudo_mask_path, read_mask, write_mask
from utils.errors import DataError

masks = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 1))


def coco_code(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


@given(masks)
def test_codes_are_those_of_the_coco_tools(mask: np.ndarray):
    code = rle.encode(mask)
    assert code == {"size": list(mask.shape), "counts": coco_code(mask)}
    np.testing.assert_array_equal(rle.decode(code), mask)
    assert rle.area(code) == mask.sum()


def test_long_runs_and_noise():
    for mask in (
        np.zeros((3000, 4000), bool),
        np.ones((3000, 4000), bool),
        np.random.default_rng(0).random((700, 500)) < 0.5,
        np.pad(np.ones((1, 1), bool), ((1500, 1499), (2000, 1))),
    ):
        code = rle.encode(mask)
        assert code["counts"] == coco_code(mask)
        np.testing.assert_array_equal(rle.decode(code), mask)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ({"size": [4, 4], "counts": "zzz"}, "it cannot be read"),
        ({"size": [4, 4], "counts": "\x01"}, "it cannot be read"),
        ({"size": [4, 4], "counts": "P"}, "it cannot be read"),
        ({"size": [4, 4], "counts": "5"}, r"should fill 4×4 pixels, but its runs fill 5 pixels"),
        ({"size": [4, 4], "counts": ""}, "its runs fill 0 pixels"),
        ({"size": [4, 4], "counts": "ooooooooooooo0"}, "it cannot be read"),
        ({"size": [4], "counts": "5"}, 'expected {"size"'),
        ({"counts": "5"}, 'expected {"size"'),
        ([1, 2], 'expected {"size"'),
        ({"size": [4, 4], "counts": [1, 2]}, 'expected {"size"'),
    ],
)
def test_damaged_codes_are_refused(code: object, message: str):
    with pytest.raises(DataError, match=message) as caught:
        rle.decode(code, source="a.json")
    assert "a.json" in str(caught.value)


def test_files_are_read_back_and_checked(tmp_path: Path):
    path, mask = tmp_path / "new" / "folder" / "a.json", np.eye(5, 7, dtype=np.uint8)
    assert not is_complete(path)
    write_mask(path, mask)
    assert json.loads(path.read_text()) == rle.encode(mask)
    np.testing.assert_array_equal(read_mask(path, (5, 7)), mask)
    assert is_complete(path)
    with pytest.raises(DataError, match=r"a\.json: the pseudo-mask is 5×7 .*, but its image is 7×5"):
        read_mask(path, (7, 5))
    path.write_text(path.read_text()[:-9])
    assert not is_complete(path)
    with pytest.raises(DataError, match=r"a\.json: pseudo-mask is not valid JSON"):
        read_mask(path)
    with pytest.raises(DataError, match="pseudo-mask not found"):
        read_mask(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("/d/ImageNet2012/train/n01/n01_1.JPEG", "/d/ImageNet2012/train_pseudo_masks_selfmask/n01/n01_1.json"),
        ("/d/ImageNet2012/val/n01/JPEG_1.JPEG", "/d/ImageNet2012/val_pseudo_masks_selfmask/n01/json_1.json"),
        ("/d/pass/images/ab.jpg", "/d/pass/pseudo_masks_selfmask/ab.json"),
        ("/d/pass/images/jpg.1.jpg", "/d/pass/pseudo_masks_selfmask/json.1.json"),
        ("/d/x/pass/images/sub/ab.png", "/d/x/pass/sub/pseudo_masks_selfmask/ab.json"),
    ],
)
def test_published_places(image: str, expected: str):
    assert pseudo_mask_path(image) == Path(expected)
    assert pseudo_mask_path(image, index_dir="/d") == Path(expected)


def test_places_of_other_folders():
    image = "/home/u/pictures/cats/a.b.jpg"
    assert pseudo_mask_path(image, index_dir="/home/u/pictures") == Path(
        "/home/u/pictures_pseudo_masks_selfmask/cats/a.b.jpg.json"
    )
    assert pseudo_mask_path(image) == Path("/home/u/pictures/cats_pseudo_masks_selfmask/a.b.jpg.json")
    assert pseudo_mask_path(image, index_dir="/home/u/pictures", pseudo_mask_dir="/m") == Path("/m/cats/a.b.jpg.json")
    assert pseudo_mask_path(image, pseudo_mask_dir="/m") == Path("/m/home/u/pictures/cats/a.b.jpg.json")
    assert pseudo_mask_path("/d/pass/images/a.jpg", index_dir="/d/pass", pseudo_mask_dir="/m") == Path(
        "/m/images/a.jpg.json"
    )
    assert pseudo_mask_path("pictures/a.jpg", index_dir="pictures") == Path("pictures_pseudo_masks_selfmask/a.jpg.json")
    assert store.SELFMASK == "selfmask"


def test_an_image_outside_its_index_folder_is_named():
    with pytest.raises(DataError, match=r"/x/a\.jpg: this image does not lie below the index folder /home"):
        pseudo_mask_path("/x/a.jpg", index_dir="/home", pseudo_mask_dir="/m")
