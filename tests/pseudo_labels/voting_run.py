"""The voting stage as it runs in processes of their own, for tests that kill it or run several together."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from networks.patch_features import VitPatchFeatures
from networks.vit import VisionTransformer
from pseudo_labels import mask_collection
from pseudo_labels.candidates import VotingReport, vote_pseudo_masks
from pseudo_labels.election import VotingSettings
from pseudo_labels.features import FeatureNetwork

SETTINGS = VotingSettings(num_clusters=(2, 3))


def write_pictures(folder: Path, num: int = 6) -> dict[str, Path]:
    """Pictures of several sizes with a red box on blue; name -> path."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, paths = np.random.default_rng(0), {}
    for number in range(num):
        image = np.full((40 + number, 56, 3), (40, 90, 160), np.uint8)
        top, left = rng.integers(6, 16, 2)
        image[top : top + 18, left : left + 18] = (200, 60, 40)
        paths[f"{number}.png"] = folder / f"{number}.png"
        Image.fromarray(np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)).save(
            paths[f"{number}.png"]
        )
    return paths


def small_network(name: str = "small") -> FeatureNetwork:
    torch.manual_seed(0)
    body = VitPatchFeatures(VisionTransformer(width=64, num_layers=1, patch_size=8, native_grid=4, hidden_width=64))
    return FeatureNetwork(body, 8, name=name).eval().requires_grad_(False)


def run_voting(folder: Path, output: Path, **options: object) -> VotingReport:
    """Vote for the masks of all pictures of a folder."""
    paths = {path.name: path for path in sorted(folder.glob("*.png"))}
    return vote_pseudo_masks(paths, output, [small_network()], settings=SETTINGS, **options)


def run_and_die(folder: Path, output: Path, num_lines: int) -> None:
    """Vote, and be killed while the line after `num_lines` is written: half of it is on the disk."""
    original, count = mask_collection.orjson.dumps, 0

    def dumps(value: object, *arguments: object) -> bytes:
        nonlocal count
        data = original(value, *arguments)
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict):
            count += 1
            if count > num_lines:
                part = next((output.parent / f"{output.name}.parts").glob("part-*.jsonl"))
                with open(part, "ab") as file:
                    file.write(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return data

    mask_collection.orjson = type("orjson", (), {**vars(mask_collection.orjson), "dumps": staticmethod(dumps)})
    run_voting(folder, output)


def run_in_group(folder: Path, output: Path) -> None:
    """Vote as one of several processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    run_voting(folder, output)
