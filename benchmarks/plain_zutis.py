"""ZUTIS the plain way, step by step as the paper's code computes it: what the benchmarks compare against.

Written from the description of the published system, not for use: every pair of query and object at full resolution,
tokens resized before they are projected, masks compared one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from networks.clip_encoder import ClipBlock, ClipVitEncoder
from networks.layers import Attention
from networks.position import position_sine, resample_position_embedding
from networks.query_decoder import QueryDecoderLayer
from networks.zutis import Zutis


def plain_forward(network: Zutis, images: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals of all layers and patch tokens: (B, 3, H, W) -> (B, L, Q, h, w), (B, h, w, D)."""
    tokens = _plain_encoder(network.encoder, images).permute(0, 3, 1, 2)
    upsampled = F.interpolate(tokens, scale_factor=2, mode="bilinear").permute(0, 2, 3, 1)  # (B, h, w, C)
    memory = network.ffn1(upsampled.detach())
    grid, flat = memory.shape[1:3], memory.flatten(1, 2)
    position = position_sine(tuple(grid), memory.shape[-1] // 2).flatten(1).T
    target = torch.zeros(len(images), *network.query_embed.shape)
    outputs = []
    for layer in network.decoder.layers:
        target = _plain_decoder_layer(layer, target, network.query_embed, flat, position)
        outputs.append(network.decoder.norm(target))
    queries = network.ffn2(torch.stack(outputs, dim=1))
    queries = queries / queries.norm(dim=-1, keepdim=True)
    proposals = torch.einsum("blqc,bhwc->blqhw", queries, memory).sigmoid()
    projected = upsampled @ network.encoder.proj
    projected = F.layer_norm(projected, projected.shape[1:])
    return proposals, projected / (projected.norm(dim=-1, keepdim=True) + 1e-7)


def _plain_encoder(encoder: ClipVitEncoder, images: Tensor) -> Tensor:
    x = encoder.conv1(images)
    grid = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat((encoder.class_embedding.expand(len(x), 1, -1), x), dim=1)
    x = encoder.ln_pre(x + resample_position_embedding(encoder.positional_embedding, tuple(grid)))
    for block in encoder.transformer["resblocks"]:
        x = _plain_block(block, x)
    return encoder.ln_post(x[:, 1:]).unflatten(1, grid)


def _plain_block(block: ClipBlock, x: Tensor) -> Tensor:
    y = block.ln_1(x)
    x = x + _plain_attention(block.attn, y, y, y)
    hidden = block.mlp.c_fc(block.ln_2(x))
    return x + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))


def _plain_decoder_layer(
    layer: QueryDecoderLayer, target: Tensor, query_embed: Tensor, memory: Tensor, position: Tensor
) -> Tensor:
    query = target + query_embed
    target = layer.norm1(target + _plain_attention(layer.self_attn, query, query, target))
    mixed = _plain_attention(layer.multihead_attn, target + query_embed, memory + position, memory)
    target = layer.norm2(target + mixed)
    return layer.norm3(target + layer.linear2(F.relu(layer.linear1(target))))


def _plain_attention(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with its matrix written out and averaged over the heads, as the library's module does by default."""
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    scores = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(dim=-1)
    scores.mean(dim=1)
    return attention.out_proj((scores @ v).transpose(1, 2).flatten(2))


def plain_mask_loss(proposals: Tensor, masks: Tensor, num_images: int) -> Tensor:
    """Mask loss of one picture and one decoder layer: proposals (Q, h, w) with graph, masks (n, H, W)."""
    resized = F.interpolate(proposals[None], size=masks.shape[1:], mode="bilinear")[0].flatten(1)  # (Q, H·W)
    targets = masks.float().flatten(1)
    if resized.min() < 0 or resized.max() > 1 + 1e-6:
        raise RuntimeError("proposals are probabilities")
    resized = resized.clamp(max=1)
    overlap = (resized[:, None] * targets[None]).sum(dim=-1)  # (Q, n)
    dice = 1 - (2 * overlap + 1) / (resized.sum(dim=1)[:, None] + targets.sum(dim=1)[None] + 1)
    shape = (len(resized), *targets.shape)
    pairs = (resized[:, None].expand(shape).contiguous(), targets[None].expand(shape).contiguous())
    bce = F.binary_cross_entropy(*pairs, reduction="none").mean(dim=-1)
    cost = (dice + bce).T
    rows, columns = linear_sum_assignment(cost.detach().cpu().numpy())
    return cost[rows, columns].sum() / num_images


def plain_criterion(
    proposals: Tensor,
    patch_tokens: Tensor,
    text: Tensor,
    instance_masks: Sequence[Tensor],
    semantic: Tensor,
    ignore_index: int,
) -> tuple[float, Tensor, Tensor]:
    """Loss and its gradients with respect to proposals and patch tokens.

    Kinder than the paper's code in one point: every layer is differentiated at once and its graph dropped, so the
    peak is that of one layer of one picture instead of all of them (12 times as much in the benchmark).
    """
    leaf, tokens = proposals.detach(), patch_tokens.detach().requires_grad_()
    gradient, total = torch.zeros_like(leaf), 0.0
    for image, masks in enumerate(instance_masks):
        for layer in range(leaf.shape[1]):
            part = leaf[image, layer].clone().requires_grad_()
            loss = plain_mask_loss(part, masks, len(instance_masks))
            loss.backward()
            gradient[image, layer] = part.grad
            total += loss.item()
            del loss, part
    resized = F.interpolate(tokens.permute(0, 3, 1, 2), size=semantic.shape[1:], mode="bilinear")
    logits = torch.einsum("bdhw,nd->bnhw", resized, text)
    ce = F.cross_entropy(logits, semantic, ignore_index=ignore_index)
    ce.backward()
    return total + ce.item(), gradient, tokens.grad


@torch.no_grad()
def plain_training_scores(
    patch_tokens: Tensor, text: Tensor, semantic: Tensor, confusion: np.ndarray
) -> dict[str, float]:
    """Metrics of one training iteration: labels at full size to the host, confusion matrix, scores."""
    logits = torch.einsum("bhwd,nd->bnhw", patch_tokens, text)
    return plain_scores(F.interpolate(logits, size=semantic.shape[1:], mode="bilinear"), semantic, confusion)


def plain_scores(logits: Tensor, semantic: Tensor, confusion: np.ndarray) -> dict[str, float]:
    """Scores of all batches so far: full-size logits (B, N, H, W), labels (B, H, W), confusion matrix, added to."""
    labels, truth, num = logits.argmax(dim=1).cpu().numpy(), semantic.cpu().numpy(), logits.shape[1]
    for found, wanted in zip(labels, truth, strict=True):
        valid = (wanted >= 0) & (wanted < num)
        counts = np.bincount(num * wanted[valid].astype(int) + found[valid], minlength=num**2)
        confusion += counts.reshape(num, num)
    hits = np.diag(confusion)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hits / (confusion.sum(1) + confusion.sum(0) - hits)
    return {"Mean IoU": float(np.nanmean(iou)), "Pixel Acc": float(hits.sum() / confusion.sum())}


@torch.no_grad()
def plain_instances(
    proposals: Tensor, patch_tokens: Tensor, text: Tensor, size: tuple[int, int]
) -> list[tuple[Tensor, float, int]]:
    """Masks, scores and categories of one picture after hard suppression: (Q, h, w), (h, w, D) -> list."""
    inside = (proposals > 0.5).float()
    area = inside.flatten(1).sum(dim=1)
    confidence = (proposals * inside).flatten(1).sum(dim=1) / (area + 1e-7)
    vectors = (inside[..., None] * patch_tokens[None]).sum(dim=(1, 2)) / (area[:, None] + 1e-7)  # (Q, h, w, D) inside
    vectors = vectors / (vectors.norm(dim=-1, keepdim=True) + 1e-7)
    best, categories = (5 * vectors @ text.T).sigmoid().max(dim=1)
    scores = confidence * best
    masks = F.interpolate(proposals[None], size=size, mode="bilinear")[0] > 0.5
    found = []
    for category in set(categories.tolist()) - {0}:
        members = categories == category
        found += [(m, s, category) for m, s in _plain_nms(masks[members], scores[members]) if m.any()]
    return found


def _plain_nms(masks: Tensor, scores: Tensor) -> list[tuple[Tensor, float]]:
    """Hard suppression of one category: sort, compare the best with each of the others, stack what remains, again."""
    kept = []
    while len(masks):
        order = scores.argsort()
        masks, scores = masks[order], scores[order]
        best = masks[-1]
        kept.append((best, scores[-1].item()))
        rest, rest_scores = [], []
        for mask, score in zip(masks[:-1], scores[:-1], strict=True):
            iou = (mask & best).sum() / ((mask | best).sum() + 1e-7)
            score = score * (0.0 if iou > 0.3 else 1.0)
            if score > 0.001:
                rest.append(mask)
                rest_scores.append(score)
        if not rest:
            break
        masks, scores = torch.stack(rest), torch.stack(rest_scores)
    return kept
