"""The built-in world ``shapes``: pictures whose truth is known, written as real files in real layouts.

Fourteen named kinds of things stand, whole or half hidden, on clouded and patterned grounds in changing light, among
unnamed things. What each cue does:

* form is a kind's own, but turned, stretched, cut off, 8-70 % of the side, and seen through blur and noise;
* colour and texture are tendencies: a kind likes two or three of each, every one is liked by several kinds, and six
  times in a hundred a thing ignores them; so colour alone or texture alone names about a third of the things;
* the second colour and the dark and light details (a window, an eye, a wheel) help, but small things hide them;
* unnamed things take any colour and texture: being colourful does not make a named thing.

``make_scene`` makes one picture, ``make_world`` writes a folder; ``python -m datasets.shapes FOLDER`` does the latter.
"""

from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import Scene, Thing, make_scene
from datasets.shapes.world import World, make_world, read_truth

__all__ = ["CATEGORY_NAMES", "Scene", "Thing", "World", "make_scene", "make_world", "read_truth"]
