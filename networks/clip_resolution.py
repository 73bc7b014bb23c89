"""CLIP's ResNets at another input size than they were trained with."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from networks.clip import ClipModel
from utils.errors import UserError

STRIDE = 32


@torch.no_grad()
def set_resolution(clip: ClipModel, resolution: int) -> None:
    """Let a CLIP take pictures of another size; its preprocessing and position embedding are changed in place.

    Args:
        clip: with an OpenAI ResNet as image tower. A vision transformer keeps its own size.
        resolution: side of the square input in pixels, at least 32.

    Raises:
        UserError: if the tower cannot take that size.

    Source: ReCo release, image embeddings. The attention pool's grid is resized bicubically with aligned corners.
    """
    if resolution == clip.image_resolution:
        return
    if not isinstance(clip.visual, ModifiedResNet) or clip.preprocess.transform is not None:
        raise UserError(
            f"this CLIP takes pictures of {clip.image_resolution} pixels only, received {resolution}; another size is "
            "possible for OpenAI's ResNets (RN50, RN101, RN50x4, RN50x16, RN50x64)."
        )
    if resolution < STRIDE:
        raise UserError(f"the size of CLIP's input must be at least {STRIDE} pixels, received {resolution}.")
    pool = clip.visual.attnpool
    pool.positional_embedding = nn.Parameter(_resize_table(pool.positional_embedding, resolution // STRIDE))
    clip.preprocess = replace(clip.preprocess, resolution=resolution)
    clip.image_resolution = resolution


def _resize_table(table: Tensor, side: int) -> Tensor:
    """Bring the grid of a table with a leading entry, (1 + g², C), to (1 + side², C); dtype as it was."""
    native = math.isqrt(len(table) - 1)
    grid = table[1:].unflatten(0, (native, native)).permute(2, 0, 1)[None].float()  # (g², C) -> (1, C, g, g)
    grid = F.interpolate(grid, (side, side), mode="bicubic", align_corners=True)
    return torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])
