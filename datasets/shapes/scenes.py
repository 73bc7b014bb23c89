"""Composes the pictures of the shapes world together with their truth; a pure function of (seed, kind, index).

Next: ``captions.py`` words a scene, ``layouts.py`` writes scenes as real files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datasets.shapes import forms
from datasets.shapes.categories import CAPRICE, CATEGORIES, COLOURS, Category
from datasets.shapes.render import Look, Sprite, finish, paint_ground, paint_thing, paste, place
from datasets.shapes.textures import TEXTURE_NAMES

_COLOUR_NAMES = tuple(COLOURS)
#: An instance must keep this share of its pixels visible, and at least this many pixels.
_MIN_VISIBLE, _MIN_PIXELS = 0.45, 24


@dataclass(frozen=True)
class SceneKind:
    """What a kind of picture holds.

    Attributes:
        stream: number that separates the random streams of the kinds.
        count_weights: weight of 0, 1, 2, ... named things.
        main_size: range of the first thing's size, as a share of the shorter side.
        other_size: the same for the other things.
        max_unnamed: up to so many unnamed things.
        shapes: (height, width) as multiples of the image size, one is drawn.
    """

    stream: int
    count_weights: tuple[float, ...]
    main_size: tuple[float, float]
    other_size: tuple[float, float]
    max_unnamed: int
    shapes: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.0, 1.25), (1.25, 1.0))


#: "web": index pictures, often one dominant thing, some without any named one. "scene": benchmark pictures.
#: "single": one named thing. "caption": what captions are written for (square).
SCENE_KINDS: Mapping[str, SceneKind] = {
    "web": SceneKind(1, (0.1, 0.58, 0.2, 0.12), (0.35, 0.7), (0.14, 0.35), 2),
    "scene": SceneKind(2, (0.0, 0.25, 0.25, 0.2, 0.14, 0.1, 0.06), (0.2, 0.7), (0.08, 0.45), 2),
    "single": SceneKind(3, (0.0, 1.0), (0.2, 0.7), (0.1, 0.2), 2, ((1.0, 1.0),)),
    "caption": SceneKind(4, (0.08, 0.6, 0.2, 0.12), (0.15, 0.95), (0.15, 0.5), 2, ((1.0, 1.0),)),
}


@dataclass(frozen=True)
class Thing:
    """One visible named thing: ``category`` is the row of ``CATEGORIES``; words and size are for captions."""

    category: int
    colour: str
    texture: str
    size: float


@dataclass(frozen=True)
class Scene:
    """A picture and its truth.

    Attributes:
        image: uint8 RGB (H, W, 3).
        instances: uint8 (H, W); 0 is background (unnamed things too), k is ``things[k - 1]``.
        things: the named things, every one visible.
    """

    image: np.ndarray
    instances: np.ndarray
    things: tuple[Thing, ...]

    @property
    def category_map(self) -> np.ndarray:
        """Train ids, uint8 (H, W): 0 background, 1 + row of ``CATEGORIES`` else."""
        table = np.array([0] + [1 + thing.category for thing in self.things], dtype=np.uint8)
        return table[self.instances]


def _draw(weights: Mapping[str, float], every: Sequence[str], rng: np.random.Generator) -> str:
    if rng.random() < CAPRICE:
        return str(rng.choice(every))
    names = list(weights)
    return names[int(np.searchsorted(np.cumsum([weights[name] for name in names]), rng.random() * 0.999999))]


def draw_look(category: Category | None, size: float, rng: np.random.Generator) -> Look:
    """How one thing of a category looks, ``size`` pixels long; None: an unnamed thing."""
    if category is None:
        parts, turn = forms.unnamed(rng), 180.0
        colour, second = (str(rng.choice(_COLOUR_NAMES)) for _ in range(2))
        texture = str(rng.choice(TEXTURE_NAMES))
    else:
        parts, turn = category.form(rng), category.max_turn
        colour = _draw(category.colours, _COLOUR_NAMES, rng)
        second = _draw(category.second_colours, _COLOUR_NAMES, rng)
        texture = _draw(category.textures, TEXTURE_NAMES, rng)
    angle = float(np.deg2rad(rng.uniform(-turn, turn)))
    return Look(parts, colour, second, texture, size, angle, float(rng.uniform(0.8, 1.25)), bool(rng.random() < 0.5))


def _sprite(look: Look, size: tuple[int, int], rng: np.random.Generator) -> Sprite:
    """Paint at a random place; a thing may be cut off by the frame a little."""
    margin = 0.4 * look.size
    centre = [
        float(rng.uniform(margin, side - margin)) if side > 2 * margin else side / 2 + float(rng.normal(0, 0.04)) * side
        for side in size
    ]
    return paint_thing(look, (centre[0], centre[1]), rng)


def sprite_cover(sprite: Sprite, size: tuple[int, int]) -> np.ndarray:
    """The pixels of a picture that a painted thing hides, bool (H, W)."""
    cover = np.zeros(size, dtype=bool)
    meeting = place(sprite, size)
    if meeting is not None:
        cover[meeting[0], meeting[1]] = sprite.alpha[meeting[2], meeting[3]] > 0.5
    return cover


def add_instance(instances: np.ndarray, areas: list[int], cover: np.ndarray, value: int) -> bool:
    """Paint ``value`` where ``cover`` is, unless that hides an earlier thing or the new one is hardly there.

    Args:
        instances: number of the thing at every pixel, 0 for none, uint8 (H, W); changed.
        areas: pixels of every thing when it was painted; a named one is added.
        cover: pixels of the new thing, bool (H, W).
        value: its number, 0 for an unnamed thing.

    Returns:
        Whether there is room for it.
    """
    area = int(cover.sum())
    if value and area < _MIN_PIXELS:
        return False
    hidden = np.bincount(instances[cover], minlength=len(areas) + 1)
    visible = np.bincount(instances.ravel(), minlength=len(areas) + 1)
    for k, full in enumerate(areas, start=1):
        left = visible[k] - hidden[k]
        if hidden[k] and (left < _MIN_VISIBLE * full or left < _MIN_PIXELS):
            return False
    instances[cover] = value
    if value:
        areas.append(area)
    return True


def _plan(kind: SceneKind, category: int | None, rng: np.random.Generator) -> list[int]:
    """Rows of CATEGORIES to place, -1 for unnamed things; the unnamed come first or last."""
    weights = np.array(kind.count_weights)
    count = int(rng.choice(len(weights), p=weights / weights.sum()))
    named = [int(c) for c in rng.integers(len(CATEGORIES), size=count)]
    if named and category is not None:
        named[0] = category
    if len(named) > 1 and rng.random() < 0.2:  # several of one kind
        named[1] = named[0]
    unnamed = int(rng.integers(kind.max_unnamed + 1)) + (not named)
    in_front = int(rng.random() < 0.3) if unnamed else 0
    return [-1] * (unnamed - in_front) + named + [-1] * in_front


def make_scene(kind: str, index: int, *, image_size: int = 128, seed: int = 0, category: int | None = None) -> Scene:
    """Make one picture with its truth.

    Args:
        kind: key of ``SCENE_KINDS``.
        index: number of the picture in its stream.
        image_size: shorter side in pixels.
        seed: number of the world.
        category: row of ``CATEGORIES`` for the first thing; None draws it.

    Returns:
        The scene; the same arguments give the same bytes.

    Raises:
        ValueError: if the kind is unknown or the image size is below 32.
    """
    if kind not in SCENE_KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}: choose one of {', '.join(SCENE_KINDS)}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32, received {image_size}")
    recipe = SCENE_KINDS[kind]
    rng = np.random.default_rng([seed, recipe.stream, index])
    shape = recipe.shapes[int(rng.integers(len(recipe.shapes)))]
    size = (round(image_size * shape[0]), round(image_size * shape[1]))
    canvas = paint_ground(size, rng)
    instances = np.zeros(size, dtype=np.uint8)
    things: list[Thing] = []
    areas: list[int] = []
    for row in _plan(recipe, category, rng):
        for _ in range(6):
            share = _share(recipe, row, bool(things), rng)
            look = draw_look(None if row < 0 else CATEGORIES[row], max(share * image_size, 7.0), rng)
            sprite = _sprite(look, size, rng)
            if add_instance(instances, areas, sprite_cover(sprite, size), 0 if row < 0 else len(things) + 1):
                paste(canvas, sprite)
                if row >= 0:
                    things.append(Thing(row, look.colour, look.texture, share))
                break
    return Scene(finish(canvas, rng), instances, tuple(things))


def _share(recipe: SceneKind, row: int, has_main: bool, rng: np.random.Generator) -> float:
    """Size as a share of the side: log-uniform, so that small things are as usual as they are in photographs."""
    low, high = (0.1, 0.28) if row < 0 else recipe.other_size if has_main else recipe.main_size
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
