"""Image archives: written, read, checked; and the whole retrieval stage on a small CLIP."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from networks.text import encode_prompt_ensemble
from retrieval.__main__ import main
from retrieval.archive import read_archive, retrieve_archive, retrieve_images, write_archive
from retrieval.index import open_index
from retrieval.prompts import load_templates
from utils.errors import ConfigError, DataError, UserError
from utils.files import read_json

NAMES = ["background", "cat", "dog"]


@pytest.fixture
def stored(tmp_path):
    """An archive of two categories with existing files."""
    for name in "abc":
        (tmp_path / f"{name}.jpg").write_bytes(b"")
    path = tmp_path / "archive.json"
    images = {name: tmp_path / f"{name}.jpg" for name in "abc"}
    write_archive(path, {"cat": [images["a"], images["b"]], "dog": [images["c"], images["a"], images["c"]]})
    return path


def test_written_and_read(stored, tmp_path):
    found = read_archive(stored, categories=["background", "dog", "cat"])
    assert list(found) == ["dog", "cat"]
    assert found["cat"] == [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    assert len(found["dog"]) == 3
    assert read_archive(stored, categories=NAMES, num_images=1)["dog"] == [tmp_path / "c.jpg"]
    assert list(read_archive(stored, categories=["cat"])) == ["cat"]


def test_other_categories_are_refused_with_the_nearest_name(stored):
    with pytest.raises(DataError) as caught:
        read_archive(stored, categories=["background", "cat", "dogs", "zebra"])
    text = str(caught.value)
    assert "made for other categories, 2 of 3 are not in it" in text
    assert "missing: 'dogs' (did you mean 'dog'?)" in text
    assert "missing: 'zebra'\n" in text
    assert "not among your categories: 'dog'" in text


def test_missing_images_and_path_map(stored, tmp_path):
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in "abc":
        (tmp_path / f"{name}.jpg").rename(moved / f"{name}.jpg")
    with pytest.raises(DataError, match=r"3 of its 3 images do not exist, such as .*a\.jpg.*path_map") as caught:
        read_archive(stored, categories=NAMES)
    assert repr(str(tmp_path)) in str(caught.value)
    found = read_archive(stored, categories=NAMES, path_map={str(tmp_path): str(moved), "/other": "/x"})
    assert found["cat"][0] == moved / "a.jpg"
    (moved / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of its 3 images do not exist.*delete the archive to retrieve again"):
        read_archive(stored, categories=NAMES, path_map={str(tmp_path): str(moved)})
    assert len(read_archive(stored, categories=NAMES, check_files=False)["cat"]) == 2


def test_path_map_takes_whole_folder_names_and_the_longest(tmp_path):
    write_archive(tmp_path / "a.json", {"cat": ["/data/in/1.jpg", "/data/index/2.jpg", "/data/in/deep/3.jpg"]})
    path_map = {"/data/in": "/new", "/data/in/deep/": "/deeper"}
    found = read_archive(tmp_path / "a.json", categories=["cat"], path_map=path_map, check_files=False)
    assert [str(path) for path in found["cat"]] == ["/new/1.jpg", "/data/index/2.jpg", "/deeper/3.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"cat": ["a.jpg"', r"archive.json: image archive .* is not valid JSON.*line 1"),
        ('["cat"]', r"expected a JSON object of categories and lists of image paths"),
        ('{"cat": "a.jpg"}', r"expected a JSON object of categories"),
        ('{"cat": [1]}', r"expected a JSON object of categories"),
        ('{"cat": []}', r"no image was retrieved for 'cat'. Rename or remove"),
    ],
)
def test_broken_archives(tmp_path, content, message):
    path = tmp_path / "archive.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_archive(path, categories=["cat"])


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "a"], r"received 'a' more than once"), (["a", " "], r"an empty name"), (["background"], r"received none")],
)
def test_bad_names(stored, names, message):
    with pytest.raises(ConfigError, match=message):
        read_archive(stored, categories=names)


# The stage


def _retrieve(tmp_path, folder, clip, **options):
    settings = {
        "index_dirs": [folder],
        "clip": clip if callable(clip) and not hasattr(clip, "encode_text") else lambda: clip,
        "model_name": "tiny",
        "num_images": 3,
        "archive_path": tmp_path / "out" / "archive.json",
        "num_workers": 0,
    }
    return retrieve_archive(NAMES, **settings | options)


def test_whole_stage(make_pictures, tmp_path, clip):
    folder = make_pictures(7)
    found = _retrieve(tmp_path, folder, clip)
    assert list(found) == ["cat", "dog"]
    assert all(path.is_absolute() and path.is_file() for images in found.values() for path in images)
    with torch.inference_mode():
        text = encode_prompt_ensemble(clip, ["cat", "dog"], load_templates())
        pixels = torch.stack([clip.preprocess(Image.open(folder / f"picture_{i}.jpg")) for i in range(7)])
        scores = text @ torch.nn.functional.normalize(clip.encode_image(pixels), dim=1).half().float().T
    for row, name in enumerate(("cat", "dog")):
        best = scores[row].topk(4).values
        listed = [float(scores[row, int(path.stem.split("_")[1])]) for path in found[name]]
        assert listed == pytest.approx(best[:3].tolist(), abs=1e-6)


def test_existing_archive_is_used_without_a_clip(make_pictures, tmp_path, clip):
    folder = make_pictures(4)
    first = _retrieve(tmp_path, folder, clip)

    def no_clip():
        raise AssertionError("nothing has to be computed")

    assert _retrieve(tmp_path, folder, no_clip) == first
    assert _retrieve(tmp_path, folder, no_clip, num_images=2) == {name: paths[:2] for name, paths in first.items()}


def test_archive_made_with_other_settings_is_refused(make_pictures, tmp_path, clip):
    folder = make_pictures(4)
    _retrieve(tmp_path, folder, clip)
    with pytest.raises(UserError, match=r"made with other settings \(model: made with 'tiny', now 'ViT-B/16'\)"):
        _retrieve(tmp_path, folder, clip, model_name="ViT-B/16")
    with pytest.raises(UserError, match=r"templates: made with '85 templates.*now '1 templates"):
        _retrieve(tmp_path, folder, clip, templates=["a {}"])
    with pytest.raises(UserError, match=r"n_images: made with 3, now 4"):
        _retrieve(tmp_path, folder, clip, num_images=4)


def test_own_archive_grows_by_new_names_and_refuses_another_index(make_pictures, tmp_path, clip):
    one, two = make_pictures(5, "one"), make_pictures(5, "two")
    options = {"archive_path": tmp_path / "out" / "archive.json", "same_index": True}
    first = retrieve_two(tmp_path, one, clip, ["cat"], **options)
    both = retrieve_two(tmp_path, one, clip, ["bird", "cat"], **options)
    assert both["cat"] == first["cat"]
    assert both["bird"] == retrieve_two(tmp_path, one, clip, ["bird"], archive_path=tmp_path / "alone.json")["bird"]
    assert list(read_archive(options["archive_path"], categories=["cat", "bird"])) == ["cat", "bird"]
    fewer = retrieve_two(tmp_path, one, clip, ["cow"], num_images=1, **options)
    assert list(map(len, fewer.values())) == [1]
    assert list(map(len, read_archive(options["archive_path"], categories=["cat", "cow"]).values())) == [2, 2]
    with pytest.raises(UserError, match=r"index_dirs: made with \['.*one'\], now \['.*two'\]"):
        retrieve_two(tmp_path, two, clip, ["cat"], **options)
    with pytest.raises(DataError, match=r"made for other categories, 1 of 2 are not in it"):
        retrieve_two(tmp_path, one, clip, ["cat", "dog"], archive_path=options["archive_path"])  # a file that was given


def test_categories_with_the_same_pictures_are_told(make_pictures, tmp_path, clip, log_text):
    folder, options = make_pictures(12), {"path_map": {}}
    retrieve_two(tmp_path, folder, clip, ["bird"], archive_path=tmp_path / "a" / "a.json", num_images=6, **options)
    assert "Lower n_images" not in log_text.text
    retrieve_two(tmp_path, folder, clip, ["bird"], archive_path=tmp_path / "b" / "b.json", num_images=7, **options)
    assert "a category gets 7 of the 12 pictures of the index, so that retrieval hardly tells" in log_text.text
    assert "Lower n_images" in log_text.text
    log_text.clear()
    for _ in range(2):  # an archive that is only read is no better
        options["archive_path"] = tmp_path / "c" / "c.json"
        retrieve_two(tmp_path, folder, clip, ["bird", "cat"], num_images=10, **options)
    told = [record for record in log_text.records if record.levelname == "WARNING"]
    assert len(told) == 2
    assert all("retrieved pictures are listed for several categories" in record.getMessage() for record in told)


def retrieve_two(tmp_path, folder, clip, names, **options):
    settings = {"index_dirs": [folder], "model_name": "tiny", "num_images": 2, "num_workers": 0}
    return retrieve_archive(names, clip=lambda: clip, **settings | options)


def test_several_indices_a_pickle_among_them(make_pictures, tmp_path, clip):
    one, two = make_pictures(5, "one"), make_pictures(6, "two")
    together = _retrieve(tmp_path, one, clip, index_dirs=[one, two], num_images=11)
    assert sorted(together["cat"]) == sorted([*one.iterdir(), *two.iterdir()])
    rows = {}
    index = open_index(tmp_path / "out" / "embeddings_1_two")
    for path, row in zip(index.paths(range(6)), next(index.blocks(6))[1], strict=True):
        rows[path.rsplit("/", 1)[1]] = torch.from_numpy(row.astype("float32"))
    published = tmp_path / "filename_to_tiny_img_embedding.pkl"
    published.write_bytes(pickle.dumps(rows))
    again = _retrieve(
        tmp_path,
        one,
        clip,
        index_dirs=[one, two],
        num_images=11,
        embedding_paths=[tmp_path / "out" / "embeddings_0_one", published],
        archive_path=tmp_path / "again.json",
    )
    assert again == together


def test_retrieve_images_checks_its_rows(make_pictures):
    with pytest.raises(ValueError, match=r"2 categories but 1 text embeddings"):
        retrieve_images(NAMES, torch.zeros(1, 4), [], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index_dirs": []}, r"dir_train_dataset: expected at least one folder of pictures"),
        ({"embedding_paths": ["a", "b"]}, r"expected one path per folder in dir_train_dataset \(1\), received 2"),
        ({"embedding_paths": ["none.pkl"]}, r"none.pkl: embedding file not found. Download it"),
    ],
)
def test_missing_parts_of_the_index(make_pictures, tmp_path, clip, options, message):
    with pytest.raises(UserError, match=message):
        _retrieve(tmp_path, make_pictures(1), clip, **options)


def test_commands(make_pictures, tmp_path, clip, monkeypatch, capsys):
    folder = make_pictures(4)
    monkeypatch.setattr("networks.clip.load_clip", lambda name, device: clip)
    index, output = tmp_path / "index", tmp_path / "archive.json"
    embed = ["embed", str(folder), "--output", str(index), "--clip", "tiny", "--num-workers", "0", "--device", "cpu"]
    assert main(embed) == 0
    search = ["search", str(index), "--categories", "cat, dog", "--output", str(output), "--num-images", "2"]
    assert main([*search, "--clip", "tiny", "--device", "cpu"]) == 0
    assert {name: len(paths) for name, paths in read_json(output).items()} == {"cat": 2, "dog": 2}
    assert main(["check", str(output), "--categories", "cat,dog"]) == 0
    assert main(["check", str(output), "--categories", "cat,horse"]) == 2
    assert "missing: 'horse'" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.pkl")]) == 2
    assert "embedding file not found" in capsys.readouterr().err
