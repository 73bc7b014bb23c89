"""The built-in world ``shapes``: pictures whose truth is known, written as real files in real layouts.

Fourteen named kinds of things stand, whole or half hidden, on clouded and patterned grounds in changing light, among
unnamed things. What each cue does:

* form is a kind's own, but turned, stretched, cut off, 8-70 % of the side, and seen through blur and noise;
* colour and texture are tendencies: a kind likes two or three of each, every one is liked by several kinds, and six
  times in a hundred a thing ignores them; so colour alone or texture alone names about a third of the things;
* the second colour and the dark and light details (a window, an eye, a wheel) help, but small things hide them;
* unnamed things take any colour and texture: being colourful does not make a named thing.

The stuff variant puts some of the same things on grounds that have names: sky, water, grass, sand, road, wall, snow and
field lie below and within each other with borders of many kinds, and every pixel belongs to a category, but for those
of unnamed things. There the structure of a ground is its own, and its colours are shared.

``make_scene`` and ``make_stuff_scene`` make one picture, ``make_world`` writes a folder; ``python -m datasets.shapes
FOLDER`` does the latter.
"""

from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import Scene, Thing, make_scene
from datasets.shapes.stuff_scenes import STUFF_CATEGORY_NAMES, StuffScene, make_stuff_scene
from datasets.shapes.world import World, make_world, read_truth

__all__ = [
    "CATEGORY_NAMES",
    "STUFF_CATEGORY_NAMES",
    "Scene",
    "StuffScene",
    "Thing",
    "World",
    "make_scene",
    "make_stuff_scene",
    "make_world",
    "read_truth",
]
