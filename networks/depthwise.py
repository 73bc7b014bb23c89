"""Depthwise 3×3 convolutions with wide dilation, fast on CPUs too.

The library's CPU kernels are made for a dilation of 1: from 2 on gradients are 10 times slower, from 7 on the result as
well (the context branches of DeepLab use 12, 24 and 36). There the sum over the nine weights is taken directly, each
times a shifted map, of which a wide dilation leaves only the part inside the picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDE_DILATION = 7  # from here on the library leaves its fast kernel


class DepthwiseConv3x3(nn.Conv2d):
    """3×3 convolution of each channel by itself, stride 1, no bias.

    Args:
        width: channels.
        dilation: distance of the weights' centres, in cells.
        padding: zeros around the maps; None: as many as keep their size.
    """

    def __init__(self, width: int, dilation: int = 1, *, padding: int | None = None) -> None:
        padding = dilation if padding is None else padding
        super().__init__(width, width, 3, padding=padding, dilation=dilation, groups=width, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C, h', w'), h' = h + 2·(padding - dilation)."""
        # Elsewhere (on GPUs, in 16 bits) the library is good at all dilations.
        direct = maps.device.type == "cpu" and maps.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        if self.dilation[0] == 1 or not direct:
            return super().forward(maps)
        maps = maps.contiguous(memory_format=torch.channels_last)
        return _DilatedDepthwise.apply(maps, self.weight, self.dilation[0], self.padding[0])


class _DilatedDepthwise(torch.autograd.Function):
    """Dilated depthwise 3×3 convolution on the CPU with gradients of its own."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, dilation: int, padding: int) -> Tensor:
        """Maps (B, C, h, w), channels last, weight (C, 1, 3, 3) -> (B, C, h', w')."""
        ctx.save_for_backward(maps, weight)
        ctx.dilation, ctx.padding = dilation, padding
        return _convolve(maps, weight, dilation, padding)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Gradients of maps and weight."""
        (maps, weight), dilation, padding = ctx.saved_tensors, ctx.dilation, ctx.padding
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_maps = of_weight = None
        if ctx.needs_input_grad[0]:
            of_maps = _convolve(gradient, weight.flip(2, 3), dilation, 2 * dilation - padding)
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(maps, gradient, dilation, padding)
        return of_maps, of_weight, None, None


def _convolve(maps: Tensor, weight: Tensor, dilation: int, padding: int) -> Tensor:
    if dilation < WIDE_DILATION:
        return F.conv2d(maps, weight, padding=padding, dilation=dilation, groups=len(weight))
    cells, weights = maps.permute(0, 2, 3, 1), weight[:, 0].permute(1, 2, 0).contiguous()  # (B, h, w, C), (3, 3, C)
    size = [side + 2 * (padding - dilation) for side in maps.shape[2:]]
    total = maps.new_zeros(len(maps), *size, maps.shape[1])
    for row, column, target, source in _taps(maps.shape[2:], size, dilation, padding):
        total[(slice(None), *target)].addcmul_(cells[(slice(None), *source)], weights[row, column])
    return total.permute(0, 3, 1, 2)


def _weight_gradient(maps: Tensor, gradient: Tensor, dilation: int, padding: int) -> Tensor:
    """Sums of products of the maps with the shifted gradient: (B, C, h, w), (B, C, h', w') -> (C, 1, 3, 3)."""
    total = maps.new_zeros(3, 3, maps.shape[1])
    for cells, slopes in zip(maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1), strict=True):  # (h, w, C)
        for row, column, target, source in _taps(maps.shape[2:], gradient.shape[2:], dilation, padding):
            total[row, column] += (slopes[target] * cells[source]).flatten(0, 1).sum(0)
    return total.permute(2, 0, 1)[:, None].contiguous()


Region = tuple[slice, slice]


def _taps(
    size: Sequence[int], result_size: Sequence[int], dilation: int, padding: int
) -> Iterator[tuple[int, int, Region, Region]]:
    """Row and column of each weight that meets the maps, the cells of the result it adds to, and those it reads."""
    for row in range(3):
        for column in range(3):
            region = []
            for side, result_side, k in zip(size, result_size, (row, column), strict=True):
                shift = k * dilation - padding
                start, stop = max(0, -shift), min(result_side, side - shift)
                region.append((slice(start, stop), slice(start + shift, stop + shift)))
            (rows, rows_read), (columns, columns_read) = region
            if rows.stop > rows.start and columns.stop > columns.start:
                yield row, column, (rows, columns), (rows_read, columns_read)
