"""How the grounds of the stuff scenes look: sky, water, grass, sand, road, wall, snow and field.

Every surface has a structure of its own (clouds, ripples, blades, grains, markings, bricks, drifts, furrows) and shares
its colours with others, so that neither colour nor brightness alone tells them apart. Which of them lies where:
``regions.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

Painter = Callable[["Ground", np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Ground:
    """Where a surface is painted: lengths are in shares of the picture's shorter side, so that sizes look alike.

    Attributes:
        x: to the right, from the picture's middle, float32 (H, W).
        y: downwards, from the picture's top, float32 (H, W).
        depth: how large things look there, 1 at the lower edge, less towards the region's horizon, float32 (H, W).
        first, second: the two tones, float32 (3,), 0-255.
    """

    x: np.ndarray
    y: np.ndarray
    depth: np.ndarray
    first: np.ndarray
    second: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.x.shape

    def mix(self, share: np.ndarray) -> np.ndarray:
        """The first tone where ``share`` is 0, the second where it is 1; float32 (H, W, 3)."""
        return self.first + (self.second - self.first) * np.clip(share, 0, 1)[..., None]

    def noise(self, width: float, height: float, rng: np.random.Generator) -> np.ndarray:
        """Smooth noise of about unit deviation with cells of ``width`` by ``height`` sides, float32 (H, W)."""
        rows, columns = self.shape
        side = min(rows, columns)
        cells = [max(2, round(length / (side * cell))) for length, cell in ((rows, height), (columns, width))]
        field = rng.standard_normal(cells, dtype=np.float32)
        return cv2.resize(field, (columns, rows), interpolation=cv2.INTER_CUBIC) * np.float32(1.2)


def _wave(phase: np.ndarray) -> np.ndarray:
    """A sine between 0 and 1 that stands still for a part of its length."""
    return np.clip(0.5 + 0.9 * np.sin(phase), 0, 1)


def sky(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """A soft gradient with wide clouds."""
    gradient = np.clip(ground.y * rng.uniform(0.8, 1.6), 0, 1)
    canvas = ground.mix(gradient)
    cover = rng.uniform(-0.6, 0.9)
    clouds = np.clip(ground.noise(0.45, 0.16, rng) + 0.5 * ground.noise(0.15, 0.07, rng) + cover - 0.6, 0, 1)
    white = np.float32(rng.uniform(190, 245))
    return canvas + (white - canvas) * (0.75 * clouds[..., None])


def water(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Lying ripples, finer towards the horizon, with bright crests."""
    length = np.float32(rng.uniform(0.045, 0.065))
    warp = 1.6 * np.sin(ground.x * np.float32(rng.uniform(9, 16)) + rng.uniform(0, 6)) + ground.noise(0.3, 0.05, rng)
    ripples = np.sin(2 * np.pi / length * np.log(0.35 + ground.depth) + warp)
    crests = np.clip(2.2 * ripples - 1.0, 0, 1) * np.clip(0.5 + 0.6 * ground.noise(0.25, 0.06, rng), 0, 1)
    return ground.mix(0.5 + 0.35 * ripples) + 70 * crests[..., None]


def grass(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Standing blades."""
    blades = ground.noise(0.014, 0.075, rng) + 0.7 * ground.noise(0.03, 0.11, rng)
    return ground.mix(0.45 + 0.36 * blades + 0.12 * ground.noise(0.3, 0.2, rng))


def sand(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Grains over dunes with one sharp side."""
    slope, length = rng.uniform(-0.5, 0.5), rng.uniform(0.11, 0.17)
    bends = 0.05 * np.sin(ground.x * rng.uniform(6, 10) + rng.uniform(0, 6))
    dunes = np.mod((ground.y + slope * ground.x + bends) / length + rng.uniform(0, 1), 1).astype(np.float32)
    return ground.mix(0.1 + 0.75 * dunes**1.6 + 0.2 * ground.noise(0.016, 0.016, rng))


def road(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Speckled asphalt with dashed markings that run to the horizon."""
    canvas = ground.mix(0.4 + 0.45 * ground.noise(0.02, 0.02, rng) + 0.15 * ground.noise(0.35, 0.1, rng))
    lane = np.float32(rng.uniform(0.24, 0.32))
    across = np.mod((ground.x + rng.uniform(-0.2, 0.2)) / np.maximum(ground.depth, 0.3) / lane, 1) - 0.5
    along = np.sin(np.log(0.3 + ground.depth) * np.float32(rng.uniform(24, 34)) + rng.uniform(0, 6))
    marks = np.clip(14 * (0.085 - np.abs(across)), 0, 1) * np.clip(3 * along + 1.6, 0, 1)
    paint = np.array([232, 228, 205], np.float32) - np.float32(rng.uniform(0, 30))
    return canvas + (paint - canvas) * (0.9 * marks[..., None])


def wall(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Rows of bricks; every second row is shifted by half a brick."""
    height = np.float32(rng.uniform(0.06, 0.085))
    row = ground.y / height + np.float32(rng.uniform(0, 1))
    column = ground.x / (height * np.float32(rng.uniform(1.8, 2.4))) + 0.5 * np.mod(np.floor(row), 2)
    joint = np.minimum(0.5 - np.abs(np.mod(row, 1) - 0.5), 2 * (0.5 - np.abs(np.mod(column, 1) - 0.5)))
    tint = np.sin(np.floor(row) * 12.9898 + np.floor(column) * 78.233) * 0.22  # every brick its own
    canvas = ground.mix(0.25 + tint)
    mortar = np.float32(rng.choice([70, 205])) + np.zeros(3, np.float32)
    return canvas + (mortar - canvas) * np.clip(1.6 - 12 * joint, 0, 0.85)[..., None]


def snow(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Bright humps with a shadow on one side of each, and sparse glints."""
    humps = ground.noise(0.09, 0.07, rng)
    towards = rng.uniform(0, 2 * np.pi)
    along_y, along_x = np.gradient(humps, 1 / min(ground.shape))
    slope = np.cos(towards) * along_x + np.sin(towards) * along_y
    canvas = ground.mix(0.15 + 0.035 * slope)
    glints = ground.noise(0.025, 0.025, rng) > 2.4
    return np.where(glints[..., None], np.float32(255), canvas)


def field(ground: Ground, rng: np.random.Generator) -> np.ndarray:
    """Furrows that run together at the horizon, or slanted ones."""
    width = np.float32(rng.uniform(0.075, 0.11))
    if rng.random() < 0.6:
        across = (ground.x + rng.uniform(-0.4, 0.4)) / np.maximum(ground.depth, 0.25)
    else:
        across = ground.x + rng.choice([-1.0, 1.0]) * rng.uniform(0.6, 1.4) * ground.y
    furrows = _wave(2 * np.pi * across.astype(np.float32) / width + 0.5 * ground.noise(0.1, 0.1, rng))
    return ground.mix(furrows + 0.14 * ground.noise(0.025, 0.025, rng))


Tone = tuple[int, int, int]


@dataclass(frozen=True)
class Surface:
    """One named kind of ground.

    Attributes:
        name: the word used in captions.
        paint: fills a whole picture, float32 (H, W, 3).
        tones: pairs of colours, one of which is drawn.
        upright: faces the viewer (sky, walls) instead of lying before him.
    """

    name: str
    paint: Painter
    tones: tuple[tuple[Tone, Tone], ...]
    upright: bool = False


SURFACES: tuple[Surface, ...] = (
    Surface(
        "sky",
        sky,
        (
            ((70, 130, 205), (170, 205, 232)),
            ((130, 140, 150), (190, 194, 198)),
            ((92, 88, 140), (240, 170, 120)),
            ((40, 52, 92), (96, 110, 150)),
        ),
        upright=True,
    ),
    Surface(
        "water",
        water,
        (
            ((36, 84, 140), (84, 140, 184)),
            ((30, 104, 112), (92, 164, 158)),
            ((84, 100, 108), (142, 158, 164)),
            ((110, 90, 84), (190, 146, 110)),
        ),
    ),
    Surface(
        "grass",
        grass,
        (
            ((42, 96, 36), (116, 172, 70)),
            ((84, 104, 40), (176, 178, 86)),
            ((104, 92, 50), (182, 158, 92)),
        ),
    ),
    Surface(
        "sand",
        sand,
        (
            ((196, 160, 104), (236, 208, 156)),
            ((164, 124, 88), (206, 170, 130)),
            ((176, 116, 76), (220, 168, 124)),
        ),
    ),
    Surface(
        "road",
        road,
        (
            ((66, 66, 70), (104, 104, 106)),
            ((112, 110, 108), (148, 146, 142)),
            ((98, 80, 70), (136, 116, 100)),
        ),
    ),
    Surface(
        "wall",
        wall,
        (
            ((156, 76, 58), (190, 112, 86)),
            ((130, 126, 122), (168, 164, 158)),
            ((190, 160, 116), (214, 190, 150)),
            ((84, 100, 124), (124, 140, 160)),
        ),
        upright=True,
    ),
    Surface(
        "snow",
        snow,
        (
            ((238, 240, 244), (168, 190, 218)),
            ((226, 222, 224), (150, 152, 166)),
            ((234, 230, 238), (184, 176, 200)),
        ),
    ),
    Surface(
        "field",
        field,
        (
            ((88, 60, 36), (146, 108, 66)),
            ((64, 92, 40), (150, 130, 70)),
            ((150, 116, 52), (220, 188, 96)),
        ),
    ),
)

SURFACE_NAMES: tuple[str, ...] = tuple(surface.name for surface in SURFACES)
SURFACE_ROWS: Mapping[str, int] = {name: row for row, name in enumerate(SURFACE_NAMES)}


def paint_surface(surface: Surface, size: tuple[int, int], horizon: float, rng: np.random.Generator) -> np.ndarray:
    """Paint one kind of ground over a whole picture.

    Args:
        surface: one of ``SURFACES``.
        size: (height, width) in pixels.
        horizon: where the region begins, in rows from the top.
        rng: draws tones and structure.

    Returns:
        float32 (H, W, 3), about 0-255, not clipped.
    """
    height, width = size
    side = min(size)
    y, x = np.meshgrid(
        np.arange(height, dtype=np.float32) / side,
        (np.arange(width, dtype=np.float32) - width / 2) / side,
        indexing="ij",
    )
    depth = np.clip((y - horizon / side) / max((height - horizon) / side, 0.3), 0, 1)
    if surface.upright:
        depth = np.ones_like(y)
        y = y - np.float32(horizon / side)
    tones = np.array(surface.tones[int(rng.integers(len(surface.tones)))], np.float32)
    first, second = tones + rng.normal(0, 7, (2, 3)) + rng.normal(0, 7, (2, 1))
    return surface.paint(Ground(x, y, depth, first.astype(np.float32), second.astype(np.float32)), rng)
