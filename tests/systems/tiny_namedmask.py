"""What the tests of NamedMask share: names, settings, weights, and what lies in a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from datasets.shapes.world import World
from networks.deeplab import DeepLabV3Plus
from tests.parity import fill
from tests.systems.tiny_world import tiny_namedmask_settings as tiny_settings
from utils.settings import NamedMaskSettings

ROOT = Path(__file__).parents[2]
NAMES = ["fish", "house", "car"]
EXPERTS = "use_expert_pseudo_masks=true"


def losses(run_dir: Path) -> list[tuple[int, float]]:
    records = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [(record["iteration"], record["loss"]) for record in records if "loss" in record]


def expert_dirs(run_dir: Path) -> dict[str, Path]:
    """Folders of a run's experts by category."""
    return {name: run_dir / "experts" / f"deeplabv3plus_mobilenet_n3_sr50100_{name}_s0" for name in NAMES}


def same_weights(one: Path, two: Path) -> bool:
    states = [torch.load(path, weights_only=True) for path in (one, two)]
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][k]) for k, v in states[0].items())


def make_weights(path: Path, num_classes: int, backbone: str = "mobilenet") -> Path:
    """A bare file with deterministic weights under the published names."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in DeepLabV3Plus(backbone, num_classes).state_dict().items()}
    torch.save({name: torch.from_numpy(value) for name, value in fill.state_dict(shapes).items()}, path)
    return path


def voc_settings(world: World, output_dir: Path, *overrides: str) -> NamedMaskSettings:
    """Settings of an evaluation on the tiny VOC2012."""
    words = ["categories=null", "dataset_name=voc2012", f"dir_val_dataset={world.voc_dir}", *overrides]
    return tiny_settings(world, output_dir, *words, task="evaluate")


def times(folder: Path, pattern: str = "*.json") -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern)}
