"""CLIP's ResNets at other input sizes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from networks.clip_resolution import set_resolution
from tests.networks.tiny_clips import RESNET, VIT, tiny_clip
from utils.errors import UserError


@torch.no_grad()
def test_another_size_resizes_the_table_with_aligned_corners() -> None:
    clip = tiny_clip(RESNET)
    table = clip.visual.attnpool.positional_embedding.clone()  # a class entry and 2x2
    set_resolution(clip, 110)
    resized = clip.visual.attnpool.positional_embedding
    assert resized.shape == (10, 256)
    assert torch.equal(resized[0], table[0])
    grid = resized[1:].view(3, 3, -1)
    assert torch.allclose(grid[::2, ::2].flatten(0, 1), table[1:], atol=1e-6)  # corners stay where they are
    expected = F.interpolate(table[1:].T.view(1, 256, 2, 2), (3, 3), mode="bicubic", align_corners=True)
    assert torch.equal(grid, expected[0].permute(1, 2, 0))
    assert clip.preprocess.resolution == clip.image_resolution == 110
    image = torch.randint(0, 256, (120, 200, 3), dtype=torch.uint8).numpy()
    assert clip.encode_image(clip.preprocess(image)[None]).shape == (1, 32)


def test_the_own_size_changes_nothing_and_transformers_keep_theirs() -> None:
    for dimensions in (RESNET, VIT):
        clip = tiny_clip(dimensions)
        before = {name: value.clone() for name, value in clip.model.state_dict().items()}
        set_resolution(clip, clip.image_resolution)
        assert all(torch.equal(value, before[name]) for name, value in clip.model.state_dict().items())
    with pytest.raises(UserError, match="this CLIP takes pictures of 32 pixels only, received 64"):
        set_resolution(clip, 64)
    with pytest.raises(UserError, match="must be at least 32 pixels, received 31"):
        set_resolution(tiny_clip(RESNET), 31)
