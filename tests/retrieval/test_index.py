"""Readers of embedding folders: clip-retrieval's layout, paths, and what is said about damaged ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retrieval.index import ArrayIndex, EmbeddingFolder, image_path_for, open_index
from utils.errors import DataError


@pytest.fixture
def foreign(tmp_path):
    """A folder as clip-retrieval writes it: parts 0 and 10 (natural order matters), two row groups each."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "laion"
    (folder / "img_emb").mkdir(parents=True)
    (folder / "metadata").mkdir()
    for digits, count in (("2", 5), ("10", 4)):
        np.save(folder / "img_emb" / f"img_emb_{digits}.npy", rng.standard_normal((count, 3)).astype(np.float16))
        table = pa.table({"caption": ["c"] * count, "image_path": [f"{digits}/{i}.jpg" for i in range(count)]})
        pq.write_table(table, folder / "metadata" / f"metadata_{digits}.parquet", row_group_size=2)
    return folder


def test_clip_retrieval_folder(foreign):
    index = open_index(foreign)
    assert (len(index), index.dim) == (9, 3)
    assert index.paths([8, 0, 4, 5, 0]) == ["10/3.jpg", "2/0.jpg", "2/4.jpg", "10/0.jpg", "2/0.jpg"]
    rows = np.concatenate([np.load(foreign / "img_emb" / f"img_emb_{n}.npy") for n in ("2", "10")])
    for size in (1, 2, 4, 100):
        blocks = list(index.blocks(size))
        assert np.array_equal(np.concatenate([block for _, block in blocks]), rows)
        assert all(len(block) <= size for _, block in blocks)
    part = list(index.blocks(2, 3, 7))
    assert [first for first, _ in part] == [3, 5]
    assert np.array_equal(np.concatenate([block for _, block in part]), rows[3:7])
    assert np.array_equal(index.take(np.array([1, 4, 5, 8])), rows[[1, 4, 5, 8]])


def test_reading_blocks_never_changes_the_files(foreign):
    path = foreign / "img_emb" / "img_emb_2.npy"
    before = path.read_bytes()
    for _, block in open_index(foreign).blocks(3):
        block[:] = 0  # private pages
    assert path.read_bytes() == before


def test_relative_paths_start_from_the_image_folder(foreign):
    assert open_index(foreign, image_dir="/pictures").paths([0]) == ["/pictures/2/0.jpg"]


def test_urls_where_there_are_no_paths(foreign):
    for digits, count in (("2", 5), ("10", 4)):
        table = pa.table({"url": [f"http://x/{i}" for i in range(count)]})
        pq.write_table(table, foreign / "metadata" / f"metadata_{digits}.parquet")
    assert open_index(foreign).paths([5]) == ["http://x/0"]


def test_image_path_layouts(tmp_path):
    name = "n01440764_10026.JPEG"
    assert image_path_for("/d/ImageNet2012/train", name) == Path("/d/ImageNet2012/train/n01440764", name)
    assert image_path_for("/d/pass/images", "a_b.jpg") == Path("/d/pass/images/a_b.jpg")
    assert image_path_for("/d/MyImageNet2012x/train", name) == Path("/d/MyImageNet2012x/train", name)
    assert image_path_for("/d/other", name, "imagenet") == Path("/d/other/n01440764", name)
    assert image_path_for("/d/ImageNet2012/train", name, "flat") == Path("/d/ImageNet2012/train", name)
    assert image_path_for("/d/ImageNet2012/train", "plain.jpg") == Path("/d/ImageNet2012/train/plain.jpg")
    assert image_path_for("/d/ImageNet2012/train", "n0/n0_1.JPEG") == Path("/d/ImageNet2012/train/n0/n0_1.JPEG")
    (tmp_path / "n01440764").mkdir()
    assert image_path_for(tmp_path, name) == tmp_path / "n01440764" / name
    with pytest.raises(ValueError, match=r"layout must be one of"):
        image_path_for(tmp_path, name, "tree")


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(DataError, match=r"no such embedding index.*python -m retrieval embed"):
        open_index(tmp_path / "none")
    with pytest.raises(DataError, match=r"no embeddings found. Expected img_emb/img_emb_0000.npy"):
        open_index(tmp_path)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: _truncate(d / "img_emb/img_emb_10.npy"), r"img_emb_10.npy: cut off, 21 of 24 bytes"),
        (lambda d: (d / "img_emb/img_emb_2.npy").write_bytes(b"no"), r"img_emb_2.npy: not a readable .npy file"),
        (lambda d: np.save(d / "img_emb/img_emb_2.npy", np.zeros((5, 3))), r"float16 or float32, row by row"),
        (lambda d: np.save(d / "img_emb/img_emb_2.npy", np.zeros(5, np.float32)), r"expected \(n, D\) embeddings"),
        (
            lambda d: np.save(d / "img_emb/img_emb_10.npy", np.zeros((4, 2), np.float16)),
            r"img_emb_10.npy: embeddings of width 2, but img_emb_2.npy has 3",
        ),
        (
            lambda d: np.save(d / "img_emb/img_emb_2.npy", np.zeros((6, 3), np.float16)),
            r"metadata_2.parquet: describes 5 images, but img_emb_2.npy holds 6 embeddings",
        ),
        (
            lambda d: (d / "metadata/metadata_2.parquet").unlink(),
            r"metadata_2.parquet: metadata file not found \(1 of 2",
        ),
        (lambda d: _truncate(d / "metadata/metadata_10.parquet"), r"metadata_10.parquet: not a readable parquet file"),
        (
            lambda d: pq.write_table(pa.table({"x": list("abcde")}), d / "metadata/metadata_2.parquet"),
            r"has no column 'image_path'; found x",
        ),
        (lambda d: (d / "index.json").write_text("{}"), r"expected the description of an embedding folder"),
    ],
)
def test_damaged_folders(foreign, damage, message):
    damage(foreign)
    with pytest.raises(DataError, match=message):
        EmbeddingFolder(foreign)


def test_array_index_checks_its_parts():
    with pytest.raises(DataError, match=r"mine: expected \(n, D\) float16 or float32.*\(2, 3\) float64 and 2 names"):
        ArrayIndex(np.zeros((2, 3)), ["a", "b"], name="mine")
    with pytest.raises(DataError, match=r"\(2, 3\) float16 and 1 names"):
        ArrayIndex(np.zeros((2, 3), np.float16), ["a"])
