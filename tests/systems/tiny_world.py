"""A shapes world of a few dozen pictures with untrained tiny models: every stage runs on it within seconds."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from datasets.shapes.world import World, make_world
from networks.clip import ClipDimensions, create_clip
from tests.pseudo_labels.tiny_selfmask import tiny_selfmask
from utils.config import load_settings
from utils.settings import NamedMaskSettings, ZutisSettings

DIMENSIONS = ClipDimensions(
    embed_dim=32,
    image_resolution=32,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=8,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


def make_tiny_world(root: Path) -> World:
    """The pictures, and `clip.pt` and `selfmask.pt` beside them."""
    world = make_world(root, num_imagenet=24, num_pass=16, num_val=5, num_voc=6, image_size=48, num_workers=0)
    torch.manual_seed(0)
    torch.save(create_clip(DIMENSIONS).model.state_dict(), root / "clip.pt")
    torch.save(tiny_selfmask().state_dict(), root / "selfmask.pt")
    return world


def tiny_values(world: World, output_dir: Path) -> dict:
    """Settings of a run in the tiny world, under their YAML keys."""
    return {
        "system": "zutis",
        "name": "run",
        "dir_ckpt": str(output_dir),
        "device": "cpu",
        "dir_train_dataset": [str(world.imagenet_dir / "train"), str(world.pass_dir / "images")],
        "dir_pseudo_masks": str(output_dir / "masks"),
        "dataset_name": "coco2017",
        "dir_val_dataset": str(world.coco_dir),
        "categories": list(world.category_names),
        "clip_arch": "custom",
        "clip_weights": str(world.root / "clip.pt"),
        "retrieval_clip": str(world.root / "clip.pt"),
        "selfmask_weights": str(world.root / "selfmask.pt"),
        "selfmask_shorter_side": 48,
        "n_images": 3,
        "embedding": {"batch_size": 8, "num_workers": 0},
        "saliency": {"batch_size": 4, "num_workers": 0},
        "num_queries": 5,
        "num_decoder_layers": 2,
        "train_image_size": 48,
        "scale_range": [0.5, 1.0],
        "n_iters": 6,
        "iter_log": 1,
        "iter_eval": 3,
        "iter_checkpoint": 2,
        "optimiser": {"encoder_lr": 1e-3, "decoder_lr": 1e-3},
        "train_dataloader_kwargs": {"batch_size": 2, "num_workers": 0},
        "val_dataloader_kwargs": {"batch_size": 2, "num_workers": 0},
    }


def write_config(path: Path, values: dict) -> Path:
    """A YAML file with these settings."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def tiny_settings(world: World, output_dir: Path, *overrides: str, task: str | None = "train") -> ZutisSettings:
    """Validated settings of a run in the tiny world."""
    output_dir.mkdir(parents=True, exist_ok=True)
    return load_settings(write_config(output_dir / "tiny.yaml", tiny_values(world, output_dir)), overrides, task=task)


def tiny_namedmask_values(world: World, output_dir: Path) -> dict:
    """Settings of a NamedMask run in the tiny world: three names, no benchmark, the smallest segmenter untaught."""
    return {
        "system": "namedmask",
        "name": "run",
        "dir_ckpt": str(output_dir),
        "device": "cpu",
        "dir_train_dataset": [str(world.imagenet_dir / "train"), str(world.pass_dir / "images")],
        "dir_pseudo_masks": str(output_dir / "masks"),
        "categories": ["fish", "house", "car"],
        "segmenter_name": "deeplabv3plus_mobilenet",
        "backbone_weights": None,
        "retrieval_clip": str(world.root / "clip.pt"),
        "prompts": ["a photo of a {}."],
        "selfmask_weights": str(world.root / "selfmask.pt"),
        "selfmask_shorter_side": 48,
        "n_images": 3,
        "embedding": {"batch_size": 8, "num_workers": 0},
        "saliency": {"batch_size": 4, "num_workers": 0},
        "train_image_size": 33,
        "scale_range": [0.5, 1.0],
        "n_iters": 3,
        "iter_log": 1,
        "iter_checkpoint": 1,
        "train_dataloader_kwargs": {"batch_size": 2, "num_workers": 0},
        "val_dataloader_kwargs": {"batch_size": 2, "num_workers": 0},
        "experts": {
            "dir_masks": str(output_dir / "expert_masks"),
            "n_iters": 2,
            "at_once": 1,
            "train_dataloader_kwargs": {"batch_size": 2, "num_workers": 0},
            "masks": {"batch_size": 4, "num_workers": 0},
        },
    }


def tiny_namedmask_settings(
    world: World, output_dir: Path, *overrides: str, task: str | None = "train"
) -> NamedMaskSettings:
    """Validated settings of a NamedMask run in the tiny world."""
    output_dir.mkdir(parents=True, exist_ok=True)
    values = tiny_namedmask_values(world, output_dir)
    return load_settings(write_config(output_dir / "tiny.yaml", values), overrides, task=task)
