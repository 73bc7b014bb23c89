"""SelfMask's answer for one picture, against the plain way that materialises attention and enlarges every mask.

The plain way follows the original: full attention matrices, the norm of all layers, features enlarged before the
products, all queries' probabilities brought to full size, then one of them chosen. Both share their weights.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness import Context, Measurement, benchmark
from networks.layers import Attention as DecoderAttention
from networks.selfmask import SelfMask
from networks.vit import Attention, pad_to_multiple, resize_position_table

HEIGHT, WIDTH = 512, 682


@benchmark("selfmask")
def measure(context: Context) -> Iterator[Measurement]:
    """Time and memory of one forward pass (ViT-S/8, 20 queries) at the size of a 3:4 photograph."""
    torch.manual_seed(context.seed)
    network = SelfMask().eval().to(context.device)
    image = torch.randn(1, 3, HEIGHT, WIDTH, generator=context.generator()).to(context.device)
    with torch.inference_mode():
        difference = (network.predict(image).probability - plain_forward(network, image)).abs().max().item()
        if difference > 1e-3:
            raise RuntimeError(f"the two ways differ by {difference}")
        ours, plain = context.time_pair(
            lambda: network.predict(image), lambda: plain_forward(network, image), plain_repeats=min(context.repeats, 3)
        )
        limit = _matrix_product_seconds(context, network, (HEIGHT // 8) * -(-WIDTH // 8) + 1)
        yield Measurement(
            name="selfmask",
            workload=f"{HEIGHT}x{WIDTH}, ViT-S/8, 20 queries, fp32",
            seconds=ours.seconds,
            spread=ours.spread,
            plain_seconds=plain.seconds,
            limit="matrix products of the encoder",
            limit_seconds=limit,
            peak_mib=context.peak_memory(lambda: network.predict(image)),
            plain_peak_mib=context.peak_memory(lambda: plain_forward(network, image)),
        )


def _matrix_product_seconds(context: Context, network: SelfMask, tokens: int) -> float:
    """Time of the encoder's matrix products alone, at the rate measured for their shapes."""
    width = network.encoder.width
    head = width // network.encoder.blocks[0].attn.num_heads
    linear = sum(
        context.limits.matmul_seconds(tokens, inner, outer)
        for inner, outer in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
    )
    # Attention scores are never whole in memory, so their products are timed in the blocks that stay in the cache.
    rows = 512
    scores = context.limits.matmul_seconds(rows, head, rows) + context.limits.matmul_seconds(rows, rows, head)
    return len(network.encoder.blocks) * (linear + scores * (width // head) * (tokens / rows) ** 2)


def plain_forward(network: SelfMask, image: Tensor) -> Tensor:
    """Probability (B, H, W) of the chosen query, the long way."""
    padded = pad_to_multiple(image, network.patch_size)
    patches = network.encoder.patch_embed(padded)
    height, width = patches.shape[-2:]
    tokens = torch.cat([network.encoder.cls_token.expand(len(image), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
    tokens = tokens + resize_position_table(network.encoder.pos_embed, (height, width))
    layers = []
    for block in network.encoder.blocks:
        tokens = tokens + _plain_attention(block.attn, block.norm1(tokens))
        tokens = tokens + block.mlp(block.norm2(tokens))
        layers.append(network.encoder.norm(tokens))
    memory = torch.stack(layers)[-1][:, 1:]
    queries = _plain_decoder(network, memory)[:, -1]
    features = memory.transpose(1, 2).reshape(len(image), -1, height, width)
    features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    masks = torch.einsum("bqd,bdhw->bqhw", queries, features).sigmoid()
    masks = F.interpolate(masks, scale_factor=network.patch_size / 2, mode="bilinear", align_corners=False)
    masks = masks[..., : image.shape[-2], : image.shape[-1]]
    best = network.ffn(queries).squeeze(-1).argmax(1)
    return torch.stack([mask[i] for mask, i in zip(masks, best.tolist(), strict=True)])


def _plain_attention(attention: Attention, tokens: Tensor) -> Tensor:
    batch, length, width = tokens.shape
    qkv = attention.qkv(tokens).reshape(batch, length, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    return attention.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, width))


def _plain_decoder(network: SelfMask, memory: Tensor) -> Tensor:
    target = torch.zeros_like(network.query_embed).expand(len(memory), -1, -1)
    outputs = []
    for layer in network.decoder.layers:
        query = target + network.query_embed
        target = layer.norm1(target + _plain_multihead(layer.self_attn, query, query, target))
        query = target + network.query_embed
        target = layer.norm2(target + _plain_multihead(layer.multihead_attn, query, memory, memory))
        target = layer.norm3(target + layer.linear2(F.relu(layer.linear1(target))))
        outputs.append(network.decoder.norm(target))
    return torch.stack(outputs, dim=1)


def _plain_multihead(attention: DecoderAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    heads = (attention.num_heads, -1)
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(x, weight, bias).unflatten(-1, heads).transpose(1, 2)
        for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
    )
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    return attention.out_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
