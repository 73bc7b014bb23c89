"""Depthwise convolutions with wide dilation: the same numbers and gradients as the library's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from networks.depthwise import WIDE_DILATION, DepthwiseConv3x3


@pytest.mark.parametrize("dilation", [1, 2, WIDE_DILATION - 1, WIDE_DILATION, 12, 40])
@pytest.mark.parametrize("size", [(1, 1), (9, 31), (30, 29)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_result_and_gradients_are_the_librarys(dilation: int, size: tuple[int, int], channels_last: bool) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv3x3(5, dilation)
    maps = torch.randn(2, 5, *size)
    maps = maps.contiguous(memory_format=torch.channels_last) if channels_last else maps
    maps.requires_grad_()
    ours = layer(maps)
    expected = F.conv2d(maps, layer.weight, padding=dilation, dilation=dilation, groups=5)
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, atol=1e-5)
    slope = torch.randn_like(expected)
    found = torch.autograd.grad(ours, (maps, layer.weight), slope)
    wanted = torch.autograd.grad(expected, (maps, layer.weight), slope)
    for gradient, reference in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, reference, atol=1e-4)


@pytest.mark.parametrize("dilation", [2, 8])
def test_maps_that_are_padded_already(dilation: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseConv3x3(3, dilation, padding=0)
    maps = torch.randn(1, 3, 20, 25, requires_grad=True)
    ours, expected = layer(maps), F.conv2d(maps, layer.weight, dilation=dilation, groups=3)
    assert torch.allclose(ours, expected, atol=1e-5)
    slope = torch.randn_like(expected)
    for gradient, reference in zip(
        torch.autograd.grad(ours, (maps, layer.weight), slope),
        torch.autograd.grad(expected, (maps, layer.weight), slope),
        strict=True,
    ):
        assert torch.allclose(gradient, reference, atol=1e-4)


def test_frozen_weights_and_maps_have_no_gradient() -> None:
    layer = DepthwiseConv3x3(2, 12).requires_grad_(False)
    maps = torch.randn(1, 2, 14, 14, requires_grad=True)
    layer(maps).sum().backward()
    assert layer.weight.grad is None
    assert maps.grad is not None


def test_mixed_precision_leaves_it_to_the_library() -> None:
    layer = DepthwiseConv3x3(4, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 4, 16, 16)).dtype == torch.bfloat16
