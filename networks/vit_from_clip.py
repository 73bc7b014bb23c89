"""Start a DINO-style vision transformer from CLIP's image tower, so that SelfMask can learn on top of CLIP's features.

The two differ in three places: CLIP normalises tokens before its blocks, normalises colours otherwise, and uses
QuickGELU. The first two are folded into the patch embedding; the third is left to training.
"""

from __future__ import annotations

import torch
from torch import Tensor

from networks.clip_encoder import ClipVitEncoder
from networks.layers import Attention
from networks.vit import HEAD_WIDTH, VisionTransformer
from utils.errors import WeightsError


@torch.no_grad()
def vit_from_clip(
    encoder: ClipVitEncoder,
    images: Tensor,
    *,
    clip_mean: tuple[float, ...],
    clip_std: tuple[float, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> VisionTransformer:
    """Build a vision transformer whose tokens are close to those of CLIP's image tower.

    Args:
        encoder: CLIP's vision transformer, float32, on the CPU.
        images: typical pictures, RGB in [0, 1], (B, 3, H, W), of one size: the layer norm before CLIP's blocks divides
            every token by its own deviation, and the mean deviation over these pictures takes its place.
        clip_mean, clip_std: CLIP's colour normalisation.
        mean, std: colour normalisation of the new network's input.

    Returns:
        The network, float32, with the position table of the encoder.

    Raises:
        WeightsError: if the encoder has learnt factors per channel or other heads than one per 64 channels.
    """
    blocks = encoder.transformer["resblocks"]
    has_scale = any(isinstance(block.ls_1, type(blocks[0].ls_1)) and list(block.ls_1.parameters()) for block in blocks)
    if has_scale or encoder.num_heads != max(1, encoder.width // HEAD_WIDTH):
        raise WeightsError(
            "encoder.weights: only a CLIP with one attention head per 64 channels and plain blocks can start "
            "SelfMask's encoder; choose another CLIP, a DINO file, or none"
        )
    native = int((encoder.positional_embedding.shape[0] - 1) ** 0.5)
    network = VisionTransformer(
        width=encoder.width,
        num_layers=len(blocks),
        patch_size=encoder.patch_size,
        native_grid=native,
        hidden_width=blocks[0].mlp.c_fc.out_features,
    )
    weight, bias = _other_colours(encoder.conv1.weight, clip_mean, clip_std, mean, std)
    _fold_first_norm(network, encoder, weight, bias, images, clip_mean, clip_std)
    for block, source in zip(network.blocks, blocks, strict=True):
        _copy(block.norm1, source.ln_1)
        _copy(block.norm2, source.ln_2)
        _copy(block.attn.proj, source.attn.out_proj)
        _copy(block.mlp.fc1, source.mlp.c_fc)
        _copy(block.mlp.fc2, source.mlp.c_proj)
        _copy_attention(block.attn.qkv, source.attn)
    _copy(network.norm, encoder.ln_post)
    return network


def _other_colours(
    weight: Tensor,
    clip_mean: tuple[float, ...],
    clip_std: tuple[float, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> tuple[Tensor, Tensor]:
    """The patch convolution for pictures normalised with mean and std instead of CLIP's: weight and bias, exact."""
    clip_mean, clip_std, mean, std = (torch.tensor(values) for values in (clip_mean, clip_std, mean, std))
    new_weight = weight * (std / clip_std)[:, None, None]
    return new_weight, (weight * ((mean - clip_mean) / clip_std)[:, None, None]).sum(dim=(1, 2, 3))


def _fold_first_norm(
    network: VisionTransformer,
    encoder: ClipVitEncoder,
    weight: Tensor,
    bias: Tensor,
    images: Tensor,
    clip_mean: tuple[float, ...],
    clip_std: tuple[float, ...],
) -> None:
    """Put CLIP's layer norm before the blocks into patch embedding, position table and class token."""
    table = encoder.positional_embedding
    gamma, beta, deviation = torch.ones(()), torch.zeros(()), torch.ones(())
    centre = isinstance(encoder.ln_pre, torch.nn.LayerNorm)
    if centre:
        gamma, beta = encoder.ln_pre.weight, encoder.ln_pre.bias
        pixels = (images - torch.tensor(clip_mean)[:, None, None]) / torch.tensor(clip_std)[:, None, None]
        patches = encoder.conv1(pixels).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h·w, C)
        places = table[1:] if patches.shape[1] == len(table) - 1 else table[1:].mean(dim=0)
        deviation = (patches + places).std(dim=-1, correction=0).mean()
        weight, bias = weight - weight.mean(dim=0), bias - bias.mean()
    factor = gamma / deviation
    network.patch_embed.proj.weight.copy_(weight * (factor[:, None, None, None] if factor.ndim else factor))
    network.patch_embed.proj.bias.copy_(bias * factor + beta)
    places = table - table.mean(dim=-1, keepdim=True) if centre else table
    network.pos_embed.copy_((places * factor)[None])
    network.pos_embed[0, 0] = 0
    network.cls_token.copy_(encoder.ln_pre(encoder.class_embedding + table[0]).view(1, 1, -1))


def _copy(target: torch.nn.Module, source: torch.nn.Module) -> None:
    target.weight.copy_(source.weight)
    target.bias.copy_(source.bias)


def _copy_attention(qkv: torch.nn.Linear, source: Attention) -> None:
    qkv.weight.copy_(source.in_proj_weight)
    qkv.bias.copy_(source.in_proj_bias)
