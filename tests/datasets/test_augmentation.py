"""Decisions follow the published distributions; their application gives what Pillow, torchvision and OpenCV give."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

from datasets.geometric import (
    GeometricDraws,
    crop_image,
    crop_mask,
    draw_geometric,
    nearest_indices,
    pad_crop,
    plan_crop,
    scaled_size,
)
from datasets.kernels import resize_bilinear, shift_hue
from datasets.photometric import (
    JITTER_STEPS,
    Jitter,
    PhotometricDraws,
    PhotometricSettings,
    adjust_colours,
    apply_photometric,
    draw_photometric,
)


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def pillow_hue(image: np.ndarray, shift: int) -> np.ndarray:
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    hue = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))
    return np.asarray(Image.merge("HSV", (hue, saturation, value)).convert("RGB"))


def test_hue_shift_equals_pillow_for_every_colour() -> None:
    colours = np.arange(1 << 24, dtype="<u4").view(np.uint8).reshape(4096, 4096, 4)[..., :3].copy()
    assert np.array_equal(shift_hue(colours, 51), pillow_hue(colours, 51))
    for shift in (-255, -30, 0, 254):
        part = colours[::64, ::64]
        assert np.array_equal(shift_hue(part, shift), pillow_hue(part, shift))


def test_resize_equals_pillow() -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (1, 50), (50, 1), (40, 20), (41, 20), (500, 3)]
    sizes += [tuple(rng.integers(1, 200, 2).tolist()) for _ in range(60)]
    for height, width in sizes:
        scale = rng.uniform(0.05, 1.4)
        size = scaled_size((height, width), scale)
        image = noise(rng, height, width)
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        assert np.array_equal(resize_bilinear(image, size), expected), (height, width, size)


def test_nearest_indices_equal_torch() -> None:
    rng = np.random.default_rng(0)
    for source, target in [(1, 1), (1, 7), (7, 1), *rng.integers(1, 700, (60, 2)).tolist()]:
        line = torch.arange(source, dtype=torch.float32)[None, None]
        expected = torch.nn.functional.interpolate(line, size=target, mode="nearest")[0, 0].long().numpy()
        assert np.array_equal(nearest_indices(target, source), expected), (source, target)


def test_padding_sides_have_the_skewed_probabilities() -> None:
    rng = np.random.default_rng(0)
    draws = [draw_geometric(rng, (50, 60), 384, (0.1, 1.0)) for _ in range(20000)]
    corners = np.array([2 * draw.pad_top + draw.pad_left for draw in draws])
    shares = np.bincount(corners, minlength=4) / len(draws)
    # bottom right, bottom left, top right, top left
    assert shares == pytest.approx([0.421875, 0.1875, 0.140625, 0.25], abs=0.015)


def test_scale_offset_and_flip_are_uniform() -> None:
    rng = np.random.default_rng(1)
    draws = [draw_geometric(rng, (100, 200), 64, (0.5, 1.0)) for _ in range(8000)]
    scales = np.array([draw.scale for draw in draws])
    assert np.quantile(scales, [0.25, 0.5, 0.75]) == pytest.approx([0.625, 0.75, 0.875], abs=0.02)
    assert np.mean([draw.flip for draw in draws]) == pytest.approx(0.5, abs=0.02)
    # 200 * scale - 64 columns are free; the offset is uniform over all of them, both ends included.
    relative = np.array([draw.left / (int(200 * draw.scale) - 64) for draw in draws])
    assert relative.mean() == pytest.approx(0.5, abs=0.02)
    assert relative.min() == 0
    assert relative.max() == 1


def test_photometric_draws_have_the_published_distribution() -> None:
    rng = np.random.default_rng(2)
    draws = [draw_photometric(rng) for _ in range(10000)]
    jitters = [draw.jitter for draw in draws if draw.jitter is not None]
    assert len(jitters) / len(draws) == pytest.approx(0.8, abs=0.015)
    assert np.mean([draw.greyscale for draw in draws]) == pytest.approx(0.2, abs=0.015)
    sigmas = np.array([draw.blur_sigma for draw in draws if draw.blur_sigma is not None])
    assert len(sigmas) / len(draws) == pytest.approx(0.5, abs=0.02)
    assert (sigmas.min(), sigmas.max()) == pytest.approx((0.1, 2.0), abs=0.01)
    for name, low, high in (
        ("brightness", 0.2, 1.8),
        ("contrast", 0.2, 1.8),
        ("saturation", 0.2, 1.8),
        ("hue", -0.2, 0.2),
    ):
        values = np.array([getattr(jitter, name) for jitter in jitters])
        assert (values.min(), values.max()) == pytest.approx((low, high), abs=0.01)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.02)
    assert len({jitter.order for jitter in jitters}) == 24


def test_blur_kernel_width_is_a_tenth_of_the_side_and_odd() -> None:
    settings = PhotometricSettings()
    assert [settings.kernel_width(side) for side in (384, 48, 40, 10, 1)] == [39, 5, 5, 1, 1]
    assert PhotometricSettings(blur_kernel=7).kernel_width(384) == 7


def plain_photometric(image: np.ndarray, draws: PhotometricDraws, kernel: int) -> np.ndarray:
    picture = Image.fromarray(image)
    if draws.jitter is not None:
        for step in draws.jitter.order:
            picture = getattr(tv, f"adjust_{step}")(picture, getattr(draws.jitter, step))
    if draws.greyscale:
        picture = tv.to_grayscale(picture, num_output_channels=3)
    pixels = np.array(picture)
    return pixels if draws.blur_sigma is None else cv2.GaussianBlur(pixels, (kernel, kernel), draws.blur_sigma)


def test_photometric_equals_torchvision_and_opencv() -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        image = noise(rng, *rng.integers(5, 60, 2))
        draws = draw_photometric(rng)
        assert np.array_equal(apply_photometric(image, draws, blur_kernel=7), plain_photometric(image, draws, 7))


@pytest.mark.parametrize("order", [("contrast", "hue"), ("hue", "contrast"), ("brightness", "saturation")])
def test_surround_and_kept_part_change_nothing(order: tuple[str, str]) -> None:
    rng = np.random.default_rng(4)
    rest = tuple(step for step in JITTER_STEPS if step not in order)
    draws = PhotometricDraws(Jitter((*order, *rest), 0.7, 1.6, 1.4, -0.15), greyscale=False)
    image, fill = noise(rng, 20, 30), (200, 30, 90)
    padded = np.empty((50, 40, 3), np.uint8)
    padded[:] = fill
    padded[5:25, 8:38] = image
    expected = plain_photometric(padded, draws, 1)
    num_fill = 50 * 40 - 20 * 30
    part, colour = adjust_colours(Image.fromarray(image), draws, fill=fill, num_fill=num_fill, keep=(3, 2, 13, 18))
    assert np.array_equal(np.asarray(part), expected[7:23, 11:21])
    assert colour == tuple(expected[0, 0])


def test_photometric_refuses_other_arrays() -> None:
    with pytest.raises(ValueError, match=r"expected an RGB picture, uint8 \(H, W, 3\), got float32"):
        apply_photometric(np.zeros((4, 4, 3), np.float32), PhotometricDraws(), blur_kernel=3)
    with pytest.raises(ValueError, match="odd, got 4"):
        apply_photometric(np.zeros((4, 4, 3), np.uint8), PhotometricDraws(blur_sigma=1.0), blur_kernel=4)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (97, 64), (64, 64), (130, 31)])
def test_crop_equals_pad_crop_flip_of_the_whole_picture(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    side = 48
    for _ in range(8):
        image = noise(rng, *size)
        mask = rng.integers(0, 2, size).astype(np.uint8)
        draws = draw_geometric(rng, size, side, (0.01, 1.3))
        height, width = scaled_size(size, draws.scale)
        scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        rows, columns = max(side - height, 0), max(side - width, 0)
        pad = ((rows, 0) if draws.pad_top else (0, rows), (columns, 0) if draws.pad_left else (0, columns))
        fill = scaled.mean(axis=(0, 1)).astype(np.uint8)
        padded = np.stack([np.pad(scaled[..., c], pad, constant_values=fill[c]) for c in range(3)], axis=-1)
        scaled_mask = mask[nearest_indices(height, size[0])][:, nearest_indices(width, size[1])]
        padded_mask = np.pad(scaled_mask, pad, constant_values=9)
        window = np.s_[draws.top : draws.top + side, draws.left : draws.left + side]
        expected, expected_mask = padded[window], padded_mask[window]
        if draws.flip:
            expected, expected_mask = expected[:, ::-1], expected_mask[:, ::-1]
        plan = plan_crop(size, draws, side)
        content, colour = crop_image(image, plan)
        assert np.array_equal(pad_crop(np.asarray(content), plan, colour), expected)
        assert np.array_equal(pad_crop(crop_mask(mask, plan), plan, 9), expected_mask)


def test_tiny_scale_keeps_one_pixel() -> None:
    assert scaled_size((5, 9), 0.1) == (1, 1)
    plan = plan_crop((5, 9), GeometricDraws(0.1, True, True, 0, 0, False), 8)
    content, _ = crop_image(np.full((5, 9, 3), 77, np.uint8), plan)
    assert content.size == (1, 1)


def test_offsets_outside_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match=r"crop offset 3 is outside 0\.\.2 for a side of 10 and a crop of 8"):
        plan_crop((10, 10), GeometricDraws(1.0, True, True, 3, 0, False), 8)
