"""Samples of labelled pictures: what is decided, and that picture and labels stay together."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from datasets.geometric import GeometricDraws
from datasets.labelled_sample import LabelledDraws, draw_labelled, make_labelled_sample
from datasets.photometric import PhotometricDraws, PhotometricSettings

STILL = PhotometricSettings(jitter_probability=0, greyscale_probability=0, blur_probability=0)


def coded(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of flat 8-pixel tiles whose red level is the label of the tile."""
    labels = (np.arange(height)[:, None] // 8 * 5 + np.arange(width)[None] // 8) % 20
    image = np.stack([labels * 10, labels * 0 + 7, labels * 0 + 200], axis=-1).astype(np.uint8)
    return image, labels.astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (9, 5), (1, 1)])
def test_samples_have_one_size_and_labels_follow_the_picture(size: tuple[int, int]) -> None:
    image, labels = coded(*size)
    for seed in range(12):
        draws = draw_labelled(np.random.default_rng(seed), size, 48, scale_range=(0.5, 2.0), photometric=STILL)
        sample = make_labelled_sample(image, labels, draws, crop_size=48, ignore_index=255, blur_kernel=5)
        assert sample.image.shape == (48, 48, 3)
        assert sample.semantic.shape == (48, 48)
        assert sample.semantic.dtype == np.int16
        assert sample.instance_masks.shape == (0, 48, 48)
        known = sample.semantic != 255
        if min(size) > 8:  # away from the borders of tiles, the picture is the label
            agree = np.abs(sample.image[..., 0].astype(int) - 10 * sample.semantic) <= 1
            assert agree[known].mean() > 0.4  # 0.05 where they do not belong together
        rows = np.flatnonzero(known.any(axis=1))
        assert (rows[0], rows[-1]) == (0, len(rows) - 1)  # padding lies below


def test_padding_has_the_mean_colour_and_no_label() -> None:
    image, labels = coded(32, 32)
    geometric = GeometricDraws(0.5, False, False, 0, 0, flip=True)
    sample = make_labelled_sample(
        image, labels, LabelledDraws(geometric, PhotometricDraws()), crop_size=20, ignore_index=255, blur_kernel=3
    )
    assert (sample.semantic[16:] == 255).all()
    assert (sample.semantic[:, :4] == 255).all()  # flipped: the padding of the right side is on the left
    scaled = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    assert (sample.image[17] == scaled.reshape(-1, 3).mean(0).astype(np.uint8)).all()
    nearest = np.asarray(Image.fromarray(labels).resize((16, 16), Image.Resampling.NEAREST))
    assert np.array_equal(sample.semantic[:16, 4:], nearest[:, ::-1])


def test_draws_are_spread_over_their_ranges() -> None:
    drawn = [
        draw_labelled(np.random.default_rng(i), (100, 80), 60, scale_range=(0.5, 2.0), photometric=STILL).geometric
        for i in range(400)
    ]
    scales = np.array([d.scale for d in drawn])
    assert 0.5 <= scales.min() < 0.55
    assert 1.9 < scales.max() <= 2.0
    assert 0.4 < np.mean([d.flip for d in drawn]) < 0.6
    assert all(d.top <= max(int(100 * d.scale) - 60, 0) for d in drawn)
    assert not any(d.pad_top or d.pad_left for d in drawn)
    assert (
        draw_labelled(np.random.default_rng(3), (100, 80), 60, scale_range=(0.5, 2.0), photometric=STILL).photometric
        == PhotometricDraws()
    )


def test_a_picture_and_labels_of_other_sizes_are_a_mistake() -> None:
    image, labels = coded(16, 16)
    draws = LabelledDraws(GeometricDraws(1.0, False, False, 0, 0, False), PhotometricDraws())
    with pytest.raises(ValueError, match="cannot be one sample"):
        make_labelled_sample(image, labels[:8], draws, crop_size=8, ignore_index=255, blur_kernel=3)
