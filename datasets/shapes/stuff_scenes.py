"""Composes the stuff variant of the shapes world: regions of ground with things on them, where every pixel has a name.

Like ``scenes.py`` a pure function of (seed, kind, index). Grounds: ``surfaces.py`` and ``regions.py``; words:
``captions.py``; files: ``stuff_layouts.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from datasets.shapes.categories import CATEGORIES, CATEGORY_NAMES
from datasets.shapes.regions import draw_plan, paint_regions
from datasets.shapes.render import finish, paint_thing, paste
from datasets.shapes.scenes import Thing, add_instance, draw_look, sprite_cover
from datasets.shapes.surfaces import SURFACE_NAMES, SURFACE_ROWS

#: Things of the stuff world and the grounds that they are mostly seen on.
HOMES: Mapping[str, tuple[str, ...]] = {
    "house": ("grass", "field", "snow"),
    "tree": ("grass", "field", "snow"),
    "car": ("road",),
    "boat": ("water",),
    "kite": ("sky",),
    "clock": ("wall",),
    "mushroom": ("grass", "field"),
    "cactus": ("sand",),
}
#: Labels of the stuff world in order: the grounds, then the things. There is no background.
STUFF_CATEGORY_NAMES: tuple[str, ...] = (*SURFACE_NAMES, *HOMES)
VOID = 255
_THING_ROWS = tuple(CATEGORY_NAMES.index(name) for name in HOMES)
_AT_HOME = 0.65  # how often a thing is where it belongs, if there is such a place


@dataclass(frozen=True)
class StuffKind:
    """What a kind of picture holds.

    Attributes:
        stream: number that separates the random streams of the kinds.
        band_weights: weight of 1, 2, 3, ... grounds below each other.
        patch_share: how often another ground lies in the lowest one.
        count_weights: weight of 0, 1, 2, ... named things.
        sizes: range of the things' size, as a share of the shorter side.
        unnamed_share: how often there is an unnamed thing, whose pixels are void.
        shapes: (height, width) as multiples of the image size, one is drawn.
    """

    stream: int
    band_weights: tuple[float, ...]
    patch_share: float
    count_weights: tuple[float, ...]
    sizes: tuple[float, float]
    unnamed_share: float = 0.15
    shapes: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.0, 1.25), (1.25, 1.0))


#: "stuff_web": index pictures. "stuff_scene": benchmark pictures. "stuff_caption": what captions are written for.
STUFF_KINDS: Mapping[str, StuffKind] = {
    "stuff_web": StuffKind(5, (0.2, 0.45, 0.3, 0.05), 0.2, (0.3, 0.5, 0.2), (0.4, 0.7)),
    "stuff_scene": StuffKind(6, (0.06, 0.4, 0.4, 0.14), 0.25, (0.2, 0.4, 0.25, 0.15), (0.25, 0.55)),
    "stuff_caption": StuffKind(7, (0.4, 0.4, 0.2), 0.2, (0.35, 0.45, 0.2), (0.25, 0.7), shapes=((1.0, 1.0),)),
}


@dataclass(frozen=True)
class StuffScene:
    """A picture and its truth.

    Attributes:
        image: uint8 RGB (H, W, 3).
        labels: rows of ``STUFF_CATEGORY_NAMES``, uint8 (H, W); 255 on unnamed things.
        instances: uint8 (H, W), 0 where no named thing is, k where ``things[k - 1]`` is.
        things: the named things, every one visible; their ``category`` is a row of ``CATEGORIES``.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    things: tuple[Thing, ...]

    @cached_property
    def shares(self) -> dict[str, float]:
        """Category name -> share of the pixels, for those that occur, in label order."""
        counts = np.bincount(self.labels.ravel(), minlength=len(STUFF_CATEGORY_NAMES))
        counts = counts[: len(STUFF_CATEGORY_NAMES)]
        return {STUFF_CATEGORY_NAMES[row]: float(counts[row] / self.labels.size) for row in np.flatnonzero(counts)}


def make_stuff_scene(
    kind: str,
    index: int,
    *,
    image_size: int = 160,
    seed: int = 0,
    shape: tuple[float, float] | None = None,
) -> StuffScene:
    """Make one picture of the stuff world with its truth.

    Args:
        kind: key of ``STUFF_KINDS``.
        index: number of the picture in its stream.
        image_size: shorter side in pixels.
        seed: number of the world.
        shape: (height, width) as multiples of the image size; None draws one of the kind's.

    Returns:
        The scene; the same arguments give the same bytes.

    Raises:
        ValueError: if the kind is unknown or the image size is below 32.
    """
    if kind not in STUFF_KINDS:
        raise ValueError(f"unknown kind of scene {kind!r}: choose one of {', '.join(STUFF_KINDS)}")
    if image_size < 32:
        raise ValueError(f"image_size must be at least 32, received {image_size}")
    recipe = STUFF_KINDS[kind]
    rng = np.random.default_rng([seed, recipe.stream, index])
    drawn = recipe.shapes[int(rng.integers(len(recipe.shapes)))]
    height, width = shape or drawn
    size = (round(image_size * height), round(image_size * width))
    plan = draw_plan(recipe.band_weights, recipe.patch_share, rng)
    canvas, labels = paint_regions(plan, size, rng)
    instances, things, areas = np.zeros(size, np.uint8), [], []
    for row in _draw_things(recipe, rng):
        for _ in range(6):
            share = 0.2 if row < 0 else float(np.exp(rng.uniform(*np.log(recipe.sizes))))
            look = draw_look(None if row < 0 else CATEGORIES[row], max(share * image_size, 7.0), rng)
            sprite = paint_thing(look, _draw_place(row, labels, look.size, rng), rng)
            cover = sprite_cover(sprite, size)
            if add_instance(instances, areas, cover, 0 if row < 0 else len(things) + 1):
                paste(canvas, sprite)
                labels[cover] = VOID if row < 0 else STUFF_CATEGORY_NAMES.index(CATEGORY_NAMES[row])
                if row >= 0:
                    things.append(Thing(row, look.colour, look.texture, share))
                break
    return StuffScene(finish(canvas, rng), labels, instances, tuple(things))


def _draw_things(recipe: StuffKind, rng: np.random.Generator) -> list[int]:
    """Rows of CATEGORIES to place; now and then an unnamed thing, -1, before them."""
    weights = np.array(recipe.count_weights)
    count = int(rng.choice(len(weights), p=weights / weights.sum()))
    unnamed = [-1] if rng.random() < recipe.unnamed_share else []
    return unnamed + [int(row) for row in rng.choice(_THING_ROWS, count)]


def _draw_place(row: int, labels: np.ndarray, length: float, rng: np.random.Generator) -> tuple[float, float]:
    """Middle (y, x) of a thing: mostly in a region where it belongs, and never cut off by much."""
    margins = [min(0.42 * length, side / 2) for side in labels.shape]
    inner = tuple(slice(int(m), max(int(side - m), int(m) + 1)) for m, side in zip(margins, labels.shape, strict=True))
    room = labels[inner]
    homes = [SURFACE_ROWS[name] for name in HOMES[CATEGORY_NAMES[row]]] if row >= 0 else []
    candidates = np.flatnonzero(np.isin(room, homes)) if rng.random() < _AT_HOME else []
    place = int(rng.choice(candidates)) if len(candidates) else int(rng.integers(room.size))
    y, x = divmod(place, room.shape[1])
    return float(y + inner[0].start), float(x + inner[1].start)
