"""Lazy synthesis equals augmenting every picture whole and pasting afterwards; hidden pictures are never opened."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.geometric import GeometricDraws, crop_image, crop_mask, draw_geometric, pad_crop, plan_crop
from datasets.photometric import PhotometricDraws, apply_photometric, draw_photometric
from datasets.synthesis import Source, find_objects, plan_pastes, synthesise_sample

SIDE, IGNORE, KERNEL = 40, 255, 5
AS_IT_IS = GeometricDraws(1.0, pad_top=False, pad_left=False, top=0, left=0, flip=False)


def draw_sources(rng: np.random.Generator, num_sources: int) -> list[Source]:
    sources = []
    for label in range(1, num_sources + 1):
        size = tuple(rng.integers(4, 90, 2).tolist())
        image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        rows, columns = np.ogrid[: size[0], : size[1]]
        centre, radius = rng.uniform(0, 1, 2) * size, rng.uniform(0, 0.8) * min(size)
        mask = (np.hypot(rows - centre[0], columns - centre[1]) < radius).astype(np.uint8)
        geometric = draw_geometric(rng, size, SIDE, (0.1, 1.0))
        sources.append(Source(lambda image=image: image, mask, label, geometric, draw_photometric(rng)))
    return sources


def whole_pictures(sources: list[Source]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every picture cropped and coloured whole, with its label map."""
    results = []
    for source in sources:
        plan = plan_crop(source.mask.shape, source.geometric, SIDE)
        content, fill = crop_image(source.read_image(), plan)
        image = apply_photometric(pad_crop(np.asarray(content), plan, fill), source.photometric, blur_kernel=KERNEL)
        mask = crop_mask(source.mask, plan).astype(np.int16) * source.label
        results.append((image, pad_crop(mask, plan, IGNORE)))
    return results


def plain_sample(sources: list[Source], place) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    pictures = whole_pictures(sources)
    image, semantic = pictures[0][0].copy(), pictures[0][1].copy()
    instance = ((semantic > 0) & (semantic < IGNORE)).astype(int)
    for number, (pixels, labels) in enumerate(pictures[1:], start=2):
        inside = (labels > 0) & (labels < IGNORE)
        if not inside.any():
            continue
        rows, columns = np.nonzero(inside)
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        y, x = place(SIDE - (bottom - top), SIDE - (right - left))
        for row in range(top, bottom):
            for column in range(left, right):
                if inside[row, column]:
                    target = row - top + y, column - left + x
                    image[target], semantic[target], instance[target] = pixels[row, column], labels[row, column], number
    return image, semantic, np.stack([instance == n for n in range(1, len(sources) + 1)])


@pytest.mark.parametrize("seed", range(12))
def test_sample_equals_the_plain_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sources = draw_sources(rng, int(rng.integers(1, 7)))
    offsets = rng.uniform(size=(len(sources), 2))

    def placer():
        numbers = iter(offsets)
        return lambda rows, columns: tuple((next(numbers) * (rows + 1, columns + 1)).astype(int))

    sample = synthesise_sample(sources, crop_size=SIDE, ignore_index=IGNORE, blur_kernel=KERNEL, place=placer())
    image, semantic, masks = plain_sample(sources, placer())
    assert np.array_equal(sample.image, image)
    assert np.array_equal(sample.semantic, semantic)
    assert np.array_equal(sample.instance_masks, masks)
    assert sample.semantic.dtype == np.int16
    assert sample.category_ids == tuple(range(1, len(sources) + 1))


def solid(colour: int, mask: np.ndarray, label: int, opened: list[int] | None = None) -> Source:
    def read() -> np.ndarray:
        if opened is not None:
            opened.append(label)
        return np.full((*mask.shape, 3), colour, np.uint8)

    return Source(read, mask, label, AS_IT_IS, PhotometricDraws())


def test_covered_and_empty_objects_are_never_opened() -> None:
    full, empty, opened = np.ones((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.uint8), []
    sources = [
        solid(10, full, 1, opened),
        solid(20, full, 2, opened),
        solid(30, empty, 3, opened),
        solid(40, full, 4, opened),
    ]
    sample = synthesise_sample(
        sources, crop_size=SIDE, ignore_index=IGNORE, blur_kernel=KERNEL, place=lambda rows, columns: (0, 0)
    )
    # The last row and column of an object are lost: there the canvas stays.
    assert opened == [1, 4]
    assert (sample.image[:-1, :-1] == 40).all()
    assert (sample.image[-1] == 10).all()
    assert sample.instance_masks.any(axis=(1, 2)).tolist() == [True, False, False, True]
    assert sample.instance_masks[0].sum() == 2 * SIDE - 1


def test_all_masks_empty_gives_background() -> None:
    empty = np.zeros((SIDE, SIDE), np.uint8)
    sources = [solid(number, empty, number) for number in (1, 2, 3)]
    sample = synthesise_sample(
        sources, crop_size=SIDE, ignore_index=IGNORE, blur_kernel=KERNEL, place=lambda rows, columns: (0, 0)
    )
    assert not sample.semantic.any()
    assert not sample.instance_masks.any()
    assert (sample.image == 1).all()


def test_padding_of_the_canvas_is_ignored_and_of_pasted_pictures_is_not() -> None:
    canvas = solid(9, np.zeros((10, 20), np.uint8), 1)
    pasted = solid(8, np.ones((10, 10), np.uint8), 2)
    sample = synthesise_sample(
        [canvas, pasted], crop_size=SIDE, ignore_index=IGNORE, blur_kernel=KERNEL, place=lambda rows, columns: (30, 30)
    )
    expected = np.full((SIDE, SIDE), IGNORE)
    expected[:10, :20] = 0
    expected[30:39, 30:39] = 2
    assert np.array_equal(sample.semantic, expected)


def test_a_one_pixel_object_asks_for_a_place_but_pastes_nothing() -> None:
    dot = np.zeros((8, 8), bool)
    dot[3, 4] = True
    asked = []
    (paste,) = plan_pastes([dot], lambda rows, columns: asked.append((rows, columns)) or (0, 0))
    assert asked == [(8, 8)]
    assert not paste.mask.size


def test_find_objects_leaves_out_background_and_ignore() -> None:
    assert find_objects(np.array([0, 1, 80, 255]), ignore_index=255).tolist() == [False, True, True, False]


def test_no_source_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        synthesise_sample([], crop_size=8, ignore_index=255, blur_kernel=1, place=lambda rows, columns: (0, 0))
