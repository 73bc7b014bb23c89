"""Embedding: the right numbers, parts that survive a kill, bad pictures listed, changed folders noticed."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import retrieval.embed
from networks.clip import create_clip
from retrieval.embed import embed_images
from retrieval.index import open_index
from retrieval.sources import list_sources
from tests.processes import run_process, run_ranks
from tests.retrieval.conftest import TINY
from utils.errors import DataError, UnreadableImageError, UserError


def _rows(folder):
    return np.concatenate([block for _, block in open_index(folder).blocks(100)])


def _contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.npy")) + sorted(folder.rglob("*.parquet"))}


def _embed(sources, output, clip, **options):
    settings = {"model_name": "tiny", "batch_size": 3, "num_workers": 0, "part_size": 5} | options
    return embed_images(sources, output, clip, **settings)


def test_embeddings_are_those_of_the_clip(make_pictures, tmp_path, clip):
    folder = make_pictures(12)
    report = _embed([folder], tmp_path / "index", clip)
    assert report == (12, 0, 3, 0)
    index = open_index(tmp_path / "index")
    paths = index.paths(range(12))
    assert paths == [str(folder / f"picture_{i}.jpg") for i in range(12)]
    with torch.inference_mode():
        pixels = torch.stack([clip.preprocess(Image.open(path)) for path in paths])
        expected = torch.nn.functional.normalize(clip.encode_image(pixels), dim=1).numpy()
    rows = _rows(tmp_path / "index")
    assert rows.dtype == np.float16
    np.testing.assert_allclose(rows.astype(np.float32), expected, atol=1e-3)
    assert (tmp_path / "index" / "unreadable.txt").read_text(encoding="utf-8") == ""


def test_complete_parts_are_kept_and_workers_change_nothing(make_pictures, tmp_path, clip):
    folder = make_pictures(12)
    _embed([folder], tmp_path / "a", clip)
    before = _contents(tmp_path / "a")
    assert _embed([folder], tmp_path / "a", clip) == (12, 0, 0, 3)
    (tmp_path / "a" / "parts" / "part_0001.json").unlink()
    assert _embed([folder], tmp_path / "a", clip) == (12, 0, 1, 2)
    _embed([folder], tmp_path / "b", clip, num_workers=2)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b") == before


def _tiny():
    torch.manual_seed(0)
    return create_clip(TINY).eval()


def _embed_and_die(folder, output):
    write = retrieval.embed.write_part

    def write_then_die(folder, number, *arguments, **options):
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(folder, number, *arguments, **options)

    retrieval.embed.write_part = write_then_die
    _embed([folder], output, _tiny())


def test_killed_run_goes_on_with_the_same_result(make_pictures, tmp_path):
    folder = make_pictures(17)
    assert run_process(_embed_and_die, folder, tmp_path / "killed") == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "parts").glob("*.json")}
    assert len(done) == 2
    with pytest.raises(DataError, match=r"not complete \(2 of 4 parts are there\)"):
        open_index(tmp_path / "killed")
    assert _embed([folder], tmp_path / "killed", _tiny()) == (17, 0, 2, 2)
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())
    _embed([folder], tmp_path / "whole", _tiny())
    assert _contents(tmp_path / "killed") == _contents(tmp_path / "whole")


def _embed_as_rank(folder, output):
    torch.distributed.init_process_group("gloo")
    _embed([folder], output, _tiny())


def test_ranks_share_the_parts(make_pictures, tmp_path):
    folder = make_pictures(12)
    assert run_ranks(_embed_as_rank, 2, folder, tmp_path / "two") == [0, 0]
    _embed([folder], tmp_path / "one", _tiny())
    assert _contents(tmp_path / "two") == _contents(tmp_path / "one")


def _spoil(folder):
    (folder / "a_text.jpg").write_bytes(b"no picture")
    whole = (folder / "picture_0.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (200_000, 1)).save(folder / "line.png")
    Image.new("CMYK", (9, 30)).save(folder / "print.jpg")
    Image.new("P", (30, 9)).save(folder / "palette.png")


def test_bad_pictures_are_listed_and_counted(make_pictures, tmp_path, clip):
    folder = make_pictures(5)
    _spoil(folder)
    report = _embed([folder], tmp_path / "index", clip)
    assert (report.num_embedded, report.num_unreadable) == (8, 3)
    lines = (tmp_path / "index" / "unreadable.txt").read_text(encoding="utf-8").splitlines()
    reasons = dict(line.split("\t") for line in lines)
    assert "damaged or not a picture" in reasons["a_text.jpg"]
    assert "damaged or not a picture" in reasons["cut.jpg"]
    assert "too narrow (1x200000 pixels)" in reasons["line.png"]
    names = [os.path.basename(path) for path in open_index(tmp_path / "index").paths(range(8))]
    assert {"dot.png", "print.jpg", "palette.png"} <= set(names)
    assert not {"a_text.jpg", "cut.jpg", "line.png"} & set(names)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_strict_stops_at_a_bad_picture(make_pictures, tmp_path, clip, num_workers):
    folder = make_pictures(2)
    _spoil(folder)
    with pytest.raises(UnreadableImageError, match=r"a_text.jpg: damaged or not a picture"):
        _embed([folder], tmp_path / "index", clip, strict=True, num_workers=num_workers)


def test_one_picture(make_pictures, tmp_path, clip):
    folder = make_pictures(1)
    assert _embed([folder / "picture_0.jpg"], tmp_path / "index", clip, batch_size=256).num_embedded == 1
    assert open_index(tmp_path / "index").paths([0]) == [str(folder / "picture_0.jpg")]


def test_no_picture_or_none_readable(tmp_path, clip):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no pictures found in .*empty"):
        _embed([tmp_path / "empty"], tmp_path / "index", clip)
    assert not (tmp_path / "index" / "index.json").exists()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"x.jpg: none of the 1 pictures is readable, this one because: "):
        _embed([tmp_path / "bad"], tmp_path / "index2", clip)


def test_changed_folder_is_refused_or_extended(make_pictures, tmp_path, clip):
    folder, index = make_pictures(7), tmp_path / "index"
    _embed([folder], index, clip)
    first = _rows(index)
    make_pictures(1, "pictures/added")
    with pytest.raises(
        UserError, match=r"begun for other pictures \(7 of .*1 new pictures and 0 that are gone.*extend"
    ):
        _embed([folder], index, clip)
    report = _embed([folder], index, clip, extend=True)
    assert report == (8, 0, 1, 1)  # the part that was not full is made again
    assert np.array_equal(_rows(index)[:7], first)
    assert open_index(index).paths([7]) == [str(folder / "added" / "picture_0.jpg")]
    (folder / "picture_2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 that are gone, such as picture_2.jpg"):
        _embed([folder], index, clip, extend=True)


def test_another_clip_is_refused(make_pictures, tmp_path, clip):
    folder = make_pictures(2)
    _embed([folder], tmp_path / "index", clip)
    with pytest.raises(UserError, match=r"begun with the CLIP 'tiny' and 5 pictures per part, now 'ViT-B/16'"):
        _embed([folder], tmp_path / "index", clip, model_name="ViT-B/16")


def test_network_that_gives_no_numbers(make_pictures, tmp_path):
    clip = _tiny()
    with torch.no_grad():
        clip.visual.proj.fill_(float("nan"))
    with pytest.raises(UserError, match=r"not finite \(part 0\). Use precision=fp32"):
        _embed([make_pictures(2)], tmp_path / "index", clip)


def test_two_processes_in_one_folder(make_pictures, tmp_path, clip):
    from utils.files import RunLock

    with RunLock(tmp_path / "index"), pytest.raises(UserError, match=r"this folder is in use by"):
        _embed([make_pictures(1)], tmp_path / "index", clip)


def test_full_disk(make_pictures, tmp_path, clip, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval.parts.pq.write_table", full)
    with pytest.raises(UserError, match=r"metadata_0000.parquet: the disk is full"):
        _embed([make_pictures(2)], tmp_path / "index", clip)
    assert not list((tmp_path / "index").rglob("*.partial"))
    monkeypatch.undo()
    assert _embed([tmp_path / "pictures"], tmp_path / "index", clip).num_embedded == 2


# Other sources


def _write_shard(path, count, *, first=0):
    rng = np.random.default_rng(first)
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(buffer, "JPEG")
            members = {
                "jpg": buffer.getvalue(),
                "txt": f"caption {number}".encode(),
                "json": json.dumps({"url": f"http://x/{number}"}).encode(),
            }
            for ending, data in members.items():
                info = tarfile.TarInfo(f"{number:05d}.{ending}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


def test_webdataset_shards(tmp_path, clip):
    shards = tmp_path / "shards"
    shards.mkdir()
    _write_shard(shards / "00000.tar", 4)
    _write_shard(shards / "00001.tar", 3, first=4)
    report = _embed([shards], tmp_path / "index", clip, num_workers=1)
    assert report.num_embedded == 7
    with tarfile.open(shards / "00000.tar") as archive:
        archive.extractall(tmp_path / "unpacked" / "00000")
    _embed([tmp_path / "unpacked"], tmp_path / "plain", clip)
    assert np.array_equal(_rows(tmp_path / "index")[:3], _rows(tmp_path / "plain")[:3])
    import pyarrow.parquet as pq

    table = pq.read_table(tmp_path / "index" / "metadata" / "metadata_0000.parquet").to_pydict()
    assert table["image_path"][4] == "00001/00004.jpg"
    assert table["caption"][4] == "caption 4"
    assert table["url"][4] == "http://x/4"


def test_shard_that_is_cut_off(tmp_path, clip):
    path = tmp_path / "00000.tar"
    _write_shard(path, 4)
    path.write_bytes(path.read_bytes()[:5000])
    report = _embed([path], tmp_path / "index", clip)
    assert 0 < report.num_embedded < 4
    assert "not a whole tar file" in (tmp_path / "index" / "unreadable.txt").read_text(encoding="utf-8")
    with pytest.raises(DataError, match=r"00000.tar: not a whole tar file"):
        _embed([path], tmp_path / "strict", clip, strict=True)
    path.write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(DataError, match=r"no pictures found in .*00000.tar: not a whole tar file"):
        list_sources([path])


def test_lists_globs_and_what_cannot_be_read(make_pictures, tmp_path):
    folder = make_pictures(3)
    (tmp_path / "some.txt").write_text("pictures/picture_2.jpg\n\npictures/picture_0.jpg\n", encoding="utf-8")
    listed = list_sources([tmp_path / "some.txt"])
    assert [os.path.basename(picture.path) for picture in listed.pictures] == ["picture_2.jpg", "picture_0.jpg"]
    assert len(list_sources([f"{folder}/*.jpg"]).pictures) == 3
    both = list_sources([folder, folder / "picture_1.jpg"])
    assert len(both.pictures) == 3
    assert both.root == ""
    with pytest.raises(DataError, match=r"no such file or folder"):
        list_sources([tmp_path / "none"])
    with pytest.raises(DataError, match=r"x.tar.gz: compressed tar files cannot be read at random"):
        list_sources([tmp_path / "x.tar.gz"])
    with pytest.raises(DataError, match=r"x.tar: no such tar file"):
        list_sources([tmp_path / "x.tar"])
