"""The plain vision transformer of DINO and DeiT, with its published names, for pictures of any size.

SelfMask uses it as encoder, spectral voting and co-segmentation as feature network (``patch_encoders.py``). timm's
class has the same names, but it fixes the grid when it is built, and the released weights need the position table
treated as `resize_position_table` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.checkpoints import load_strict
from utils.errors import WeightsError

LAYER_NORM_EPS = 1e-6
HEAD_WIDTH = 64


class PatchEmbed(nn.Module):
    """Cuts a picture into patches and projects each one (a convolution whose stride is its kernel)."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to patch tokens (B, D, H/P, W/P)."""
        return self.proj(images)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values; never holds the L×L matrix."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, D) to (B, L, D)."""
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, L, 3, n, d) -> 3 × (B, n, L, d)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))  # (B, n, L, d) -> (B, L, D)


class Mlp(nn.Module):
    """Two linear layers around an exact (erf) GELU."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, D) to (B, L, D)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, hidden_width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(width, hidden_width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (B, L, D) to (B, L, D)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class VisionTransformer(nn.Module):
    """DINO's vision transformer, or DeiT's with its second, distillation token.

    Args:
        width: token width D, a multiple of `num_heads`.
        num_layers: number of blocks.
        num_heads: attention heads; one per 64 channels if None, as in all published ViT.
        patch_size: side P of a patch in pixels.
        native_grid: rows (= columns) of the position table.
        hidden_width: width inside the MLP; 4·D if None.
        distilled: there is a distillation token after the class token.

    Raises:
        ValueError: if the width cannot be divided among the heads.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021; Touvron et al., "Training
    data-efficient image transformers & distillation through attention", 2021.
    """

    def __init__(
        self,
        *,
        width: int = 384,
        num_layers: int = 12,
        num_heads: int | None = None,
        patch_size: int = 8,
        native_grid: int = 28,
        hidden_width: int | None = None,
        distilled: bool = False,
    ) -> None:
        super().__init__()
        num_heads = num_heads or max(1, width // HEAD_WIDTH)
        if width % num_heads:
            raise ValueError(f"width ({width}) must be divisible by num_heads ({num_heads})")
        self.width, self.patch_size, self.num_extra_tokens = width, patch_size, 2 if distilled else 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_extra_tokens + native_grid**2, width))
        self.patch_embed = PatchEmbed(width, patch_size)
        self.blocks = nn.ModuleList(Block(width, num_heads, hidden_width or 4 * width) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self._initialise()

    def _initialise(self) -> None:
        """Truncated normal weights of standard deviation 0.02 and zero biases."""
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the normalised tokens of the last block.

        Args:
            images: ImageNet-normalised pictures, (B, 3, H, W) with H and W multiples of the patch size (see
                `pad_to_multiple`), float.

        Returns:
            Class token first (and distillation token, E extra ones in all), then the patches in raster order,
            (B, E + h·w, D), with h = H/P and w = W/P.

        Raises:
            ValueError: if H or W is not a multiple of the patch size.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height or not width:
            raise ValueError(
                f"image size {height}×{width} is not a positive multiple of the patch size {self.patch_size}"
            )
        patches = self.patch_embed(images)
        grid = (patches.shape[-2], patches.shape[-1])
        tokens = patches.flatten(2).transpose(1, 2)  # (B, D, h, w) -> (B, h·w, D)
        extra = self.cls_token if self.dist_token is None else torch.cat([self.cls_token, self.dist_token], dim=1)
        tokens = torch.cat([extra.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = tokens + resize_position_table(self.pos_embed, grid, self.num_extra_tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


def resize_position_table(table: Tensor, grid: tuple[int, int], num_extra: int = 1) -> Tensor:
    """Resize a position table to another grid of patches.

    Args:
        table: entries of the extra tokens, then a square grid in raster order, (1, E + n·n, D).
        grid: rows and columns wanted.
        num_extra: E, 1 for the class token alone.

    Returns:
        (1, E + rows·columns, D): the extra entries unchanged, the grid resized bicubically without antialiasing.
    """
    extra, patches = table[:, :num_extra], table[:, num_extra:]
    native = math.isqrt(patches.shape[1])
    # Kept for released weights: any grid with as many patches as the table has, square or not, takes the table as it
    # is, in raster order (a picture of 112×448 pixels gets the rows of the 28×28 table one after the other).
    if grid[0] * grid[1] == patches.shape[1]:
        return table
    patches = patches.reshape(1, native, native, -1).permute(0, 3, 1, 2)  # (1, n·n, D) -> (1, D, n, n)
    patches = F.interpolate(patches.float(), size=grid, mode="bicubic", align_corners=False).to(table.dtype)
    return torch.cat([extra, patches.flatten(2).transpose(1, 2)], dim=1)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad pictures (..., H, W) with zeros, right and bottom only, to sizes that are multiples of `multiple`."""
    height, width = images.shape[-2:]
    pad_bottom, pad_right = -height % multiple, -width % multiple
    return F.pad(images, (0, pad_right, 0, pad_bottom)) if pad_bottom or pad_right else images


def vit_from_state_dict(state_dict: Mapping[str, Tensor], *, source: str = "the ViT weights") -> VisionTransformer:
    """Build the vision transformer that a state dict of DINO, DeiT or timm describes and load it strictly.

    Args:
        state_dict: entries `cls_token`, `pos_embed`, `patch_embed.proj.*`, `blocks.*`, `norm.*`, and `dist_token` of a
            distilled DeiT.
        source: what the weights are, for error messages.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        utils.errors.WeightsError: if entries are missing, superfluous or of another shape.
    """
    network = VisionTransformer(**vit_settings(state_dict, source=source))
    load_strict(network, dict(state_dict), source=source)
    return network


def vit_settings(
    state_dict: Mapping[str, Tensor], prefix: str = "", *, source: str = "the ViT weights"
) -> dict[str, Any]:
    """Read the dimensions of a vision transformer off the shapes of its entries.

    Args:
        state_dict: the weights.
        prefix: what stands before the names, such as "encoder.".
        source: what the weights are, for error messages.

    Returns:
        Keyword arguments of `VisionTransformer`.

    Raises:
        utils.errors.WeightsError: if the entries that tell the dimensions are missing or the table is not square.
    """
    needed = [prefix + name for name in ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")]
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise WeightsError(
            f"{source}: a DINO vision transformer was expected, but {', '.join(missing)} is missing "
            f"(first entries: {', '.join(list(state_dict)[:3]) or 'none'}). Is this the right weight file?"
        )
    table, patch, hidden = (state_dict[name] for name in needed)
    distilled = prefix + "dist_token" in state_dict
    num_patches = table.shape[1] - (2 if distilled else 1)
    native = math.isqrt(max(num_patches, 0))
    if native**2 != num_patches:
        extra = "two extra entries" if distilled else "one class entry"
        raise WeightsError(
            f"{source}: {needed[0]} has {table.shape[1]} entries; {extra} and a square grid were expected"
        )
    blocks = {name[len(prefix) :].split(".")[1] for name in state_dict if name.startswith(prefix + "blocks.")}
    return {
        "width": table.shape[2],
        "num_layers": len(blocks),
        "patch_size": patch.shape[-1],
        "native_grid": native,
        "hidden_width": hidden.shape[0],
        **({"distilled": True} if distilled else {}),
    }
