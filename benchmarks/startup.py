"""Start-up of an evaluation: from the command to the first score, but for reading the weights and the pictures.

The command is `inference.py` on a small folder in VOC2012's layout with a DeepLabv3+ of the published size.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import yaml

from benchmarks.harness import Context, Measurement, benchmark
from datasets.shapes.world import make_world
from networks.deeplab import build_deeplab
from systems.deeplab import SemanticSegmenter, read_deeplab

ROOT = Path(__file__).parents[1]
NUM_PICTURES, SIDE = 3, 48


@benchmark("startup")
def measure(context: Context) -> Iterator[Measurement]:
    """Seconds of the whole command less those of reading the weights and of predicting the pictures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        voc_dir = make_world(folder / "world", num_voc=NUM_PICTURES, image_size=SIDE, num_workers=0).voc_dir
        weights = folder / "weights.pt"
        torch.save(build_deeplab("resnet50", 21).state_dict(), weights)
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(_settings(folder, voc_dir)), encoding="utf-8")
        command = [sys.executable, "inference.py", "--config", str(config), "--weights", str(weights)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(context.threads)}
        options = {"cwd": ROOT, "env": environment, "check": True, "capture_output": True}
        whole = context.time(lambda: subprocess.run(command, **options))
        torch_alone = context.time(lambda: subprocess.run([sys.executable, "-c", "import torch"], **options))
        reading = context.time(lambda: read_deeplab(weights))
        segmenter = SemanticSegmenter(read_deeplab(weights).network, torch.device("cpu"))
        picture = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
        predicting = context.time(lambda: segmenter(picture, (SIDE, SIDE)))
    yield Measurement(
        name="startup",
        workload="inference.py, DeepLabv3+ ResNet-50, without reading weights and predicting",
        seconds=whole.seconds - reading.seconds - NUM_PICTURES * predicting.seconds,
        spread=whole.spread,
        limit="import torch",
        limit_seconds=torch_alone.seconds,
        note=f"whole command {whole.seconds:.2f} s, reading the weights {reading.seconds:.2f} s",
    )


def _settings(folder: Path, voc_dir: Path) -> dict[str, object]:
    return {
        "system": "namedmask",
        "dataset_name": "voc2012",
        "dir_val_dataset": str(voc_dir),
        "dir_ckpt": str(folder / "runs"),
        "device": "cpu",
        "val_dataloader_kwargs": {"num_workers": 0},
    }
