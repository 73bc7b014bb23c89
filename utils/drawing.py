"""Colours and pictures of masks: palettes, painted labels, overlays, outlines, panels, legends. uint8 RGB always."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GOLDEN_RATIO = 0.618033988749895  # successive multiples are spread evenly over the hue circle
LEGEND_FONT_SIZE = 16


def palette(num_colours: int) -> np.ndarray:
    """Distinct colours for category ids, black for background (row 0): uint8, (num_colours, 3)."""
    colours = [(0, 0, 0)]
    for index in range(1, num_colours):
        hue = (index * GOLDEN_RATIO) % 1.0
        saturation, value = (0.85, 0.95) if index % 2 else (0.6, 0.75)
        colours.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value)))
    return np.array(colours[:num_colours], np.uint8).reshape(-1, 3)


def colourise(
    labels: np.ndarray, colours: np.ndarray, *, default: tuple[int, int, int] = (255, 255, 255)
) -> np.ndarray:
    """Paint a label map.

    Args:
        labels: whole numbers of any type, (H, W).
        colours: uint8 colour of each label, (C, 3).
        default: colour of labels outside the palette (an ignore index, say).

    Returns:
        uint8 RGB, (H, W, 3).
    """
    table = np.concatenate([np.asarray(colours, np.uint8).reshape(-1, 3), np.array([default], np.uint8)])
    known = (labels >= 0) & (labels < len(table) - 1)
    return table[np.where(known, labels, len(table) - 1)]


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, *, opacity: float = 0.5) -> np.ndarray:
    """Tint a picture (H, W, 3) by its label map (H, W); label 0 (background) stays untouched."""
    painted = colourise(labels, colours)
    mixed = np.round((1 - opacity) * image + opacity * painted).astype(np.uint8)
    return np.where((labels != 0)[..., None], mixed, image)


def outline(image: np.ndarray, mask: np.ndarray, colour: Sequence[int], *, thickness: int = 2) -> np.ndarray:
    """Draw the inner border of a bool mask (H, W) on a copy of a picture (H, W, 3)."""
    inside = mask.astype(bool)
    core = inside
    for _ in range(thickness):
        padded = np.pad(core, 1)
        core = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    drawn = image.copy()
    drawn[inside & ~core] = colour
    return drawn


def panel(images: Sequence[np.ndarray], *, height: int | None = None, gap: int = 4) -> np.ndarray:
    """Put pictures side by side on white.

    Args:
        images: uint8 RGB pictures, (H, W, 3) each; at least one.
        height: common height in pixels; the tallest picture's if not given.
        gap: white columns between neighbours.
    """
    height = height or max(image.shape[0] for image in images)
    columns = []
    for image in images:
        width = max(1, round(image.shape[1] * height / image.shape[0]))
        same = image.shape[:2] == (height, width)
        resized = (
            image if same else np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        )
        columns += [resized, np.full((height, gap, 3), 255, np.uint8)]
    return np.concatenate(columns[:-1], axis=1)


def legend(names: Sequence[str], colours: np.ndarray, *, first: int = 0) -> np.ndarray:
    """Draw which colour stands for which category: a square, the number and the name of each, in columns on white.

    Args:
        names: of the categories, in the order of their numbers.
        colours: uint8 colour of each, (C, 3).
        first: number of the first category.

    Returns:
        uint8 RGB, wider than high where there is more than a column of them.
    """
    from matplotlib import get_data_path  # its font knows more letters than Pillow's own

    font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", LEGEND_FONT_SIZE)
    texts = [f"{number}  {' '.join(name.split())}" for number, name in enumerate(names, start=first)]
    row, square, gap = round(1.7 * LEGEND_FONT_SIZE), round(1.2 * LEGEND_FONT_SIZE), LEGEND_FONT_SIZE // 2
    column = square + 3 * gap + round(max((font.getlength(text) for text in texts), default=0))
    # The shape of a screen: as many rows as make height : width = 2 : 3, but one column of up to twenty names.
    num_rows = max(20, math.ceil(math.sqrt(len(texts) * column / row / 1.5)))
    num_rows = max(1, min(num_rows, len(texts)))
    num_columns = max(1, math.ceil(len(texts) / num_rows))
    image = Image.new("RGB", (num_columns * column + gap, num_rows * row + 2 * gap), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for place, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        left, top = gap + place // num_rows * column, gap + place % num_rows * row
        middle = top + row // 2
        corners = (left, middle - square // 2, left + square, middle + square // 2)
        draw.rectangle(corners, fill=tuple(int(value) for value in colour), outline=(96, 96, 96))
        draw.text((left + square + gap, middle), text, fill=(0, 0, 0), font=font, anchor="lm")
    return np.asarray(image)
