"""Reference embeddings of all categories of a benchmark, context categories first, computed no more often than needed.

One category: ``cosegmentation.py``. Pictures to features: ``reference_pictures.py``. The result as a file:
``references.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pseudo_labels.cosegmentation import Cosegmentation, cosegment
from pseudo_labels.references import References, ReferenceSettings
from utils.errors import ConfigError

# Names of the same thing in different benchmarks. Kept for the released reference embeddings.
SYNONYMS = {"vegetation": "tree"}


class CategoryFeatures(NamedTuple):
    """What co-segmentation needs to know of the k pictures of a category.

    Attributes:
        features: of the image encoder, not normalised, (k, D, h, w).
        dense_features: of the dense CLIP, (k, D', h', w'); None without text attention.
        text: unit text vector of the name, (D',); None without text attention.
    """

    features: Tensor
    dense_features: Tensor | None = None
    text: Tensor | None = None


Watcher = Callable[[str, Cosegmentation], None]


def needed_categories(categories: Sequence[str], settings: ReferenceSettings) -> list[str]:
    """The names that pictures are needed for, in the order in which ``build_references`` takes them.

    Args:
        categories: names of the benchmark.
        settings: context categories, and whether they are eliminated.

    Returns:
        Context categories first, then those of the benchmark that do not share a reference with them.

    Raises:
        ConfigError: if a name occurs twice.
    """
    for names, what in ((categories, "categories"), (settings.context_categories, "context_categories")):
        if twice := sorted({name for name in names if list(names).count(name) > 1}):
            raise ConfigError(f"{what}: {', '.join(map(repr, twice))} is listed more than once.")
    context = list(settings.used_context)
    return context + [name for name in categories if _known_as(name, context) is None]


def _known_as(name: str, context: Sequence[str]) -> str | None:
    """The context category whose reference a name shares, if there is one."""
    return next((known for known in (name, SYNONYMS.get(name)) if known in context), None)


@torch.no_grad()
def build_references(
    categories: Sequence[str],
    features: Iterable[CategoryFeatures],
    settings: ReferenceSettings,
    *,
    known: Mapping[str, Tensor] | None = None,
    watcher: Watcher | None = None,
) -> References:
    """Compute the reference embedding of every category.

    Args:
        categories: names of the benchmark, in the order of their labels.
        features: of every name of ``needed_categories`` that is not known, in that order; the next one is asked for
            when the one before has been used, so only one need be in memory.
        settings: text attention, context elimination, context categories, temperature, seed window.
        known: references that were computed before with these settings, (D,) each: of context categories and of others.
        watcher: called after each co-segmentation.

    Returns:
        References of the categories and of the context, on the CPU.

    Raises:
        ConfigError: if a name occurs twice.

    Source: ReCo, section 3.1. A context category is weighted by those before it, a category of the benchmark by all of
    them; a benchmark category that is a context category (vegetation counts as tree) has that one's reference. Without
    context elimination there are no context references, and all categories are computed.
    """
    context = list(settings.used_context)
    found = dict(known or {})
    missing = [name for name in needed_categories(categories, settings) if name not in found]
    for name, given in zip(missing, features, strict=True):
        around = context[: context.index(name)] if name in context else context
        before = [found[other] for other in around]
        result = cosegment(
            given.features,
            dense_features=given.dense_features if settings.text_attention else None,
            text=given.text if settings.text_attention else None,
            context=torch.stack(before) if before else None,
            temperature=settings.temperature,
            window=settings.seed_window,
        )
        found[name] = result.reference
        if watcher is not None:
            watcher(name, result)
    vectors = torch.stack([found[_known_as(name, context) or name] for name in categories])
    of_context = torch.stack([found[name] for name in context]) if context else vectors[:0]
    return References(tuple(categories), vectors.cpu(), tuple(context), of_context.cpu())
