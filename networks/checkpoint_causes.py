"""Why weights do not fit: recognise what a set of names and shapes is, and compare it with what was expected."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]
_VIT_NAMES = {  # (width, patch, grid) of OpenAI's vision transformers
    (768, 32, 7): "ViT-B/32",
    (768, 16, 14): "ViT-B/16",
    (1024, 14, 16): "ViT-L/14",
    (1024, 14, 24): "ViT-L/14@336px",
}
_RESNET_NAMES = {(3, 4, 6, 3): "RN50", (3, 4, 23, 3): "RN101", (4, 6, 10, 6): "RN50x4", (6, 8, 18, 8): "RN50x16"}
_RESNET_NAMES[(3, 15, 36, 10)] = "RN50x64"


def likely_cause(found: State, expected: State) -> str | None:
    """Say in one sentence why `found` does not fit a network that has the entries `expected`; None if unclear.

    Args:
        found: names and tensors of the file.
        expected: names and tensors of the network.
    """
    kind_found, kind_expected = recognise(found), recognise(expected)
    if kind_found != kind_expected and kind_found and kind_expected:
        return f"these look like {kind_found} weights; the config asks for {kind_expected}"
    for describe in (clip_architecture, deeplab_backbone, _num_queries, _decoder_layers, _depth, _categories):
        here, there = describe(found), describe(expected)
        if here and there and here != there:
            return f"these look like {here} weights; the config says {there}"
    overlap = len(set(found) & set(expected))
    if overlap == 0:
        return _prefix_cause(found, expected)
    return None


def recognise(state: State) -> str | None:
    """The system a state dict belongs to ("ZUTIS", "SelfMask", "CLIP", ...), by names that only it has, or None."""
    if "classifier.aspp.project.0.weight" in state and "classifier.classifier.3.weight" in state:
        return "DeepLabv3+"
    if "encoder.patch_embed.proj.weight" in state and "query_embed" in state:
        return "SelfMask"
    if "query_embed" in state and any(name.startswith("ffn1.") for name in state):
        return "ZUTIS"
    if "text_projection" in state and "token_embedding.weight" in state:
        return "CLIP"
    if "patch_embed.proj.weight" in state and "cls_token" in state:
        return "ViT (DINO or timm)"
    if "conv1.weight" in state and "layer1.0.conv1.weight" in state:
        return "ResNet"
    return None


def _visual_prefix(state: State) -> str | None:
    return next((prefix for prefix in ("encoder.", "visual.", "") if f"{prefix}conv1.weight" in state), None)


def clip_architecture(state: State) -> str | None:
    """OpenAI's name of the vision tower in a CLIP or ZUTIS state dict."""
    prefix = _visual_prefix(state)
    if prefix is None:
        return None
    stages = tuple(_count(state, rf"{re.escape(prefix)}layer{stage}\.(\d+)\.") for stage in range(1, 5))
    if any(stages):
        return _RESNET_NAMES.get(stages, f"ResNet {stages}")
    conv, table = state[f"{prefix}conv1.weight"], state.get(f"{prefix}positional_embedding")
    if conv.ndim != 4 or table is None or table.ndim != 2:
        return None
    width, patch, grid = conv.shape[0], conv.shape[-1], math.isqrt(max(table.shape[0] - 1, 0))
    return _VIT_NAMES.get((width, patch, grid), f"ViT (width {width}, patch {patch}, grid {grid})")


def deeplab_backbone(state: State) -> str | None:
    """Name of the backbone in a DeepLabv3+ state dict ("resnet50", "resnet101", "mobilenet")."""
    if "backbone.low_level_features.0.0.weight" in state:
        return "mobilenet"
    blocks = tuple(_count(state, rf"backbone\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
    names = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101"}
    return names.get(blocks, f"ResNet {blocks}") if any(blocks) else None


def _num_queries(state: State) -> str | None:
    queries = state.get("query_embed")
    if queries is None or queries.ndim != 2:
        return None
    name = f" (selfmask_nq{queries.shape[0]})" if recognise(state) == "SelfMask" else ""
    return f"{queries.shape[0]}-query{name}"


def _decoder_layers(state: State) -> str | None:
    layers = _count(state, r"decoder\.layers\.(\d+)\.")
    return f"{layers}-layer decoder" if layers else None


def _depth(state: State) -> str | None:
    blocks = _count(state, r"(?:encoder\.|visual\.)?(?:transformer\.resblocks|blocks)\.(\d+)\.")
    return f"{blocks}-block transformer" if blocks else None


def _categories(state: State) -> str | None:
    """Rows of the last classifier, for networks whose output layer counts categories."""
    for name in (
        *("classifier.classifier.3.weight", "head.weight", "fc.weight", "classifier.weight", "classifier.4.weight"),
        "text_embeddings",
    ):
        if name in state and state[name].ndim >= 1:
            return f"{state[name].shape[0]}-category"
    return None


def _count(state: State, pattern: str) -> int:
    """Number of different indices that a name pattern with one group takes."""
    matcher = re.compile(pattern)
    return len({match.group(1) for name in state if (match := matcher.match(name))})


def _prefix_cause(found: State, expected: State) -> str | None:
    """The prefix to add or remove, if that makes the names agree."""
    tail = next(iter(expected), "")
    for name in found:
        if name.endswith(f".{tail}"):
            return f"every name in the file carries the prefix {name.removesuffix(tail)!r}"
    head = next(iter(found), "")
    for name in expected:
        if head and name.endswith(f".{head}"):
            return f"the names in the file lack the prefix {name.removesuffix(head)!r}: they are a part of the network"
    return "the file belongs to another network: no name agrees"
