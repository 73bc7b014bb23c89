"""Words for scenes of the shapes world, as people would caption photographs: bare names, phrases, prompts, lists.

The words name what is there and sometimes its colour or size; they never say where it is. Next: ``layouts.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import Thing

#: Ways to say one thing. "{}" takes the name with or without an adjective.
SINGLE_TEMPLATES: tuple[str, ...] = (
    "a {}",
    "the {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}",
    "an image of the {}",
    "a bad photo of a {}.",
    "a good photo of the {}.",
    "a close-up photo of a {}.",
    "a cropped photo of the {}.",
    "a bright photo of the {}.",
    "a dark photo of a {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a pixelated photo of the {}.",
    "a jpeg corrupted photo of a {}.",
    "a black and white photo of the {}.",
    "a photo of my {}.",
    "a photo of one {}.",
    "a photo of the hard to see {}.",
    "a photo of a nice {}.",
    "a photo of the clean {}.",
    "a photo of a dirty {}.",
    "a photo of the cool {}.",
    "a photo of the weird {}.",
    "a drawing of a {}.",
    "a painting of the {}.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a rendering of a {}.",
    "a rendition of the {}.",
    "a sculpture of a {}.",
    "a tattoo of the {}.",
    "graffiti of a {}.",
    "art of the {}.",
    "a cartoon {}.",
    "a toy {}.",
    "the plastic {}.",
    "the origami {}.",
    "the embroidered {}.",
    "a plushie {}.",
    "a {} in a video game.",
    "itap of my {}.",
    "there is a {} in the scene.",
    "this is the {} in the scene.",
    "{} on a plain background",
    "one {} and nothing else",
    "look at this {}!",
)
_PAIR_TEMPLATES = ("{} and {}", "a {} and a {}", "a photo of a {} and a {}.", "a {} next to a {}", "the {} with the {}")
_LIST_STARTS = ("", "a photo of ", "a picture with ", "there are ")
_MANY_TEMPLATES = ("a photo of many {}.", "two {}", "several {}", "many {}")
_EMPTY_CAPTIONS = (
    "background",
    "a background",
    "the background",
    "a photo of the background.",
    "a photo of a background.",
    "just background",
    "an empty background",
    "nothing but background",
    "background only",
)


def _phrase(thing: Thing, rng: np.random.Generator) -> str:
    words = []
    if rng.random() < 0.12:
        words.append("large" if thing.size > 0.5 else "small" if thing.size < 0.25 else "medium")
    if rng.random() < 0.3:
        words.append(thing.colour)
    return " ".join([*words, CATEGORY_NAMES[thing.category]])


def write_caption(things: Sequence[Thing], rng: np.random.Generator) -> str:
    """Word one picture.

    Args:
        things: the named things of the scene, any number.
        rng: draws template, order, adjectives.

    Returns:
        One line of text. It names every kind in the picture, except that lists now and then drop a small thing, as
        people's captions do.
    """
    things = list(things)
    if not things:
        return str(rng.choice(_EMPTY_CAPTIONS))
    if len(things) > 1 and rng.random() < 0.1:
        things = [thing for thing in things if thing.size > 0.2] or things[:1]
    if len({thing.category for thing in things}) == 1:
        if len(things) > 1 and rng.random() < 0.3:
            return str(rng.choice(_MANY_TEMPLATES)).format(CATEGORY_NAMES[things[0].category])
        if rng.random() < 0.3:
            return CATEGORY_NAMES[things[0].category]
        return str(rng.choice(SINGLE_TEMPLATES)).format(_phrase(things[0], rng))
    phrases = list(dict.fromkeys(_phrase(things[i], rng) for i in rng.permutation(len(things))))
    if len(phrases) == 2:
        return str(rng.choice(_PAIR_TEMPLATES)).format(*phrases)
    return str(rng.choice(_LIST_STARTS)) + ", ".join(phrases[:-1]) + " and " + phrases[-1]


def mentioned_categories(caption: str) -> frozenset[str]:
    """Names of the world that occur as words in a caption (read from the text alone)."""
    words = caption.lower().replace(",", " ").replace(".", " ").replace("!", " ").split()
    return frozenset(words).intersection(CATEGORY_NAMES)
