"""Words for scenes of the shapes world, as people would caption photographs: bare names, phrases, prompts, lists.

The words name what is there and sometimes its colour or size; they never say where it is. Next: ``layouts.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

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
#: Ways to say one ground, which has no plural and no article of its own; and openings of the list of all that is there.
GROUND_TEMPLATES: tuple[str, ...] = (
    "{}",
    "the {}",
    "some {}",
    "a photo of {}.",
    "a picture of the {}",
    "a close-up photo of the {}.",
    "there is {} in the scene.",
    "a texture of {}",
)
_STUFF_LIST_STARTS = ("", "", "a photo of ", "a picture with ", "a view of ", "a scene of ")
_MIN_SHARE = 0.015  # of the picture; nobody mentions less
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


def write_stuff_caption(shares: Mapping[str, float], things: Sequence[Thing], rng: np.random.Generator) -> str:
    """Word one picture of the stuff world.

    Args:
        shares: name -> share of the picture, of everything that can be seen.
        things: the named things of the scene, for their colours and sizes.
        rng: draws template, order, adjectives.

    Returns:
        One line of text: often all grounds and things but those that are hardly there, otherwise only one of them, the
        likelier the larger it is and things more than grounds, as people's captions do.
    """
    phrases = {name: name for name, share in shares.items() if share >= _MIN_SHARE}
    for thing in things:
        name = CATEGORY_NAMES[thing.category]
        if name in phrases:
            phrases[name] = "a " + _phrase(thing, rng)
    if len(phrases) > 1 and rng.random() < 0.45:
        interest = np.array([np.sqrt(shares[name]) * (1 + 2 * (phrases[name] != name)) for name in phrases])
        chosen = str(rng.choice(list(phrases), p=interest / interest.sum()))
        phrases = {chosen: phrases[chosen]}
    if len(phrases) == 1:
        ((name, phrase),) = phrases.items()
        if rng.random() < 0.5:
            return str(rng.choice(SINGLE_TEMPLATES)).format(phrase.removeprefix("a "))
        return name if phrase != name else str(rng.choice(GROUND_TEMPLATES)).format(name)
    words = [phrases[name] for name in rng.permutation(list(phrases))]
    if len(words) == 2 and rng.random() < 0.5:
        return f"{words[0]} with {words[1]}"
    return str(rng.choice(_STUFF_LIST_STARTS)) + ", ".join(words[:-1]) + " and " + words[-1]


def mentioned_categories(caption: str, names: Collection[str] = CATEGORY_NAMES) -> frozenset[str]:
    """Which of these names occur as words in a caption (read from the text alone)."""
    words = caption.lower().replace(",", " ").replace(".", " ").replace("!", " ").split()
    return frozenset(words).intersection(names)
