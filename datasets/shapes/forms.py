"""The outlines of the shapes world: every named kind of thing as polygons in the unit square, and the unnamed things.

A form is a function of a random generator; its parts are painted in order. Next: ``categories.py`` (colours, textures).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Polygon = np.ndarray


@dataclass(frozen=True)
class Part:
    """One painted part of a thing.

    Attributes:
        polygon: corner points (x, y), float32 (N, 2), y down, about [-1, 1].
        role: "body" takes the thing's colour and texture, "second" its second colour, "dark" and "light" are details.
    """

    polygon: Polygon
    role: str


Form = Callable[[np.random.Generator], list[Part]]


def _points(*pairs: tuple[float, float]) -> Polygon:
    return np.array(pairs, dtype=np.float32)


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 2 * np.pi) -> Polygon:
    angles = np.linspace(start, stop, 26)
    return np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1).astype(np.float32)


def _box(left: float, top: float, right: float, bottom: float) -> Polygon:
    return _points((left, top), (right, top), (right, bottom), (left, bottom))


def _spiked(num_points: int, inner: float, outer: float = 1.0, turn: float = 0.0) -> Polygon:
    angles = np.arange(2 * num_points) * np.pi / num_points - np.pi / 2 + turn
    radii = np.where(np.arange(2 * num_points) % 2 == 0, outer, inner)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).astype(np.float32)


def fish(rng: np.random.Generator) -> list[Part]:
    """A long oval body, a forked tail, fins and an eye."""
    height = rng.uniform(0.4, 0.6)
    return [
        Part(_points((0.45, 0.0), (1.05, -0.5), (0.9, 0.0), (1.05, 0.5)), "second"),
        Part(_points((-0.25, -0.3), (0.15, -height - 0.25), (0.4, -0.2)), "second"),
        Part(_ellipse(-0.15, 0, 0.8, height), "body"),
        Part(_points((-0.05, 0.05), (0.3, 0.3), (0.25, -0.05)), "second"),
        Part(_ellipse(-0.62, -0.1, 0.12, 0.12), "light"),
        Part(_ellipse(-0.64, -0.1, 0.06, 0.06), "dark"),
    ]


def mushroom(rng: np.random.Generator) -> list[Part]:
    """A half-round cap on a thick stem."""
    width = rng.uniform(0.22, 0.36)
    cap = np.concatenate([_ellipse(0, 0.05, 1.0, 0.85, np.pi, 2 * np.pi), _points((0.8, 0.2), (-0.8, 0.2))])
    stem = _points((-width, 0.1), (width, 0.1), (width * 1.35, 0.95), (-width * 1.35, 0.95))
    return [Part(stem, "light"), Part(cap, "body"), Part(_ellipse(0, 0.17, 0.75, 0.09), "second")]


def kite(rng: np.random.Generator) -> list[Part]:
    """A diamond with a cross and a tail of bows."""
    waist = rng.uniform(-0.35, -0.15)
    parts = [
        Part(_points((-0.06, 0.5), (0.06, 0.5), (0.2, 1.2), (0.1, 1.25)), "dark"),
        Part(_points((0, -1), (0.7, waist), (0, 0.6), (-0.7, waist)), "body"),
        Part(_points((0, -1), (0.7, waist), (0, waist)), "second"),
        Part(_points((0, 0.6), (-0.7, waist), (0, waist)), "second"),
    ]
    for y in (0.8, 1.1):
        parts.append(Part(_points((-0.12, y - 0.1), (0.38, y + 0.1), (0.38, y - 0.1), (-0.12, y + 0.1)), "second"))
    return parts


def house(rng: np.random.Generator) -> list[Part]:
    """Walls, a pitched roof, a door and a window."""
    peak = rng.uniform(-1.0, -0.8)
    parts = [
        Part(_box(0.35, -0.95, 0.6, -0.4), "dark"),
        Part(_box(-0.8, -0.2, 0.8, 0.95), "body"),
        Part(_points((-1, -0.15), (0, peak), (1, -0.15)), "second"),
        Part(_box(-0.5, 0.3, -0.1, 0.95), "dark"),
        Part(_box(0.2, 0.15, 0.6, 0.55), "light"),
    ]
    return parts if rng.random() < 0.7 else parts[1:]


def star(rng: np.random.Generator) -> list[Part]:
    """Five spikes."""
    inner = rng.uniform(0.4, 0.52)
    return [Part(_spiked(5, inner), "body"), Part(_spiked(5, inner * 0.4, 0.42), "second")]


def cup(rng: np.random.Generator) -> list[Part]:
    """A tapering bowl with an open rim and a ring handle."""
    foot = rng.uniform(0.4, 0.6)
    ring = np.concatenate([_ellipse(0.6, -0.05, 0.48, 0.45), _ellipse(0.6, -0.05, 0.28, 0.26)[::-1]])
    bowl = _points((-0.75, -0.7), (0.7, -0.7), (foot, 0.85), (-foot - 0.05, 0.85))
    return [
        Part(ring, "second"),
        Part(bowl, "body"),
        Part(_ellipse(-0.02, -0.7, 0.74, 0.2), "light"),
        Part(_ellipse(-0.02, -0.68, 0.6, 0.13), "dark"),
    ]


def flower(rng: np.random.Generator) -> list[Part]:
    """Five to seven round petals about a centre."""
    num_petals = int(rng.integers(5, 8))
    parts = []
    for angle in np.arange(num_petals) * 2 * np.pi / num_petals:
        petal = _ellipse(0.62, 0, 0.4, 0.26)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], dtype=np.float32)
        parts.append(Part(petal @ turn, "body"))
    return [*parts, Part(_ellipse(0, 0, 0.34, 0.34), "second"), Part(_ellipse(0, 0, 0.15, 0.15), "dark")]


def car(rng: np.random.Generator) -> list[Part]:
    """A low body, a cabin with windows and two wheels."""
    front = rng.uniform(0.3, 0.5)
    return [
        Part(_points((-0.65, -0.05), (-0.4, -0.55), (front - 0.1, -0.55), (front + 0.2, -0.05)), "second"),
        Part(_points((-0.5, -0.08), (-0.33, -0.45), (-0.07, -0.45), (-0.07, -0.08)), "light"),
        Part(_points((0.03, -0.08), (0.03, -0.45), (front - 0.15, -0.45), (front + 0.05, -0.08)), "light"),
        Part(_points((-1, 0.4), (-1, 0.0), (-0.7, -0.1), (0.7, -0.1), (1, 0.1), (1, 0.4)), "body"),
        Part(_ellipse(-0.55, 0.42, 0.25, 0.25), "dark"),
        Part(_ellipse(0.55, 0.42, 0.25, 0.25), "dark"),
        Part(_ellipse(-0.55, 0.42, 0.1, 0.1), "light"),
        Part(_ellipse(0.55, 0.42, 0.1, 0.1), "light"),
    ]


def boat(rng: np.random.Generator) -> list[Part]:
    """A hull below a mast with two sails."""
    split = rng.uniform(-0.1, 0.1)
    return [
        Part(_box(split - 0.05, -0.95, split + 0.05, 0.5), "dark"),
        Part(_points((split + 0.1, -0.9), (split + 0.85, 0.3), (split + 0.1, 0.3)), "body"),
        Part(_points((split - 0.1, -0.7), (split - 0.7, 0.3), (split - 0.1, 0.3)), "light"),
        Part(_points((-1, 0.42), (1, 0.42), (0.65, 0.9), (-0.6, 0.9)), "second"),
    ]


def tree(rng: np.random.Generator) -> list[Part]:
    """A trunk under a crown of round clumps."""
    parts = [Part(_points((-0.14, 0.1), (0.14, 0.1), (0.22, 1), (-0.22, 1)), "second")]
    for x, y in ((-0.45, -0.05), (0.45, -0.05), (-0.25, -0.5), (0.28, -0.5), (0, -0.2)):
        radius = rng.uniform(0.38, 0.5)
        parts.append(Part(_ellipse(x, y, radius, radius * 0.95), "body"))
    return parts


def butterfly(rng: np.random.Generator) -> list[Part]:
    """Four wings about a thin dark body."""
    spread = rng.uniform(0.85, 1.0)
    parts = []
    for side in (-1, 1):
        upper = _points((0, -0.05), (0.35, -0.7), (0.85, -0.85), (1.0, -0.5), (0.75, -0.05), (0.3, 0.08))
        lower = _points((0, 0.0), (0.6, 0.05), (0.75, 0.4), (0.5, 0.8), (0.2, 0.6))
        scale = np.array([side * spread, 1], dtype=np.float32)
        parts += [Part(lower * scale, "second"), Part(upper * scale, "body")]
    return [*parts, Part(_ellipse(0, 0, 0.09, 0.6), "dark")]


def umbrella(rng: np.random.Generator) -> list[Part]:
    """A scalloped dome over a stick with a hook."""
    hook = rng.uniform(0.16, 0.26)
    dome = [_ellipse(0, 0.05, 1.0, 0.95, np.pi, 2 * np.pi)]
    dome += [_ellipse(x, 0.05, 0.25, 0.16, 0, -np.pi) for x in (0.75, 0.25, -0.25, -0.75)]
    return [
        Part(_box(-0.05, -1.0, 0.05, 0.85), "dark"),
        Part(
            np.concatenate([_ellipse(hook, 0.8, hook, 0.22, np.pi, 0), _ellipse(hook, 0.8, hook - 0.1, 0.1, 0, np.pi)]),
            "dark",
        ),
        Part(np.concatenate(dome), "body"),
        Part(_points((0, -0.9), (0.25, 0.0), (-0.25, 0.0)), "second"),
    ]


def clock(rng: np.random.Generator) -> list[Part]:
    """A round rim, a face, two hands and two bells."""
    angle = rng.uniform(0, 2 * np.pi)
    hand = _box(-0.06, -0.55, 0.06, 0.1)
    short = _box(-0.08, -0.38, 0.08, 0.1)
    turns = [np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]], dtype=np.float32) for a in (angle, angle * 5)]
    return [
        Part(_ellipse(-0.6, -0.8, 0.28, 0.24), "second"),
        Part(_ellipse(0.6, -0.8, 0.28, 0.24), "second"),
        Part(_points((-0.75, 0.95), (-0.45, 0.6), (-0.3, 0.7), (-0.55, 1.0)), "dark"),
        Part(_points((0.75, 0.95), (0.45, 0.6), (0.3, 0.7), (0.55, 1.0)), "dark"),
        Part(_ellipse(0, 0, 0.92, 0.92), "body"),
        Part(_ellipse(0, 0, 0.62, 0.62), "light"),
        Part(hand @ turns[0], "dark"),
        Part(short @ turns[1], "dark"),
    ]


def cactus(rng: np.random.Generator) -> list[Part]:
    """A column with two raised arms in a pot."""
    left, right = rng.uniform(-0.35, 0.0, 2)
    column = np.concatenate([_ellipse(0, -0.7, 0.27, 0.3, np.pi, 2 * np.pi), _points((0.27, 0.6), (-0.27, 0.6))])
    arm_left = _points(
        (-0.2, 0.3),
        (-0.75, 0.25),
        (-0.8, left - 0.2),
        (-0.65, left - 0.3),
        (-0.5, left - 0.2),
        (-0.48, 0.0),
        (-0.2, 0.02),
    )
    arm_right = _points(
        (0.2, 0.1),
        (0.7, 0.05),
        (0.75, right - 0.4),
        (0.6, right - 0.5),
        (0.46, right - 0.4),
        (0.44, -0.2),
        (0.2, -0.18),
    )
    pot = _points((-0.5, 0.5), (0.5, 0.5), (0.38, 1.0), (-0.38, 1.0))
    return [Part(arm_left, "body"), Part(arm_right, "body"), Part(column, "body"), Part(pot, "second")]


def unnamed(rng: np.random.Generator) -> list[Part]:
    """One of the things without a name: lumps, sticks, wedges and hoops."""
    pick = int(rng.integers(4))
    if pick == 0:
        angles = np.linspace(0, 2 * np.pi, 9)[:-1]
        radii = rng.uniform(0.55, 1.0, 8)
        return [Part(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1).astype(np.float32), "body")]
    if pick == 1:
        return [Part(_box(-1, -0.13, 1, 0.13), "body"), Part(_ellipse(rng.uniform(-0.8, 0.8), 0, 0.2, 0.2), "second")]
    if pick == 2:
        return [Part(_points((-0.9, 0.6), (0.9, rng.uniform(0.2, 0.8)), (rng.uniform(-0.5, 0.5), -0.8)), "body")]
    return [Part(np.concatenate([_ellipse(0, 0, 0.9, 0.9), _ellipse(0, 0, 0.6, 0.6)[::-1]]), "body")]
