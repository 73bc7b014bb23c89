"""Small CLIPs with fixed random weights for the tests of the networks."""

from __future__ import annotations

import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

from networks.clip import ClipDimensions, ClipModel, create_clip

VIT = ClipDimensions(
    embed_dim=32,
    image_resolution=32,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=2,
)
RESNET = ClipDimensions(
    embed_dim=32,
    image_resolution=64,
    vision_layers=(1, 1, 1, 1),
    vision_width=8,
    vision_patch_size=None,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


def tiny_clip(dimensions: ClipDimensions = VIT, seed: int = 0) -> ClipModel:
    """A CLIP of OpenAI's kind whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    clip = create_clip(dimensions).eval()
    with torch.no_grad():
        for parameter in clip.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return clip


def tiny_gelu_clip(**vision: object) -> CLIP:
    """A network of open_clip with GELU, layer scale and a head width of 16; ``vision`` changes the image tower."""
    torch.manual_seed(1)
    settings = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32, "ls_init_value": 0.1}
    text = CLIPTextCfg(context_length=16, vocab_size=49408, width=32, heads=2, layers=1)
    return CLIP(24, CLIPVisionCfg(**{**settings, **vision}), text).eval()
