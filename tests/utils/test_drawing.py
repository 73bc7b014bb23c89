"""Legends: every category with its colour and a name that differs from the others, however many there are."""

from __future__ import annotations

import numpy as np
import pytest

from utils.drawing import legend, palette


def shows(image: np.ndarray, colour: np.ndarray) -> int:
    return int((image == colour).all(axis=2).sum())


@pytest.mark.parametrize("number", [1, 4, 20, 21, 80, 919])
def test_every_colour_has_a_square(number: int) -> None:
    colours = palette(number + 1)[1:]
    image = legend([f"category {i}" for i in range(number)], colours, first=1)
    assert image.dtype == np.uint8
    assert (image[[0, -1]] == 255).all()
    assert (image[:, [0, -1]] == 255).all()  # nothing is cut off
    for colour in colours[:: max(1, number // 20)]:
        assert shows(image, colour) >= 15 * 15
    height, width, _ = image.shape
    assert number <= 20 or 0.4 < height / width < 2


def test_names_and_numbers_are_written() -> None:
    colours = palette(3)
    images = [legend(names, colours) for names in (["sky", "road", "elephant"], ["sky", "roof", "elephant"])]
    assert images[0].shape == images[1].shape
    changed = (images[0] != images[1]).any(axis=2)
    rows = np.flatnonzero(changed.any(axis=1))
    height = len(changed)
    assert height / 3 < rows.min() + 8 < rows.max() < 2 * height / 3  # in the second row alone
    assert (legend(["sky"], colours[:1], first=1) != legend(["sky"], colours[:1], first=2)).any()


def test_long_foreign_and_no_names() -> None:
    wide = legend(["a name of very many letters that goes on and on", "x"], palette(2))
    assert wide.shape[1] > 300
    assert (wide[:, -3:] == 255).all()
    colours = palette(2)[1:]
    accents, boxes = legend(["\u00e9"], colours), legend(["\U0010fffd"], colours)
    assert accents.shape != boxes.shape or (accents != boxes).any()  # letters, not the square of unknown ones
    assert (legend(["two\nlines"], colours) == legend(["two lines"], colours)).all()
    assert (legend([], palette(0)) == 255).all()
