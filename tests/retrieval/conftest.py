"""Small CLIPs, pictures and indices for the tests of retrieval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from networks.clip import ClipDimensions, ClipModel, create_clip

TINY = ClipDimensions(
    embed_dim=16,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


@pytest.fixture(scope="session")
def clip() -> ClipModel:
    torch.manual_seed(0)
    return create_clip(TINY).eval()


@pytest.fixture
def make_pictures(tmp_path: Path) -> Callable[..., Path]:
    """Write `count` different JPEGs into a new folder."""

    def make(count: int, name: str = "pictures") -> Path:
        rng = np.random.default_rng(count)
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (24 + number, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"picture_{number}.jpg")
        return folder

    return make
