"""From SelfMask's settings to the arguments of its stages. The stages: `selfmask.py`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pseudo_labels.election import VotingSettings
from training.schedules import poly_lr
from training.selfmask_data import SelfMaskDataset
from training.selfmask_schedule import released_poly_factor
from utils.settings import SelfMaskSettings


def voting_settings(settings: SelfMaskSettings) -> VotingSettings:
    """The part of the settings that decides the pseudo-masks."""
    return VotingSettings(
        num_clusters=tuple(settings.cluster_counts),
        shorter_side=settings.cluster_image_side,
        max_locations=settings.max_locations,
        remove_long_masks=settings.remove_long_masks,
        remove_by_area=settings.remove_by_area,
        seed=settings.seed,
    )


def make_schedule(settings: SelfMaskSettings, dataset: SelfMaskDataset) -> Callable[[int], list[float]]:
    """Learning rate by steps done: the polynomial decay that was meant ("poly"), or what the release does."""
    total, base_lr = settings.num_iterations, settings.learning_rate
    if settings.schedule == "poly":
        return lambda step: [poly_lr(base_lr, step, total, settings.power, min_lr=0.0)]
    iters = max(1, dataset.epoch_length // settings.train_loader.batch_size)
    options = {"iters_per_epoch": iters, "num_epochs": max(1, round(total / iters)), "power": settings.power}
    return lambda step: [base_lr * released_poly_factor(step, **options)]


def run_path(settings: SelfMaskSettings) -> Path:
    """Folder of a run, `<output_dir>/<name>`; the name is made as in the release if none is given."""
    if settings.name:
        return settings.output_dir / settings.name
    low, high = (int(100 * bound) for bound in settings.scale_range)
    parts = [
        f"nq{settings.num_queries}_ndl{settings.num_decoder_layers}",
        "" if settings.encoder.patch_size == 8 else f"p{settings.encoder.patch_size}",
        f"sr{low}{high}",
        settings.image_dir.name if settings.image_dir is not None else "",
        f"seed{settings.seed}",
        settings.suffix or "",
    ]
    return settings.output_dir / "_".join(part for part in parts if part)
