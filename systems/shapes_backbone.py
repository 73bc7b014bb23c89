"""The built-in world's MobileNetV2, taught without a label: it learns to say of every cell what the world's CLIP says.

Stages: unlabelled pictures -> CLIP's patch tokens, the lessons -> ``mobilenet.pt``, which a DeepLabv3+ may start from.
Run by ``pretrain_world.sh``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.shapes.world import make_world
from networks.checkpoints import read_state_dict
from networks.clip import load_clip
from networks.interpolation import resize
from networks.mobilenet import DilatedMobileNetV2
from networks.zutis import Zutis
from systems.shapes_clip import round_weights, save_compressed
from systems.shapes_selfmask import NUM_PICTURES, PICTURE_SIZE, WORLD_SEED
from training.loop import fit
from training.loop_settings import LoopSettings, Step
from training.run_folder import RunFolder
from training.schedules import PolyLR
from utils.images import list_pictures, read_rgb
from utils.log import get_logger
from utils.normalisation import normalise_images
from utils.seeds import seed_everything

_logger = get_logger(__name__)
CROP_SIZE, NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 64, 600, 16, 2e-3


class CropDataset:
    """Random crops of pictures, flipped half of the time; sample i is a pure function of (seed, i).

    Args:
        paths: pictures of at least ``size`` pixels along each side.
        size: side of a crop.
        seed: of all samples.
    """

    def __init__(self, paths: list[Path], size: int, seed: int = 0) -> None:
        self.paths, self.size, self.seed = paths, size, seed

    def __getitem__(self, position: int) -> Tensor:
        """RGB, uint8, (size, size, 3)."""
        rng = np.random.default_rng((self.seed, position))
        image = read_rgb(self.paths[rng.integers(len(self.paths))])
        top, left = (int(rng.integers(side - self.size + 1)) for side in image.shape[:2])
        crop = image[top : top + self.size, left : left + self.size]
        return torch.from_numpy(np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop))


class TokenStudent(nn.Module):
    """A backbone of stride 8 and a linear map from its features to the teacher's tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = DilatedMobileNetV2()
        self.head = nn.Conv2d(self.backbone.width, width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised pictures (B, 3, H, W) -> tokens (B, D, H/8, W/8)."""
        _, high = self.backbone.low_and_high(images)
        return self.head(high)


@dataclass(frozen=True)
class TokenStep:
    """One lesson: the mean of 1 - cosine between the student's enlarged and the teacher's tokens.

    Attributes:
        teacher: gives unit patch tokens.
    """

    teacher: Zutis

    def __call__(self, student: nn.Module, images: Tensor, step: Step) -> dict[str, Tensor]:
        """Loss of crops (B, S, S, 3), uint8."""
        pixels = normalise_images(images.permute(0, 3, 1, 2))
        with torch.no_grad():
            tokens = self.teacher(pixels, all_layers=False).patch_tokens.permute(0, 3, 1, 2)  # (B, D, h, w)
        found = resize(student(pixels.contiguous(memory_format=torch.channels_last)), tuple(tokens.shape[2:]))
        return {"loss": 1 - nn.functional.cosine_similarity(found, tokens).mean()}


def pretrain_backbone(output_dir: Path, *, num_workers: int = 2) -> Path:
    """Teach the world's MobileNetV2, or go on where it was cut off.

    Args:
        output_dir: holds ``clip.pt``, receives ``mobilenet.pt``, ``mobilenet_log.jsonl`` and ``work/``.
        num_workers: processes that make pictures.

    Returns:
        Path of ``mobilenet.pt``: the backbone under torchvision's names, float16.
    """
    path, work_dir = output_dir / "mobilenet.pt", output_dir / "work"
    if path.exists():
        _logger.info("%s exists: not trained again", path)
        return path
    options = {"image_size": PICTURE_SIZE, "seed": WORLD_SEED, "num_workers": num_workers}
    image_dir = make_world(work_dir / "world", num_pass=NUM_PICTURES, **options).pass_dir / "images"
    seed_everything(0)
    teacher = Zutis.from_clip(load_clip(output_dir / "clip.pt")).float().eval().requires_grad_(False)
    student = TokenStudent(teacher(torch.zeros(1, 3, CROP_SIZE, CROP_SIZE)).patch_tokens.shape[-1])
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.05, fused=True)
    run = RunFolder(work_dir / "runs" / "mobilenet")
    fit(
        student.to(memory_format=torch.channels_last),
        training_step=TokenStep(teacher),
        optimizer=optimizer,
        schedule=PolyLR(optimizer, NUM_STEPS, min_lr=1e-5).rates,
        dataset=CropDataset(list_pictures([image_dir]), CROP_SIZE),
        collate=_stack,
        loop=LoopSettings(
            num_iterations=NUM_STEPS, batch_size=BATCH_SIZE, log_interval=50, eval_interval=100, device="cpu"
        ),
        run=run,
    )
    save_compressed(round_weights(backbone_entries(read_state_dict(run.final_model_path))), path)
    (output_dir / "mobilenet_log.jsonl").write_bytes(run.metrics_path.read_bytes())
    return path


def backbone_entries(student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone's entries of a student, under torchvision's names (`features.*`)."""
    entries = {name.removeprefix("backbone."): value for name, value in student.items() if name.startswith("backbone.")}
    return {name.removeprefix("low_level_").removeprefix("high_level_"): value for name, value in entries.items()}


def _stack(crops: list[Any]) -> Tensor:
    return torch.stack(crops)
