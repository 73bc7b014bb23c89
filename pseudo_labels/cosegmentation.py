"""Co-segmentation: what the pictures of one category have in common, as one reference embedding.

Every picture contributes the place that finds its like in all the others, its seed. Which pictures, and in which order
the categories come: ``reference_building.py``. The embeddings as a file: ``references.py``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.cosine_maps import TEMPERATURE, cosine_maps, text_attention

SeedWindow = Literal["published", "own"]
SEED_WINDOWS: tuple[str, ...] = get_args(SeedWindow)
CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 28}  # of the adjacency matrix at a time
_SMALLEST_WEIGHT = 1e-12


class Cosegmentation(NamedTuple):
    """What was found in the k pictures of a category.

    Attributes:
        reference: unit vector (D,), float32.
        seeds: row-major index of every picture's seed, (k,), int64.
        weights: how much every position counts as a match, (k, h, w), float32 in [0, 1].
    """

    reference: Tensor
    seeds: Tensor
    weights: Tensor


def cosegment(
    features: Tensor,
    *,
    dense_features: Tensor | None = None,
    text: Tensor | None = None,
    context: Tensor | None = None,
    temperature: float = TEMPERATURE,
    window: SeedWindow = "published",
) -> Cosegmentation:
    """Find what the pictures of a category have in common.

    Args:
        features: the image encoder's, not normalised, (k, D, h, w), float32.
        dense_features, text, context, temperature: as in ``position_weights``.
        window: as in ``find_seeds``.

    Returns:
        Reference embedding, seeds, weights. The reference is the direction of the mean of the seeds' features as they
        are, so longer ones count more.

    Source: ReCo, section 3.1, eq. 1-3.
    Shapes: k pictures, D channels, h×w positions.
    """
    weights = position_weights(
        features, dense_features=dense_features, text=text, context=context, temperature=temperature
    )
    seeds = find_seeds(features, weights, window=window)
    chosen = features.flatten(2)[torch.arange(len(features), device=features.device), :, seeds]  # (k, D)
    return Cosegmentation(F.normalize(chosen.float().mean(dim=0), dim=0), seeds, weights)


def position_weights(
    features: Tensor,
    *,
    dense_features: Tensor | None = None,
    text: Tensor | None = None,
    context: Tensor | None = None,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """How much every position may count as a match.

    Args:
        features: the image encoder's, (k, D, h, w).
        dense_features: dense CLIP features of the same pictures, (k, D', h', w'); None: no text attention.
        text: unit text vector of the category, (D',); needed with ``dense_features``.
        context: unit references of categories that are always around, (m, D); None: no context elimination.
        temperature: factor of the text cosine inside the sigmoid.

    Returns:
        (k, h, w), float32 in [0, 1]: text attention times 1 - sigmoid(cosine) with every context reference.

    Raises:
        ValueError: if dense features come without text or the other way round.

    Source: ReCo, section 3.2 (text attention), 3.1 (context elimination, which has no temperature: a factor is never
    below 0.269).
    """
    if (dense_features is None) != (text is None):
        raise ValueError("dense features and the text vector are given together or not at all")
    grid = (features.shape[2], features.shape[3])
    weights = torch.ones(len(features), *grid, device=features.device)
    if dense_features is not None and text is not None:
        weights = weights * text_attention(dense_features, text, grid, temperature=temperature)
    if context is not None and len(context):
        weights = weights * (1 - cosine_maps(features, context).sigmoid()).prod(dim=1)
    return weights


@torch.no_grad()
def find_seeds(features: Tensor, weights: Tensor | None = None, *, window: SeedWindow = "published") -> Tensor:
    """The position of every picture that finds its like in all pictures.

    Args:
        features: (k, D, h, w).
        weights: of the positions as matches, (k, h, w), in [0, 1]; None: all 1. Candidates are not weighted.
        window: "own": the best match of a position in picture i is sought in picture i. "published": in the pictures
            i, i + 1, ..., 2i, as the program does that made the released reference embeddings.

    Returns:
        (k,), int64: row-major index per picture of the highest mean of best matches, the first of equal ones.

    Raises:
        ValueError: if there is no such window.

    Source: ReCo, section 3.1, eq. 2.
    """
    if window not in SEED_WINDOWS:
        raise ValueError(f"window must be one of {', '.join(SEED_WINDOWS)}, not {window!r}")
    unit = F.normalize(features.float().flatten(2), dim=1).transpose(1, 2)  # (k, D, h, w) -> (k, h·w, D)
    if weights is None:
        weights = torch.ones(unit.shape[:2], device=unit.device)
    matches = best_matches(unit, weights.flatten(1))
    if window == "published":
        last = len(features) - 1
        matches = torch.stack([matches[:, i : min(2 * i, last) + 1].amax(dim=1) for i in range(last + 1)], dim=1)
    return matches.mean(dim=1).view(len(features), -1).argmax(dim=1)


def best_matches(unit: Tensor, weights: Tensor) -> Tensor:
    """Similarity of every position with its best match in every picture.

    Args:
        unit: unit features, (k, P, D), float32.
        weights: of the positions as matches, (k, P), float32 in [0, 1].

    Returns:
        (k·P, k): maximum over the positions q of picture j of cosine(p, q) · weight(q).

    With the features scaled by their weights the adjacency matrix is symmetric: half of it is computed, some rows at a
    time, each block gives the maxima of both its sides, and the rows' own weights are divided out of those.
    """
    num_pictures, num_positions, _ = unit.shape
    weights = weights.clamp_min(_SMALLEST_WEIGHT)
    scaled = (unit * weights[..., None]).flatten(0, 1)  # (k·P, D)
    best = unit.new_empty(len(scaled), num_pictures)
    limit = CHUNK_ELEMENTS["cuda" if unit.is_cuda else "cpu"]
    step = max(limit // (num_positions * len(scaled)), 1)
    for first in range(0, num_pictures, step):
        last = min(first + step, num_pictures)
        start, stop = first * num_positions, last * num_positions
        block = scaled[start:stop] @ scaled[start:].T
        best[start:stop, first:] = block.unflatten(1, (-1, num_positions)).amax(dim=2)
        below = block[:, stop - start :].unflatten(0, (-1, num_positions))  # the same numbers seen from later pictures
        best[stop:, first:last] = below.amax(dim=1).T
    return best / weights.flatten()[:, None]
