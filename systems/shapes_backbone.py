"""The built-in world's MobileNetV2, taught without a label: it learns to say of pictures what the world's CLIP says.

Stages: unlabelled pictures -> CLIP's tokens and embeddings, the lessons -> ``mobilenet.pt``, what a DeepLabv3+ may
start from. Run by ``pretrain_world.sh``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from datasets.shapes.world import make_world
from networks.checkpoints import read_state_dict
from networks.clip import CLIP_MEAN, CLIP_STD, ClipModel, load_clip
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
CROP_SIZE, NUM_STEPS, BATCH_SIZE, LEARNING_RATE, NUM_MEAN_CROPS = 64, 1000, 16, 3e-3, 256


class CropDataset:
    """Random square crops of pictures at one size, flipped half of the time; sample i is a function of (seed, i).

    Args:
        paths: pictures of at least ``size`` pixels along each side.
        size: side of a sample; crops have between this side and the picture's shorter one.
        seed: of all samples.
    """

    def __init__(self, paths: list[Path], size: int, seed: int = 0) -> None:
        self.paths, self.size, self.seed = paths, size, seed

    def __getitem__(self, position: int) -> Tensor:
        """RGB, uint8, (size, size, 3)."""
        rng = np.random.default_rng((self.seed, position))
        image = read_rgb(self.paths[rng.integers(len(self.paths))])
        side = int(rng.integers(self.size, min(image.shape[:2]), endpoint=True))
        top, left = (int(rng.integers(length - side + 1)) for length in image.shape[:2])
        crop = image[top : top + side, left : left + side]
        crop = cv2.resize(crop, (self.size, self.size), interpolation=cv2.INTER_AREA)
        return torch.from_numpy(np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop))


class Student(nn.Module):
    """A backbone of stride 8 with linear maps from its features, and from their mean, to the teacher's space."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = DilatedMobileNetV2()
        self.head = nn.Conv2d(self.backbone.width, width, 1)
        self.pooled_head = nn.Linear(self.backbone.width, width)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised pictures (B, 3, H, W) -> tokens (B, D, H/8, W/8) and embeddings (B, D)."""
        _, high = self.backbone.low_and_high(images)
        return self.head(high), self.pooled_head(high.mean(dim=(2, 3)))


class Teacher:
    """What CLIP says of pictures, less what it says of all of them: most of every direction is shared.

    Args:
        clip: the world's CLIP.
        crops: pictures for the mean, (N, S, S, 3), uint8.
    """

    def __init__(self, clip: ClipModel, crops: Tensor) -> None:
        self.clip = clip
        self.dense = Zutis.from_clip(clip).float().eval().requires_grad_(False)
        tokens, embeddings = self._compute(crops)
        self.mean_token, self.mean_embedding = tokens.mean(dim=(0, 2, 3)), embeddings.mean(dim=0)
        self.width = len(self.mean_token)

    def __call__(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, D, h, w) and embeddings (B, D) of crops (B, S, S, 3), uint8, without their means."""
        tokens, embeddings = self._compute(crops)
        return tokens - self.mean_token[:, None, None], embeddings - self.mean_embedding

    @torch.no_grad()
    def _compute(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        images = crops.permute(0, 3, 1, 2)
        tokens = self.dense(normalise_images(images), all_layers=False).patch_tokens.permute(0, 3, 1, 2)
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
        embeddings = self.clip.encode_image((images / 255 - mean) / std).float()
        return tokens, nn.functional.normalize(embeddings, dim=1)


@dataclass(frozen=True)
class TeachingStep:
    """One lesson: 1 - cosine between student and teacher, for every token and for the whole crop.

    Attributes:
        teacher: see `Teacher`.
    """

    teacher: Teacher

    def __call__(self, student: nn.Module, crops: Tensor, step: Step) -> dict[str, Tensor]:
        """Losses of crops (B, S, S, 3), uint8."""
        tokens, embeddings = self.teacher(crops)
        images = normalise_images(crops.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        found_tokens, found_embeddings = student(images)
        found_tokens = resize(found_tokens, tuple(tokens.shape[2:]))
        token_loss = 1 - nn.functional.cosine_similarity(found_tokens, tokens).mean()
        embedding_loss = 1 - nn.functional.cosine_similarity(found_embeddings, embeddings).mean()
        return {"loss": token_loss + embedding_loss, "token_loss": token_loss, "embedding_loss": embedding_loss}


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
    crops = CropDataset(list_pictures([image_dir]), CROP_SIZE)
    sample = _stack([crops[position] for position in range(NUM_MEAN_CROPS)])
    teacher = Teacher(load_clip(output_dir / "clip.pt"), sample)
    student = Student(teacher.width)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.05, fused=True)
    run = RunFolder(work_dir / "runs" / "mobilenet")
    fit(
        student.to(memory_format=torch.channels_last),
        training_step=TeachingStep(teacher),
        optimizer=optimizer,
        schedule=PolyLR(optimizer, NUM_STEPS, min_lr=1e-5).rates,
        dataset=crops,
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
