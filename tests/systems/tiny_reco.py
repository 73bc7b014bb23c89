"""A stuff world of two dozen pictures, one untrained CLIP in all its roles, and a CRF of one iteration."""

from __future__ import annotations

from pathlib import Path

import torch

from datasets.metadata import prediction_table
from datasets.shapes.world import World, make_world
from networks.clip import create_clip
from pseudo_labels.references import References, write_references
from systems.reco_references import reference_settings
from tests.systems.tiny_world import DIMENSIONS, write_config
from utils.config import load_settings
from utils.settings import RecoSettings


def make_stuff_world(root: Path, **counts: int) -> World:
    """Pictures of stuff in the benchmarks' layouts, and `clip.pt` beside them."""
    things = {"num_imagenet": 0, "num_pass": 0, "num_val": 0}
    world = make_world(root, **things, **counts, image_size=48, num_workers=0)
    torch.manual_seed(0)
    torch.save(create_clip(DIMENSIONS).model.state_dict(), root / "clip.pt")
    return world


def tiny_words(world: World) -> list[str]:
    """Words that make the recipe small and offline."""
    clip, loader = world.root / "clip.pt", "{batch_size: 2, num_workers: 0}"
    return [
        *("device=cpu", f"retrieval_clip={clip}", f"dense_clip_arch={clip}", f"encoder_arch={clip}"),
        *("prompts=['a photo of a {}.']", "n_images=3", "embedding.num_workers=0", "crf={iterations: 1}"),
        *("segmenter_name=deeplabv3plus_mobilenet", "backbone_weights=null", "train_image_size=33", "n_iters=4"),
        *("iter_log=1", "iter_eval=2", "iter_checkpoint=1", f"train_dataloader_kwargs={loader}"),
        f"val_dataloader_kwargs={loader}",
    ]


def tiny_settings(world: World, output_dir: Path, *overrides: str, task: str | None = "train") -> RecoSettings:
    """Validated settings of a run on the Cityscapes of the stuff world."""
    output_dir.mkdir(parents=True, exist_ok=True)
    values = {
        "system": "reco",
        "dir_ckpt": str(output_dir),
        "dataset_name": "cityscapes",
        "dir_val_dataset": str(world.cityscapes_stuff_dir),
        "imagenet_split": "train",
        "dir_train_dataset": str(world.stuff_index_dir),
    }
    return load_settings(write_config(output_dir / "tiny.yaml", values), [*tiny_words(world), *overrides], task=task)


def random_references(settings: RecoSettings, path: Path, width: int = 64, seed: int = 0) -> Path:
    """References that nobody computed, as a file that fits the settings."""
    generator = torch.Generator().manual_seed(seed)
    names = prediction_table(settings.dataset_name).names if settings.dataset_name else settings.categories
    vectors = torch.nn.functional.normalize(torch.randn(len(names), width, generator=generator), dim=1)
    write_references(path, References(tuple(names), vectors), reference_settings(settings))
    return path
