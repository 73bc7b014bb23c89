"""The built-in world's SelfMask, taught without a mask: votes of the world's CLIP, made sharp, then the network.

Stages: pictures -> spectral votes -> bilateral solver -> training -> ``selfmask.pt``. Run by ``pretrain_world.sh``.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.shapes.world import make_world
from networks.checkpoints import read_state_dict
from pseudo_labels import rle
from pseudo_labels.bilateral_solver import SolverSettings, refine_mask
from systems import selfmask
from systems.shapes_clip import round_weights, save_compressed
from training.run_folder import RunFolder
from training.selfmask_data import read_pseudo_masks
from utils.config import load_settings
from utils.files import write_json
from utils.images import read_rgb
from utils.log import get_logger, progress
from utils.settings import SelfMaskSettings

_logger = get_logger(__name__)

#: The pictures come from another world than the demonstration's.
WORLD_SEED, NUM_PICTURES, PICTURE_SIZE = 1, 3000, 128


def _refine(entry: tuple[str, Mapping[str, Any]], image_dir: Path, solver: SolverSettings) -> tuple[str, dict]:
    name, code = entry
    mask = refine_mask(read_rgb(image_dir / name), rle.decode(code), solver)
    return name, rle.encode(mask.astype(np.uint8))


def refine_votes(masks_path: Path, refined_path: Path, image_dir: Path, *, num_workers: int = 2) -> Path:
    """Snap voted masks to the edges of their pictures: the votes' cells are as coarse as the patches.

    Args:
        masks_path: JSON of voted masks.
        refined_path: JSON of the same kind; taken as it is if it exists.
        image_dir: the pictures.
        num_workers: processes.

    Returns:
        ``refined_path``.
    """
    if refined_path.exists():
        return refined_path
    masks = read_pseudo_masks(masks_path)
    work = partial(_refine, image_dir=image_dir, solver=SolverSettings())
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        found = progress(
            pool.imap(work, masks.items(), chunksize=16), total=len(masks), description="solver", unit="mask"
        )
        write_json(refined_path, dict(found), indent=False)
    return refined_path


def load_shapes_settings(
    config_path: Path, work_dir: Path, image_dir: Path, clip_path: Path, *more: str
) -> SelfMaskSettings:
    """Settings of a stage: the file with this run's folders, and further ``key=value`` words."""
    words = [f"dir_ckpt={work_dir / 'runs'}", f"dir_dataset={image_dir}", f"encoder.weights={clip_path}", *more]
    return load_settings(config_path, words, task="train")


def feature_words(clip_path: Path, blocks: Sequence[int] = (2, 3, 4)) -> str:
    """The setting that votes with several blocks of one CLIP."""
    networks = ", ".join(f"{{network: clip, weights: {clip_path}, block: {block}}}" for block in blocks)
    return f"features=[{networks}]"


def pretrain_selfmask(output_dir: Path, config_path: Path, *, num_workers: int = 2, num_threads: int = 2) -> Path:
    """Teach the world's SelfMask, or go on where it was cut off.

    Args:
        output_dir: holds ``clip.pt``, receives ``selfmask.pt``, ``selfmask_log.jsonl`` and ``work/``.
        config_path: ``configs/selfmask/shapes.yaml``.
        num_workers: processes that make pictures and run the solver.
        num_threads: of PyTorch while the network is trained; voting, whose products are small, has one.

    Returns:
        Path of ``selfmask.pt``.
    """
    path, work_dir, clip_path = output_dir / "selfmask.pt", output_dir / "work", output_dir / "clip.pt"
    if path.exists():
        _logger.info("%s exists: not trained again", path)
        return path
    options = {"image_size": PICTURE_SIZE, "seed": WORLD_SEED, "num_workers": num_workers}
    image_dir = make_world(work_dir / "world", num_pass=NUM_PICTURES, **options).pass_dir / "images"
    voting = load_shapes_settings(config_path, work_dir, image_dir, clip_path, "name=votes", feature_words(clip_path))
    torch.set_num_threads(1)
    votes_path = selfmask.vote_masks(voting, RunFolder(selfmask.run_path(voting)), torch.device("cpu"))
    refined_path = refine_votes(votes_path, work_dir / "refined_votes.json", image_dir, num_workers=num_workers)
    words = ("name=selfmask", "features=[]", f"pseudo_mask_path={refined_path}")
    torch.set_num_threads(num_threads)
    run = selfmask.train(load_shapes_settings(config_path, work_dir, image_dir, clip_path, *words))
    state = read_state_dict(run.final_model_path)
    save_compressed(round_weights(state), path)
    (output_dir / "selfmask_log.jsonl").write_bytes(run.metrics_path.read_bytes())
    return path
