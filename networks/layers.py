"""Small building blocks that several networks share: attention and the three-layer perceptron.

Parameter names are those of the published checkpoints. Next: ``query_decoder.py``, ``clip_encoder.py``.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention with a joint input projection, computed by the fused kernel.

    Names, initialisation and results are those of ``torch.nn.MultiheadAttention`` (batch first, no dropout, no
    masks): ``in_proj_weight`` (3C, C), ``in_proj_bias`` (3C), ``out_proj.{weight,bias}``.
    """

    def __init__(self, width: int, num_heads: int, *, precise_gradient: bool = False) -> None:
        """Create the projections.

        Args:
            width: channels C, a multiple of ``num_heads`` (ValueError otherwise).
            num_heads: attention heads.
            precise_gradient: compute the attention matrix where gradients are wanted. Key biases have no gradient but
                rounding, which Adam turns into steps; in the fused kernel's backward pass that rounding is several
                times larger. Costs memory for one (Q, T) matrix per head.
        """
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width ({width}) must be a multiple of num_heads ({num_heads})")
        self.num_heads, self.precise_gradient = num_heads, precise_gradient
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        """Attend from ``query`` to ``key`` and ``value``.

        Args:
            query: (B, Q, C).
            key: (B, T, C); None: ``query``.
            value: (B, T, C); None: ``key``.

        Returns:
            (B, Q, C).
        """
        key = query if key is None else key
        value = key if value is None else value
        if query is key and key is value:
            projected = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:
            weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
            sources = (query, key, value)
            projected = [F.linear(x, w, b) for x, w, b in zip(sources, weights, biases, strict=True)]
        return self.attend(*projected)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention over inputs that are projected already: (B, Q, C), (B, T, C), (B, T, C) -> (B, Q, C)."""
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        if self.precise_gradient and torch.is_grad_enabled():
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)  # (B, heads, Q, T)
            mixed = scores.softmax(dim=-1).to(value.dtype) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)  # (B, heads, Q, C / heads)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear layers with ReLU between them; parameters ``layers.{i}.{weight,bias}``."""

    def __init__(self, in_width: int, hidden_width: int, out_width: int, num_layers: int = 3) -> None:
        """Create ``num_layers`` linear layers: in -> hidden -> ... -> hidden -> out."""
        super().__init__()
        widths = [in_width] + [hidden_width] * (num_layers - 1) + [out_width]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers to the last axis: (..., in) -> (..., out)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
