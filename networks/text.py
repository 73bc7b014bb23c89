"""Text embeddings of categories: bare names for the segmenter, prompt ensembles for retrieval.

Next: ``clip.py`` (the model), ``tokenizer.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from networks.clip import ClipModel
from utils.errors import UserError

BATCH_SIZE = 256


@torch.inference_mode()
def encode_texts(clip: ClipModel, texts: Sequence[str]) -> Tensor:
    """Features of any number of texts, in batches: (n, D), not normalised, in the model's dtype, on its device.

    Texts of similar length share a batch, because the columns behind the longest one are never computed.
    """
    check_names(texts, "texts")
    ids = clip.tokenize(texts)
    order = ids.argmax(dim=-1).argsort(stable=True)
    features = torch.cat([clip.encode_text(ids[rows]) for rows in order.split(BATCH_SIZE)])
    return features[order.argsort().to(features.device)]


def encode_categories(clip: ClipModel, names: Sequence[str]) -> Tensor:
    """Text embeddings that the segmenter compares patch tokens with.

    Args:
        clip: the CLIP that the segmenter's encoder comes from.
        names: category names as they are, background first; no template is put around them.

    Returns:
        (N, D), float32, unit length, on the model's device.

    Raises:
        UserError: if there is no name, or an empty one, or one longer than CLIP's context.

    Source: ZUTIS, section 3.2; features become float32 before they are normalised.
    """
    features = encode_texts(clip, names).float()
    return features / features.norm(dim=-1, keepdim=True)


def encode_prompt_ensemble(clip: ClipModel, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Text embeddings for retrieval: one per category, averaged over prompt templates.

    Args:
        clip: the CLIP of the image index.
        names: category names.
        templates: sentences with ``{}`` where the name goes.

    Returns:
        (N, D), float32, on the model's device: normalised per prompt, averaged, normalised again, all in the model's
        dtype. Kept as published: with a single template the feature as it is, not normalised.

    Raises:
        UserError: if there is no name or template, or a template without ``{}``.

    Source: CLIP (Radford et al. 2021), section 3.1.4.
    """
    check_names(names, "category names")
    if not templates or any("{}" not in template for template in templates):
        wrong = [template for template in templates if "{}" not in template]
        found = f"received {wrong[0]!r}" if wrong else "received none"
        raise UserError(f"expected prompt templates with {{}} in the place of the category name, {found}.")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    features = encode_texts(clip, prompts)
    return average_prompts(features.unflatten(0, (len(names), len(templates)))).float()


def average_prompts(features: Tensor) -> Tensor:
    """One embedding per category out of those of its prompts.

    Args:
        features: text features (N, T, D) of N categories with T prompts each, not normalised.

    Returns:
        (N, D) in the same dtype: mean of unit vectors, unit length. Kept as published: a single prompt's feature as it
        is, not normalised.
    """
    if features.shape[1] == 1:
        return features[:, 0]
    mean = (features / features.norm(dim=-1, keepdim=True)).mean(dim=1)
    return mean / mean.norm(dim=-1, keepdim=True)


def check_names(names: Sequence[str], what: str) -> None:
    """UserError if ``names`` is empty or holds an empty string.

    The empty string itself is a text that CLIP can encode, but as a category it is a mistake in the settings.
    """
    if len(names) == 0:
        raise UserError(f"expected at least one of {what}, received none; list the categories to look for.")
    blank = [position for position, name in enumerate(names) if not name.strip()]
    if blank:
        raise UserError(f"{what}: number {blank[0] + 1} of {len(names)} is empty; remove it or give it a name.")
