"""The named kinds of the shapes world and what each cue says about them.

Form is a kind's own, but it turns, stretches, is cut off and is seen through noise. Colour and texture are tendencies:
each kind has a few it likes, each colour and texture is liked by several kinds, and once in a while a thing takes any
colour at all. So no single cue decides, and all three together do. ``tests/datasets/test_shapes.py`` measures that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from datasets.shapes import forms

#: RGB of the colour words, before jitter.
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (208, 40, 44),
    "orange": (236, 132, 30),
    "yellow": (240, 206, 48),
    "green": (52, 158, 62),
    "teal": (28, 164, 160),
    "blue": (46, 84, 206),
    "purple": (132, 56, 178),
    "pink": (238, 112, 168),
    "brown": (128, 74, 36),
    "white": (238, 236, 228),
}

#: A thing ignores its kind's colours, or its kind's textures, this often.
CAPRICE = 0.06


@dataclass(frozen=True)
class Category:
    """One named kind of thing.

    Attributes:
        name: the word used in captions.
        form: draws the parts.
        colours: colour word -> how often (sums to 1).
        second_colours: the same for the second colour.
        textures: texture name -> how often (sums to 1).
        max_turn: largest rotation in degrees, either way.
    """

    name: str
    form: forms.Form
    colours: Mapping[str, float]
    second_colours: Mapping[str, float]
    textures: Mapping[str, float]
    max_turn: float


CATEGORIES: tuple[Category, ...] = (
    Category(
        "fish",
        forms.fish,
        {"orange": 0.5, "blue": 0.3, "white": 0.2},
        {"orange": 0.5, "yellow": 0.5},
        {"scales": 0.6, "stripes": 0.4},
        35,
    ),
    Category(
        "mushroom",
        forms.mushroom,
        {"red": 0.55, "brown": 0.3, "orange": 0.15},
        {"brown": 0.5, "white": 0.5},
        {"dots": 0.7, "plain": 0.3},
        20,
    ),
    Category(
        "kite",
        forms.kite,
        {"purple": 0.4, "yellow": 0.35, "red": 0.25},
        {"teal": 0.5, "pink": 0.5},
        {"checks": 0.5, "plain": 0.5},
        50,
    ),
    Category(
        "house",
        forms.house,
        {"brown": 0.45, "yellow": 0.3, "white": 0.25},
        {"red": 0.6, "purple": 0.4},
        {"bricks": 0.7, "hatch": 0.3},
        8,
    ),
    Category(
        "star",
        forms.star,
        {"yellow": 0.6, "pink": 0.2, "white": 0.2},
        {"orange": 0.5, "yellow": 0.5},
        {"plain": 0.5, "rings": 0.5},
        180,
    ),
    Category(
        "cup",
        forms.cup,
        {"blue": 0.45, "white": 0.3, "red": 0.25},
        {"blue": 0.5, "white": 0.5},
        {"bands": 0.6, "dots": 0.4},
        15,
    ),
    Category(
        "flower",
        forms.flower,
        {"pink": 0.55, "purple": 0.25, "red": 0.2},
        {"yellow": 0.7, "orange": 0.3},
        {"plain": 0.6, "waves": 0.4},
        180,
    ),
    Category(
        "car",
        forms.car,
        {"red": 0.4, "green": 0.3, "blue": 0.3},
        {"red": 0.4, "green": 0.3, "blue": 0.3},
        {"plain": 0.7, "bands": 0.3},
        12,
    ),
    Category(
        "boat",
        forms.boat,
        {"white": 0.45, "teal": 0.35, "orange": 0.2},
        {"brown": 0.6, "blue": 0.4},
        {"stripes": 0.6, "checks": 0.4},
        15,
    ),
    Category(
        "tree",
        forms.tree,
        {"green": 0.65, "orange": 0.2, "brown": 0.15},
        {"brown": 1.0},
        {"grain": 0.7, "scales": 0.3},
        12,
    ),
    Category(
        "butterfly",
        forms.butterfly,
        {"purple": 0.4, "blue": 0.3, "orange": 0.3},
        {"yellow": 0.5, "purple": 0.5},
        {"rings": 0.6, "dots": 0.4},
        60,
    ),
    Category(
        "umbrella",
        forms.umbrella,
        {"teal": 0.5, "pink": 0.3, "purple": 0.2},
        {"white": 0.5, "teal": 0.5},
        {"waves": 0.6, "bands": 0.4},
        25,
    ),
    Category(
        "clock",
        forms.clock,
        {"brown": 0.4, "teal": 0.3, "yellow": 0.3},
        {"yellow": 0.5, "brown": 0.5},
        {"hatch": 0.5, "plain": 0.5},
        20,
    ),
    Category(
        "cactus",
        forms.cactus,
        {"green": 0.6, "teal": 0.25, "pink": 0.15},
        {"orange": 0.6, "brown": 0.4},
        {"stripes": 0.6, "grain": 0.4},
        12,
    ),
)

CATEGORY_NAMES: tuple[str, ...] = tuple(category.name for category in CATEGORIES)
