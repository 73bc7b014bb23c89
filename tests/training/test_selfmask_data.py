import numpy as np
import pytest
import torch
from PIL import Image

from pseudo_labels import rle
from training.selfmask_data import SelfMaskDataset, collate_samples, draw_square_geometry, normalise, read_pseudo_masks
from utils.errors import DataError
from utils.files import write_json


def write_world(folder, sizes=((20, 30), (33, 21), (16, 16), (40, 40))):
    """Noise pictures with a box each; returns their masks by name."""
    rng, masks = np.random.default_rng(0), {}
    for number, (height, width) in enumerate(sizes):
        name = f"{number}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
        mask = np.zeros((height, width), np.uint8)
        mask[3 : height // 2 + 3, 3 : width // 2 + 3] = 1
        masks[name] = rle.encode(mask)
    return masks


def test_sample_depends_on_seed_and_position_alone(tmp_path):
    masks = write_world(tmp_path)
    first, again = (SelfMaskDataset(tmp_path, masks, batch_size=2, image_size=32) for _ in range(2))
    for position in (5, 0, 3, 5):
        for a, b in zip(first[position], again[position], strict=True):
            assert np.array_equal(a, b)
    image, mask = first[0]
    assert image.shape == (32, 32, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (32, 32)
    assert mask.dtype == bool
    other = SelfMaskDataset(tmp_path, masks, batch_size=2, image_size=32, seed=1)
    assert any(not np.array_equal(first[i][0], other[i][0]) for i in range(4))
    assert not np.array_equal(first[0][0], first[4][0])  # the next epoch draws anew


def test_every_picture_occurs_once_per_epoch(tmp_path):
    dataset = SelfMaskDataset(tmp_path, write_world(tmp_path), batch_size=2)
    assert dataset.epoch_length == 4
    assert sorted(dataset._order.index(position) for position in range(4)) == [0, 1, 2, 3]


def test_empty_masks_are_left_out(tmp_path):
    masks = write_world(tmp_path)
    masks["1.png"] = rle.encode(np.zeros((33, 21)))
    dataset = SelfMaskDataset(tmp_path, masks, batch_size=1)
    assert dataset.names == ["0.png", "2.png", "3.png"]
    assert dataset.num_empty == 1


def test_all_masks_empty_is_told(tmp_path):
    write_world(tmp_path)
    with pytest.raises(DataError, match="all 2 pseudo-masks are empty, so there is nothing to learn from"):
        SelfMaskDataset(tmp_path, {f"{i}.png": rle.encode(np.zeros((4, 4))) for i in range(2)}, batch_size=1)


def test_missing_pictures_are_counted_and_named(tmp_path):
    masks = write_world(tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 pictures of the pseudo-mask file are not there \(first: 2.png\)"):
        SelfMaskDataset(tmp_path, masks, batch_size=1)


def test_reading_masks_tells_what_is_wrong(tmp_path):
    path = tmp_path / "masks.json"
    with pytest.raises(DataError, match="pseudo-mask file not found"):
        read_pseudo_masks(path)
    write_json(path, {})
    with pytest.raises(DataError, match="expected a JSON object of picture names and masks"):
        read_pseudo_masks(path)
    write_json(path, {"a.png": rle.encode(np.ones((2, 2))), "b.png": {"size": [2, 2]}})
    with pytest.raises(DataError, match=r"the mask of 'b\.png' is not a run-length code"):
        read_pseudo_masks(path)
    path.write_text('{"a.png": ')
    with pytest.raises(DataError, match="not valid JSON"):
        read_pseudo_masks(path)


def test_collation_drops_samples_without_object():
    image, full, empty = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4), bool), np.zeros((4, 4), bool)
    batch = collate_samples([(image, empty), (image + 1, full), (image, empty)])
    assert batch.images.shape == (1, 3, 4, 4)
    assert int(batch.images[0, 0, 0, 0]) == 1
    assert bool(batch.masks.all())
    batch = collate_samples([(image, empty), (image, empty)])
    assert len(batch.masks) == 1
    assert not batch.masks.any()


def test_draws_stay_in_range():
    rng = np.random.default_rng(0)
    small = [draw_square_geometry(rng, crop_size=64, scale_range=(0.1, 1.0)) for _ in range(50)]
    assert all(0.1 <= d.scale <= 1 and (d.top, d.left, d.pad_top, d.pad_left) == (0, 0, False, False) for d in small)
    assert {d.flip for d in small} == {True, False}
    large = [draw_square_geometry(rng, crop_size=64, scale_range=(1.5, 2.0)) for _ in range(50)]
    assert all(d.top + 64 <= int(64 * d.scale) and d.left + 64 <= int(64 * d.scale) for d in large)


def test_normalise_is_imagenet():
    pixels = normalise(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8))
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225])
