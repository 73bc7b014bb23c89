"""The transformer decoder that turns learnt queries into mask embeddings; ZUTIS and SelfMask share it.

Parameter names are those of both systems' published checkpoints. Next: ``zutis.py``, ``selfmask.py``.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import Attention


class QueryDecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward block, each followed by its layer norm (post-norm)."""

    def __init__(self, width: int, num_heads: int, ffn_width: int) -> None:
        """Create one layer; the widths are those of tokens and of the hidden feed-forward layer."""
        super().__init__()
        self.self_attn = Attention(width, num_heads, precise_gradient=True)
        self.multihead_attn = Attention(width, num_heads, precise_gradient=True)
        self.linear1 = nn.Linear(width, ffn_width)
        self.linear2 = nn.Linear(ffn_width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, target: Tensor, query_embed: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Refine the targets (B, Q, C) with queries (Q, C) from keys and values (B, T, C); returns (B, Q, C)."""
        query = target + query_embed
        target = self.norm1(target + self.self_attn(query, query, target))
        target = self.norm2(target + self.multihead_attn(target + query_embed, key, value))
        return self.norm3(target + self.linear2(F.relu(self.linear1(target))))


class QueryDecoder(nn.Module):
    """Stack of post-norm decoder layers with one final layer norm for every layer's output.

    Source: DETR (Carion et al. 2020), section A.4 of its appendix, as used by ZUTIS and SelfMask without dropout.
    """

    def __init__(self, width: int, num_heads: int, ffn_width: int, num_layers: int) -> None:
        """Create ``num_layers`` layers.

        Kept for released weights: the layers start as identical copies, as in the authors' training.
        """
        super().__init__()
        layer = QueryDecoderLayer(width, num_heads, ffn_width)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, memory: Tensor, query_embed: Tensor, memory_position: Tensor | None = None, all_layers: bool = False
    ) -> Tensor:
        """Decode the queries against a memory.

        Args:
            memory: tokens, (B, T, C).
            query_embed: learnt queries, (Q, C); the decoded state itself starts at zero.
            memory_position: added to the keys (not to the values), (T, C) or (B, T, C); None: nothing.
            all_layers: return every layer's output, as training needs it, instead of the last one.

        Returns:
            Normalised outputs: (B, Q, C), or (B, L, Q, C) with ``all_layers``.

        Shapes: B batch, T memory tokens, Q queries, L layers, C width.
        """
        key = memory if memory_position is None else memory + memory_position
        target = query_embed.new_zeros(memory.shape[0], *query_embed.shape)
        outputs = []
        for layer in self.layers:
            target = layer(target, query_embed, key, memory)
            outputs.append(target)
        return self.norm(torch.stack(outputs, dim=1)) if all_layers else self.norm(target)
