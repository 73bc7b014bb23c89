"""Paints the shapes world: one thing as a sprite, backgrounds, light, shadow and noise (OpenCV and numpy only).

Next: ``scenes.py`` decides what stands where; ``forms.py`` and ``textures.py`` hold outlines and patterns.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from datasets.shapes.categories import COLOURS
from datasets.shapes.forms import Part
from datasets.shapes.textures import paint_texture

_SHIFT = 4  # fractional bits of OpenCV's sub-pixel coordinates

#: Muted ground colours: things are more saturated than what they stand on.
_GROUND_COLOURS = (
    (150, 140, 122),
    (118, 128, 136),
    (138, 146, 128),
    (104, 98, 92),
    (168, 160, 152),
    (88, 100, 108),
    (140, 124, 128),
)
_GROUNDS = np.array(_GROUND_COLOURS, dtype=np.float32)


@dataclass(frozen=True)
class Look:
    """How a thing is painted.

    Attributes:
        parts: polygons in painting order.
        colour: word of the main colour.
        second_colour: word of the other colour.
        texture: pattern on the main parts.
        size: longer side of the thing's box in pixels.
        angle: rotation in radians.
        stretch: width divided by height of the distortion.
        flip: mirrored left to right.
    """

    parts: list[Part]
    colour: str
    second_colour: str
    texture: str
    size: float
    angle: float
    stretch: float
    flip: bool


@dataclass(frozen=True)
class Sprite:
    """A painted thing: ``image`` float32 (h, w, 3) 0-255, ``alpha`` float32 (h, w) 0-1, offset of its corner."""

    image: np.ndarray
    alpha: np.ndarray
    top: int
    left: int


def _jittered(colour: str, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.array(COLOURS[colour], dtype=np.float32) + rng.normal(0, 16, 3), 0, 255).astype(np.float32)


def _linear_map(look: Look) -> np.ndarray:
    """Unit coordinates -> pixels about the thing's centre, (2, 2), so that the box's longer side is ``size``."""
    cos, sin = np.cos(look.angle), np.sin(look.angle)
    root = np.sqrt(look.stretch)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.diag([root * (-1 if look.flip else 1), 1 / root])
    points = np.concatenate([part.polygon for part in look.parts]) @ matrix.T
    return (matrix * (look.size / np.ptp(points, axis=0).max())).astype(np.float32)


def paint_thing(look: Look, centre: tuple[float, float], rng: np.random.Generator) -> Sprite:
    """Paint one thing, anti-aliased, with texture and shading.

    Args:
        look: what to paint.
        centre: (y, x) of the middle of its box, in pixels.
        rng: draws colour jitter, pattern phase and light.

    Returns:
        The sprite in picture coordinates; it may reach beyond the picture.
    """
    matrix = _linear_map(look)
    points = np.concatenate([part.polygon for part in look.parts]) @ matrix.T
    low, high = points.min(axis=0), points.max(axis=0)
    origin = np.array([centre[1], centre[0]], dtype=np.float32) - (low + high) / 2
    corner = np.floor(low + origin - 1.5)
    width, height = (np.ceil(high + origin + 1.5) - corner).astype(int)
    local = origin - corner
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    inverse = np.linalg.inv(matrix).astype(np.float32)
    dx, dy = xs - local[0], ys - local[1]
    u, v = inverse[0, 0] * dx + inverse[0, 1] * dy, inverse[1, 0] * dx + inverse[1, 1] * dy
    pattern = paint_texture(look.texture, u, v, rng)[..., None]
    body = _jittered(look.colour, rng)
    tone = np.where(body.mean() > 150, body * 0.55, np.clip(body * 0.55 + 115, 0, 255)).astype(np.float32)
    paints = {
        "body": body + (tone - body) * pattern,
        "second": _jittered(look.second_colour, rng),
        "dark": np.float32(rng.uniform(18, 60)) + np.zeros(3, np.float32),
        "light": np.array([236, 232, 214], np.float32) - np.float32(rng.uniform(0, 30)),
    }
    image = np.zeros((height, width, 3), np.float32)
    alpha = np.zeros((height, width), np.float32)
    for part in look.parts:
        cover = np.zeros((height, width), np.uint8)
        corners = np.round((part.polygon @ matrix.T + local) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(cover, [corners], 255, cv2.LINE_AA, _SHIFT)
        share = cover.astype(np.float32) / 255
        image += (paints[part.role] - image) * share[..., None]
        alpha = np.maximum(alpha, share)
    light = rng.normal(0, 0.16, 2)
    shade = 1 + np.clip(light[0] * u + light[1] * v, -0.3, 0.3)
    return Sprite(np.clip(image * shade[..., None], 0, 255).astype(np.float32), alpha, int(corner[1]), int(corner[0]))


def place(sprite: Sprite, size: tuple[int, int]) -> tuple[slice, slice, slice, slice] | None:
    """Slices (rows, columns) of the picture and (rows, columns) of the sprite where they meet, or None."""
    top, left = max(sprite.top, 0), max(sprite.left, 0)
    bottom = min(sprite.top + sprite.alpha.shape[0], size[0])
    right = min(sprite.left + sprite.alpha.shape[1], size[1])
    if bottom <= top or right <= left:
        return None
    inner = (slice(top - sprite.top, bottom - sprite.top), slice(left - sprite.left, right - sprite.left))
    return slice(top, bottom), slice(left, right), *inner


def paste(canvas: np.ndarray, sprite: Sprite) -> None:
    """Blend a sprite and its soft shadow into the canvas, float32 (H, W, 3), in place."""
    height, width = sprite.alpha.shape
    reach = max(2, max(height, width) // 14)
    wide = cv2.copyMakeBorder(sprite.alpha, reach, 2 * reach, reach, 2 * reach, cv2.BORDER_CONSTANT, value=0)
    shadow = cv2.blur(wide, (reach + 1, reach + 1))
    under = Sprite(canvas, shadow, sprite.top - reach // 2, sprite.left - reach // 2)
    meeting = place(under, canvas.shape[:2])
    if meeting is not None:
        rows, columns, inner_rows, inner_columns = meeting
        canvas[rows, columns] *= 1 - 0.3 * shadow[inner_rows, inner_columns, None]
    meeting = place(sprite, canvas.shape[:2])
    if meeting is not None:
        rows, columns, inner_rows, inner_columns = meeting
        share = sprite.alpha[inner_rows, inner_columns, None]
        region = canvas[rows, columns]
        region += (sprite.image[inner_rows, inner_columns] - region) * share


def paint_ground(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Paint a background: two muted tones, soft clouds and a faint pattern; never flat.

    Args:
        size: (height, width).
        rng: draws everything.

    Returns:
        float32 (H, W, 3), about 40-200.
    """
    height, width = size
    first, second = _GROUNDS[rng.choice(len(_GROUNDS), 2, replace=False)] + rng.normal(0, 9, (2, 3)).astype(np.float32)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None] * (width / height)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.float32(np.sin(angle)) * ys + np.float32(np.cos(angle)) * xs
    if rng.random() < 0.35:  # a horizon
        share = np.clip((ys - rng.uniform(-0.4, 0.5)) * rng.uniform(4, 20), 0, 1) + 0 * xs
    else:
        share = np.clip(0.5 + 0.5 * ramp, 0, 1)
    clouds = rng.normal(0, 1, (int(rng.integers(3, 9)), int(rng.integers(3, 9)))).astype(np.float32)
    share = np.clip(share + 0.25 * cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC), 0, 1)
    pick = int(rng.integers(4))
    if pick == 0:
        grain = cv2.resize(rng.normal(0, 9, (height // 2, width // 2)).astype(np.float32), (width, height))
    elif pick == 1:
        grain = 8 * np.sin(ramp * np.float32(rng.uniform(20, 45)))
    elif pick == 2:
        grain = 7 * np.sign(np.sin(xs * np.float32(rng.uniform(8, 16))) * np.sin(ys * np.float32(rng.uniform(8, 16))))
    else:
        grain = 6 * np.sin(ys * np.float32(rng.uniform(15, 30)) + 3 * np.sin(4 * xs))
    return (first + (second - first) * share[..., None] + grain[..., None]).astype(np.float32)


def finish(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply the picture's light (brightness, tint, falloff), a little blur and sensor noise.

    Args:
        canvas: float32 (H, W, 3), 0-255.
        rng: draws the light.

    Returns:
        uint8 RGB (H, W, 3).
    """
    height, width = canvas.shape[:2]
    gain = np.float32(rng.uniform(0.7, 1.2)) * (1 + rng.normal(0, 0.05, 3)).astype(np.float32)
    tilt = rng.normal(0, 0.08, 2).astype(np.float32)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None]
    canvas = canvas * gain * (1 + tilt[0] * ys + tilt[1] * xs)[..., None]
    if rng.random() < 0.25:
        canvas = cv2.GaussianBlur(canvas, (3, 3), float(rng.uniform(0.4, 0.9)))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas + noise * np.float32(rng.uniform(1.5, 7)), 0, 255).astype(np.uint8)
