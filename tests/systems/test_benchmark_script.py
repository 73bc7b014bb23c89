"""The published benchmark script on a COCO-like folder, with weights of the published shape."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
import torch

from datasets.shapes.world import World
from networks.clip import ClipDimensions, create_clip
from networks.zutis import Zutis

ROOT = Path(__file__).parents[2]
# ViT-B/16 as published; the text tower is small, because only its joint dimension matters here.
VIT_B_16 = ClipDimensions(512, 224, 12, 768, 16, 77, 49408, 64, 1, 1)


@pytest.fixture(scope="module")
def published_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`weights.pt` (a bare ZUTIS state dict of 275 entries) and `clip.pt` in one folder."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    clip = create_clip(VIT_B_16)
    network = Zutis.from_clip(clip)
    assert len(network.state_dict()) == 275
    assert sum(p.numel() for p in network.parameters()) == 134_458_368
    torch.save(network.state_dict(), folder / "weights.pt")
    torch.save(clip.model.state_dict(), folder / "clip.pt")
    return folder


def run_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "UNMASKED_RUNS": str(cwd / "runs"),
        "UNMASKED_CACHE": str(cwd / "cache"),
    }
    command = ["bash", str(ROOT / "scripts/zutis/coco2017_vit_b_16.sh"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280, check=False)


def test_the_script_scores_weights_and_prints_the_protocol(
    published_like: Path, tiny_world: World, tmp_path: Path
) -> None:
    arguments = [f"dir_val_dataset={tiny_world.coco_dir}", f"clip_weights={published_like / 'clip.pt'}", "device=cpu"]
    weights = published_like / "weights.pt"
    done = run_script(str(weights), *arguments, "val_dataloader_kwargs={num_workers: 0}", "max_images=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for text in ("mean IoU", "pixel accuracy", "AP_50", "protocol", "15: background, fish", "bare category names"):
        assert text in done.stderr + done.stdout
    (results,) = (tmp_path / "runs").rglob("results.json")
    assert orjson.loads(results.read_bytes())["protocol"]["num_images"] == 2


def test_weights_of_another_architecture_stop_the_script(
    published_like: Path, tiny_world: World, tmp_path: Path
) -> None:
    weights = published_like / "weights.pt"
    done = run_script(str(weights), f"dir_val_dataset={tiny_world.coco_dir}", "clip_arch=ViT-B/32", cwd=tmp_path)
    assert done.returncode == 2
    assert "these look like ViT-B/16 weights; the config says clip_arch: ViT-B/32" in done.stderr
    assert "Traceback" not in done.stderr
