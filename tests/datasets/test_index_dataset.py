"""The index dataset: pure samples, distributions of the picks, labels, batches, and what goes wrong with files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.batch import collate_samples, normalise_images, unnormalise_image
from datasets.index_dataset import IndexDataset
from datasets.pictures import read_index_image
from utils.errors import DataError, UnreadableImageError
from utils.images import read_rgb
from utils.loader import load_batches

CATEGORIES = ["cat", "dog", "bird"]


def mask_path(path: Path, category: str = "") -> Path:
    return path.with_suffix(".npy")


@pytest.fixture
def archive(tmp_path: Path) -> dict[str, list[Path]]:
    rng = np.random.default_rng(0)
    paths = []
    for number, size in enumerate([(40, 60), (61, 33), (1, 1), (90, 90), (17, 120), (55, 55)]):
        path = tmp_path / f"{number}.jpg"
        smooth = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size[::-1])
        smooth.save(path, quality=90)
        np.save(mask_path(path), (rng.random((4, 4)) > 0.4).repeat(30, 0).repeat(30, 1)[: size[0], : size[1]])
        paths.append(path)
    for path in paths:
        size = Image.open(path).size[::-1]
        stored = np.load(mask_path(path))
        np.save(mask_path(path), np.resize(stored, size).astype(np.uint8))
    return {"cat": paths[:2], "dog": [paths[2], paths[3], paths[0]], "bird": paths[4:]}


def build(archive: dict[str, list[Path]], **settings) -> IndexDataset:
    settings = {"image_size": 32, "categories": CATEGORIES, **settings}
    return IndexDataset(archive, mask_path=mask_path, read_mask=np.load, **settings)


def equal(first, second) -> bool:
    return (
        np.array_equal(first.image, second.image)
        and np.array_equal(first.semantic, second.semantic)
        and np.array_equal(first.instance_masks, second.instance_masks)
        and first.category_ids == second.category_ids
    )


def test_a_sample_depends_on_seed_and_position_only(archive) -> None:
    dataset, again, other = build(archive), build(archive), build(archive, seed=1)
    samples = [dataset[i] for i in range(8)]
    assert all(equal(again[i], samples[i]) for i in (7, 0, 3, 3))
    assert not all(equal(other[i], samples[i]) for i in range(8))
    assert equal(dataset[10**7], again[10**7])  # any position, whatever the length
    with pytest.raises(IndexError, match="start at 0, got -1"):
        dataset[-1]


def test_worker_processes_change_nothing(archive) -> None:
    dataset = build(archive)
    batches = [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    alone = list(load_batches(dataset, batches, collate=collate_samples))
    shared = list(load_batches(dataset, batches, collate=collate_samples, num_workers=2))
    for first, second in zip(alone, shared, strict=True):
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.semantic, second.semantic)
        assert all(torch.equal(a, b) for a, b in zip(first.instance_masks, second.instance_masks, strict=True))


def test_number_of_objects_and_duplication_follow_the_recipe(archive) -> None:
    dataset = build(archive)
    rng = np.random.default_rng(0)
    samples = [dataset.draw_picks(rng) for _ in range(6000)]
    counts = np.bincount([len(picks) for picks in samples], minlength=11)[1:] / len(samples)
    assert counts == pytest.approx(np.full(10, 0.1), abs=0.02)
    many = [picks for picks in samples if len(picks) == 10]
    single = np.mean([len({pick.category for pick in picks}) == 1 for picks in many])
    assert single == pytest.approx(0.5, abs=0.07)
    plain = build(archive, random_duplicate=False)
    shares = Counter(pick.path.name for _ in range(3000) for pick in plain.draw_picks(rng))
    total = sum(shares.values())
    assert shares["0.jpg"] / total == pytest.approx(2 / 7, abs=0.02)  # listed twice
    assert shares["5.jpg"] / total == pytest.approx(1 / 7, abs=0.02)


def test_the_last_category_labels_a_picture_unless_the_drawn_one_is_asked_for(archive) -> None:
    dataset, drawn = build(archive), build(archive, label_rule="drawn")
    shared = archive["cat"][0]
    assert dataset.image_label(shared) == 2
    assert [dataset.pick(i).path for i in range(len(dataset))] == [*archive["cat"], *archive["dog"], *archive["bird"]]
    assert dataset.pick(4).category == "dog"
    assert dataset.pick(1, "bird").path == archive["bird"][1]
    flat = build(dict(archive), label_rule="drawn", random_duplicate=False)
    for position in range(20):
        picks = flat.draw_picks(np.random.default_rng((0, position)))
        assert flat[position].category_ids == tuple(CATEGORIES.index(pick.category) + 1 for pick in picks)
    assert drawn.label_rule == "drawn"


def test_labels_follow_the_categories_not_the_order_of_the_archive(archive) -> None:
    reordered = {name: archive[name] for name in ("bird", "cat", "dog")}
    dataset = build(reordered)
    assert dataset.image_label(archive["bird"][0]) == 3
    assert dataset.image_label(archive["cat"][0]) == 2  # also a dog, and dog is the last of its categories
    assert dataset.pick(0).category == "bird"


def test_batch_is_bytes_until_it_is_normalised(archive) -> None:
    dataset = build(archive, ignore_index=1000)
    batch = collate_samples([dataset[0], dataset[1]])
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    moved = batch.to("cpu").normalised()
    assert moved.semantic.dtype == torch.int64
    assert moved.images.dtype == torch.float32
    assert moved.images.is_contiguous(memory_format=torch.channels_last)
    assert set(moved.semantic.unique().tolist()) <= {0, 1, 2, 3, 1000}
    assert [len(masks) for masks in moved.instance_masks] == [len(ids) for ids in moved.category_ids]
    restored = unnormalise_image(moved.images[0].numpy()).astype(int)
    assert abs(restored - batch.images[0].permute(1, 2, 0).numpy()).max() <= 1


def test_normalisation_constants() -> None:
    white = normalise_images(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])


def test_fast_decode_changes_pixels_slightly_and_labels_not_at_all(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(
        (200, 160), Image.Resampling.BICUBIC
    )
    smooth.save(tmp_path / "a.jpg", quality=95)
    np.save(tmp_path / "a.npy", np.ones((160, 200), np.uint8))
    archive = {"cat": [tmp_path / "a.jpg"]}
    settings = {"categories": ["cat"], "scale_range": (0.2, 0.24), "max_num_objects": 3}
    exact, fast = build(archive, **settings), build(archive, fast_decode=True, **settings)
    for position in range(4):
        first, second = exact[position], fast[position]
        assert np.array_equal(first.semantic, second.semantic)
        assert abs(first.image.astype(int) - second.image).mean() < 6


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_index_pictures_are_read_as_pillow_reads_them(tmp_path: Path, mode: str, suffix: str) -> None:
    if mode == "CMYK" and suffix == ".png":
        mode = "P"
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((101, 67))
    path = tmp_path / f"a{suffix}"
    image.convert(mode).save(path)
    assert np.array_equal(read_index_image(path), read_rgb(path))


def test_progressive_jpeg_with_rotation_tag_is_read_as_stored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((64, 33))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", progressive=True, exif=exif)
    assert read_index_image(tmp_path / "a.jpg").shape == (33, 64, 3)
    assert np.array_equal(read_index_image(tmp_path / "a.jpg"), read_rgb(tmp_path / "a.jpg"))


def damage(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_is_named_also_from_a_worker(archive, num_workers: int) -> None:
    path = archive["dog"][1]
    damage(path)
    dataset = build({"dog": [path]}, categories=["dog"])
    with pytest.raises(UnreadableImageError, match=f"{path}.*cut off or damaged"):
        list(load_batches(dataset, [[0, 1]], collate=collate_samples, num_workers=num_workers))


def test_a_missing_picture_is_named(archive) -> None:
    path = archive["dog"][1]
    path.unlink()
    with pytest.raises(UnreadableImageError, match=rf"{path}: cannot be read \(No such file or directory\)"):
        build({"dog": [path]}, categories=["dog"])[0]


def test_a_mask_of_another_size_is_named_with_its_picture(archive) -> None:
    path = archive["dog"][1]
    np.save(mask_path(path), np.ones((10, 20), np.uint8))
    with pytest.raises(
        DataError, match=rf"{mask_path(path)}: this pseudo-mask is 10x20.*{path} is 90x90.*Delete the mask"
    ):
        build({"dog": [path]}, categories=["dog"])[0]


def test_categories_without_pictures_and_unknown_categories_are_named(archive) -> None:
    with pytest.raises(DataError, match=r"no retrieved picture for 2 of 5 categories: 'cow', 'hen'\. Retrieve again"):
        build({**archive, "hen": []}, categories=[*CATEGORIES, "cow", "hen"])
    with pytest.raises(DataError, match=r"1 categories that are not among the 2 of this run: 'bird'"):
        build(archive, categories=["cat", "dog"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale_range": (0.0, 1.0)}, r"0 < low <= high, got \(0.0, 1.0\)"),
        ({"max_num_objects": 0}, "at least 1"),
        ({"ignore_index": 3}, "above the 3 labels"),
        ({"label_rule": "first"}, "'last' or 'drawn', got 'first'"),
    ],
)
def test_impossible_settings_are_refused(archive, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(archive, **settings)
