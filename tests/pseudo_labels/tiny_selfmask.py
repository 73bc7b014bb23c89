"""A SelfMask of a few thousand weights whose masks are neither empty nor full, and pictures for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from networks.selfmask import SelfMask


def tiny_selfmask(patch_size: int = 8, num_queries: int = 5, width: int = 64) -> SelfMask:
    torch.manual_seed(0)
    network = SelfMask(
        width=width,
        num_queries=num_queries,
        patch_size=patch_size,
        num_layers=2,
        num_decoder_layers=2,
        native_grid=4,
        hidden_width=64,
        decoder_hidden_width=96,
    )
    with torch.no_grad():
        network.encoder.patch_embed.proj.weight.mul_(5)
        network.decoder.norm.weight.mul_(3)
    return network.eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with an ellipse of another colour, uint8 RGB."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    image = np.array(coarse.resize((width, height), Image.Resampling.BICUBIC))
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - height / 2) / (height / 3 + 1)) ** 2 + ((columns - width / 2) / (width / 4 + 1)) ** 2 < 1
    image[inside] = rng.integers(0, 256, 3)
    return image


def write_pictures(folder: Path, sizes: list[tuple[int, int]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.png" for number in range(len(sizes))]
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        Image.fromarray(picture(*size, seed=number)).save(path)
    return paths
