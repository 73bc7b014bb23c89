"""Sizes of a CLIP of OpenAI's kind, read from the shapes of its weights. Next: ``clip.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from utils.errors import WeightsError

OPENAI_MODELS = (
    "RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px",
)  # fmt: skip
TOWERS = ("image", "text")
_SMALLEST_VISION = {"image_resolution": 1, "vision_layers": 0, "vision_width": 64, "vision_patch_size": 1}
_SMALLEST_TEXT = {
    "context_length": 1, "vocab_size": 1, "transformer_width": 64, "transformer_heads": 1, "transformer_layers": 1,
}  # fmt: skip


@dataclass(frozen=True)
class ClipDimensions:
    """Sizes of a CLIP of OpenAI's kind; all can be read from its weights.

    Attributes:
        vision_layers: number of transformer blocks, or four block counts of a ResNet.
        vision_patch_size: side of a patch in pixels; None for a ResNet.
        image_resolution: side of the square input in pixels.
        embed_dim: dimension D of the joint space.
    """

    embed_dim: int
    image_resolution: int
    vision_layers: int | tuple[int, ...]
    vision_width: int
    vision_patch_size: int | None
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_heads: int
    transformer_layers: int

    @classmethod
    def from_state_dict(
        cls, state_dict: dict[str, Tensor], *, towers: Sequence[str] = TOWERS, source: str = "the checkpoint"
    ) -> ClipDimensions:
        """Read the sizes from the shapes of a checkpoint in OpenAI's names; WeightsError if it is not one.

        A tower that is not asked for gets the smallest possible sizes.
        """
        shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
        try:
            vision = _vision_dimensions(shapes) if "image" in towers else dict(_SMALLEST_VISION)
            text = _text_dimensions(shapes) if "text" in towers else dict(_SMALLEST_TEXT)
        except KeyError as error:
            raise WeightsError(
                f"{source}: these are not CLIP weights in OpenAI's names: {error} is missing. Give an OpenAI CLIP "
                f"file, one of the names {', '.join(OPENAI_MODELS)}, or open_clip:ARCHITECTURE/WEIGHTS."
            ) from error
        return cls(**{**vision, **text, "embed_dim": text.get("embed_dim") or vision["embed_dim"]})


def _count(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _text_dimensions(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    width = shapes["ln_final.weight"][0]
    return {
        "embed_dim": shapes["text_projection"][1],
        "context_length": shapes["positional_embedding"][0],
        "vocab_size": shapes["token_embedding.weight"][0],
        "transformer_width": width,
        "transformer_heads": max(width // 64, 1),
        "transformer_layers": _count(shapes, "transformer.resblocks."),
    }


def _vision_dimensions(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    if "visual.proj" in shapes:
        width, _, _, patch = shapes["visual.conv1.weight"]
        grid = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
        return {
            "embed_dim": shapes["visual.proj"][1],
            "image_resolution": grid * patch,
            "vision_layers": _count(shapes, "visual.transformer.resblocks."),
            "vision_width": width,
            "vision_patch_size": patch,
        }
    width = shapes["visual.layer1.0.conv1.weight"][0]
    grid = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    return {
        "embed_dim": shapes["visual.attnpool.c_proj.weight"][0],
        "image_resolution": grid * 32,
        "vision_layers": tuple(_count(shapes, f"visual.layer{i}.") for i in (1, 2, 3, 4)),
        "vision_width": width,
        "vision_patch_size": None,
    }
