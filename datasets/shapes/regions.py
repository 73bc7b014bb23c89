"""Divides a picture into regions of ground: bands below each other with borders of many kinds, and patches in them.

Next: ``surfaces.py`` paints them, ``stuff_scenes.py`` puts things on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.shapes.surfaces import SURFACE_ROWS, SURFACES, paint_surface

_SKY, _ROAD = SURFACE_ROWS["sky"], SURFACE_ROWS["road"]
_OTHERS = tuple(row for row in range(len(SURFACES)) if row != _SKY)
_MIN_BAND = 0.16  # of the height


@dataclass(frozen=True)
class Plan:
    """Which grounds a picture has.

    Attributes:
        bands: rows of ``SURFACES`` from top to bottom, no neighbours alike.
        patch: row of a ground that lies within the lowest band as a pool, a drift or a way; None: there is none.
    """

    bands: tuple[int, ...]
    patch: int | None = None


def draw_plan(band_weights: Sequence[float], patch_share: float, rng: np.random.Generator) -> Plan:
    """Choose the grounds of a picture.

    Args:
        band_weights: weight of 1, 2, 3, ... bands.
        patch_share: how often there is a patch.
        rng: draws them.

    Returns:
        Bands of different grounds, the sky only on top; a patch is of yet another ground.
    """
    weights = np.array(band_weights)
    count = 1 + int(rng.choice(len(weights), p=weights / weights.sum()))
    has_sky = rng.random() < (1 / len(SURFACES) if count == 1 else 0.6)
    chosen = [int(row) for row in rng.permutation(_OTHERS)]
    bands = ((_SKY, *chosen) if has_sky else tuple(chosen))[:count]
    if rng.random() >= patch_share or bands[-1] == _SKY or SURFACES[bands[-1]].upright:
        return Plan(bands)
    lying = [row for row in chosen[count:] if not SURFACES[row].upright]
    return Plan(bands, lying[0])


def _border(size: tuple[int, int], level: float, rng: np.random.Generator) -> np.ndarray:
    """Row of the border at every column, float32 (W,): level, slanted, wavy, hilly or stepped."""
    height, width = size
    side = min(size)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    line = level * height + x * side * np.float32(rng.normal(0, 0.12))
    pick = int(rng.integers(4))
    if pick == 1:
        line = line + side * rng.uniform(0.01, 0.05) * np.sin(x * rng.uniform(8, 30) + rng.uniform(0, 6))
    elif pick == 2:
        knots = rng.normal(0, 0.055, (1, int(rng.integers(4, 9)))).astype(np.float32)
        line = line + side * cv2.resize(knots, (width, 1), interpolation=cv2.INTER_CUBIC)[0]
    elif pick == 3:
        steps = rng.normal(0, 0.035, (1, int(rng.integers(3, 7)))).astype(np.float32)
        line = line + side * cv2.resize(steps, (width, 1), interpolation=cv2.INTER_NEAREST)[0]
    return line.astype(np.float32)


def _levels(count: int, rng: np.random.Generator) -> np.ndarray:
    """Tops of ``count`` bands as shares of the height, none of them narrow."""
    extra = rng.dirichlet(np.full(count, 1.6)) * (1 - count * _MIN_BAND)
    return np.concatenate([[0.0], np.cumsum(extra + _MIN_BAND)[:-1]])


def _patch_cover(size: tuple[int, int], top: float, is_way: bool, rng: np.random.Generator) -> np.ndarray:
    """How much of every pixel a patch covers, float32 (H, W): a lobed oval, or a way that widens towards the viewer."""
    height, width = size
    cover = np.zeros(size, np.uint8)
    if is_way:
        foot, head = rng.uniform(0.1, 0.9) * width, rng.uniform(0.2, 0.8) * width
        broad, narrow = rng.uniform(0.2, 0.34) * min(size), rng.uniform(0.03, 0.08) * min(size)
        corners = np.array([[head - narrow, top], [head + narrow, top], [foot + broad, height], [foot - broad, height]])
    else:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        lobes = 1 + rng.uniform(0.05, 0.2) * np.sin(angles * int(rng.integers(2, 5)) + rng.uniform(0, 6))
        room = height - top
        half = np.array([rng.uniform(0.22, 0.4) * width, rng.uniform(0.22, 0.36) * room])
        centre = np.array([rng.uniform(0.25, 0.75) * width, top + rng.uniform(0.42, 0.62) * room])
        corners = centre + half * np.stack([np.cos(angles), np.sin(angles)], axis=1) * lobes[:, None]
    cv2.fillPoly(cover, [np.round(corners * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    return cover.astype(np.float32) / 255


def paint_regions(plan: Plan, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Paint the grounds of a picture.

    Args:
        plan: which grounds.
        size: (height, width) in pixels.
        rng: draws borders and surfaces.

    Returns:
        canvas: float32 (H, W, 3), about 0-255.
        rows: of ``SURFACES`` at every pixel, uint8 (H, W).
    """
    height, width = size
    ys = np.arange(height, dtype=np.float32)[:, None]
    levels = _levels(len(plan.bands), rng)
    canvas = paint_surface(SURFACES[plan.bands[0]], size, 0.0, rng)
    rows = np.full(size, plan.bands[0], np.uint8)
    border = np.zeros(width, np.float32)
    for row, level in zip(plan.bands[1:], levels[1:], strict=True):
        border = np.maximum(_border(size, float(level), rng), border + 0.06 * height)
        softness = float(rng.choice([1.0, 1.0, 2.0, 4.0]))
        cover = np.clip((ys - border) / softness + 0.5, 0, 1)
        _lay(canvas, rows, cover, row, float(border.min()), rng)
    if plan.patch is not None:
        top = float(border.max()) if len(plan.bands) > 1 else 0.12 * height
        cover = _patch_cover(size, top, plan.patch == _ROAD, rng)
        _lay(canvas, rows, cover, plan.patch, top, rng)
    return canvas, rows


def _lay(
    canvas: np.ndarray, rows: np.ndarray, cover: np.ndarray, row: int, horizon: float, rng: np.random.Generator
) -> None:
    """Paint a ground where ``cover`` is, float32 (H, W), in place."""
    surface = paint_surface(SURFACES[row], rows.shape, horizon, rng)
    canvas += (surface - canvas) * cover[..., None]
    rows[cover > 0.5] = row
