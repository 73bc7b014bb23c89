"""SelfMask: salient-object masks without a label (Shin, Albanie, Xie; CVPR workshops 2022).

The stages in the order of the paper: pictures -> candidates from spectral clusters of several feature networks and a
vote for one mask (`vote_masks`) -> a network of queries trained on the winners (`train`) -> scores on salient-object
benchmarks (`evaluate`) -> masks of any pictures (`segment_pictures`). Networks: `networks/selfmask.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from datasets.saliency import SaliencyBenchmark
from evaluation.pictures import PictureResult
from evaluation.pictures import segment_pictures as write_pictures
from networks.selfmask import SelfMask, selfmask_from_state_dict
from pseudo_labels.bilateral_solver import SolverSettings
from pseudo_labels.candidates import vote_pseudo_masks
from pseudo_labels.features import FeatureSpec, load_feature_network
from systems import stages
from systems.selfmask_encoder import build_network, read_weights
from systems.selfmask_evaluation import score_benchmark, segment_picture
from systems.selfmask_options import make_schedule, run_path, voting_settings
from training.describe import describe_training
from training.launch import make_fabric
from training.loop import fit
from training.loop_settings import Step
from training.run_folder import RunFolder
from training.selfmask_data import SelfMaskBatch, SelfMaskDataset, collate_samples, normalise, read_pseudo_masks
from training.selfmask_losses import RankingSign, selfmask_criterion
from training.selfmask_schedule import build_optimizer
from utils.config import load_settings, settings_from_dict
from utils.device import select_device
from utils.distributed import is_main
from utils.drawing import palette
from utils.errors import ConfigError, DataError
from utils.files import write_json
from utils.images import list_pictures
from utils.log import get_logger
from utils.seeds import seed_everything
from utils.settings import SelfMaskSettings, yaml_values

logger = get_logger(__name__)


def train(settings: SelfMaskSettings, *, resume: str = "auto", dry_run: bool = False) -> RunFolder:
    """Go from unlabelled pictures to a salient-object network; complete stages are skipped, cut-off ones go on.

    Args:
        settings: of the run, validated for the task "train".
        resume: "auto", "never", or a checkpoint to go on from.
        dry_run: check, build, read one batch, report, and write nothing.

    Returns:
        The run folder.

    Raises:
        UserError: whatever is wrong with settings, files or pictures.
    """
    run = RunFolder(run_path(settings))
    if dry_run:
        _describe(settings, run)
        return run
    fabric = make_fabric(settings.device, settings.precision)
    seed_everything(settings.seed)
    benchmark = _benchmark(settings) if settings.dataset_name and settings.benchmark_dir else None
    masks_path = vote_masks(settings, run, fabric.device)
    dataset = make_dataset(settings, masks_path)
    seed_everything(settings.seed)
    network = build_network(settings, [dataset.image_dir / name for name in dataset.names])
    result = fit(
        network,
        training_step=SelfMaskStep(settings.ranking_sign),
        optimizer=build_optimizer(network, lr=settings.learning_rate, weight_decay=settings.weight_decay),
        schedule=make_schedule(settings, dataset),
        dataset=dataset,
        collate=collate_samples,
        loop=stages.loop_settings(settings),
        run=run,
        counts=count_objects,
        evaluate=None if benchmark is None else _scorer(settings, benchmark, fabric.device),
        better=None if benchmark is None else "iou",
        resume=resume,
        config=yaml_values(settings),
        settings={"ranking_sign": settings.ranking_sign, "schedule": settings.schedule, "num_masks": len(dataset)},
        fabric=fabric,
    )
    losses = "  ".join(f"{name} {value:.4f}" for name, value in result.losses.items())
    logger.info("trained for %d iterations  %s\nweights: %s", result.iteration, losses, run.final_model_path)
    return run


def vote_masks(settings: SelfMaskSettings, run: RunFolder, device: torch.device | str) -> Path:
    """Make the pseudo-masks of the training pictures that are missing, or take a given file as it is.

    Args:
        settings: features, numbers of clusters, folder of pictures.
        run: where the file goes if the settings name none.
        device: where features and eigenvectors are computed.

    Returns:
        The JSON file of masks.

    Raises:
        DataError: if no picture could be read.
    """
    path = settings.pseudo_mask_path or run.path / "pseudo_masks.json"
    if not settings.features:
        logger.info("voting: %s is used as it is", path)
        return path
    specs = [FeatureSpec(feature.network, feature.weights, feature.block) for feature in settings.features]
    pictures = _pictures(settings.image_dir)
    report = vote_pseudo_masks(
        pictures,
        path,
        [load_feature_network(spec, device=device) for spec in specs],
        settings=voting_settings(settings),
        device=device,
        num_workers=settings.voting_workers,
        preview_path=run.pictures_dir / "voted_masks.png",
    )
    if len(report.refused) == len(pictures):
        raise DataError(
            f"{settings.image_dir}: none of the {len(pictures)} pictures can be read, see {path}.settings.json"
        )
    return path


def make_dataset(settings: SelfMaskSettings, masks_path: Path) -> SelfMaskDataset:
    """The augmented training samples of a file of masks."""
    dataset = SelfMaskDataset(
        settings.image_dir,
        read_pseudo_masks(masks_path),
        batch_size=settings.train_loader.batch_size,
        seed=settings.seed,
        image_size=settings.train_image_size,
        scale_range=settings.scale_range,
    )
    logger.info("training on %d pictures (%d more have an empty mask)", len(dataset), dataset.num_empty)
    return dataset


@dataclass(frozen=True)
class SelfMaskStep:
    """One training step: batch -> losses (paper, section 3.3).

    Attributes:
        ranking_sign: see `training.selfmask_losses.ranking_loss`.
    """

    ranking_sign: RankingSign = "released"

    def __call__(self, network: torch.nn.Module, batch: SelfMaskBatch, step: Step) -> dict[str, Tensor]:
        """Losses of a batch on the device; "loss" is minimised."""
        output = network(normalise(batch.images))
        losses = selfmask_criterion(
            output.mask_pred, output.objectness[..., 0], batch.masks, ranking_sign=self.ranking_sign
        )
        # A batch may have shrunk: parts of one step count by the images that they really hold.
        share = len(batch.masks) / step.mean_counts[0].clamp(min=1 / step.num_parts)
        return {"loss": losses.loss * share, "dice": losses.dice, "ranking": losses.ranking, "iou": losses.iou}


def count_objects(batch: SelfMaskBatch) -> Tensor:
    """Images of a batch that have an object, (1,)."""
    return batch.masks.flatten(1).any(dim=1).sum()[None]


def evaluate(settings: SelfMaskSettings, weights: Path) -> dict[str, float]:
    """Score weights on the benchmark of the settings and write the scores with their protocol.

    Args:
        settings: validated for the task "evaluate".
        weights: a published file, a run folder, or a file in one.

    Returns:
        Mean scores, see `evaluation.saliency.METRICS`; ``ub_*`` are upper bounds.
    """
    fabric = make_fabric(settings.device, settings.precision)
    benchmark = _benchmark(settings)
    state, source = read_weights(weights)
    network = selfmask_from_state_dict(state, source=source)
    scores = _scorer(settings, benchmark, fabric.device)(network, 0)
    if is_main():
        path = settings.output_dir / f"evaluation_{weights.stem}_{benchmark.name}" / "results.json"
        write_json(path, {"scores": scores, "protocol": benchmark.protocol, "weights": source})
        lines = [f"  {name:<14} {value:.4f}" for name, value in scores.items() if name != "num_images"]
        logger.info("%s\n%s\nresults: %s", "\n".join(benchmark.protocol), "\n".join(lines), path)
    return scores


def segment_pictures(
    weights: Path,
    images: Sequence[str | Path],
    *,
    categories: Sequence[str] | None,
    output_dir: Path,
    settings: SelfMaskSettings | None = None,
    overrides: Sequence[str] = (),
) -> list[PictureResult]:
    """Make the mask of the salient object of every picture: label PNGs, overlays, COCO JSON and a table.

    Args:
        weights: a run folder, a file in one, or a published file.
        images: folders, files or globs.
        categories: must be None: SelfMask knows no names.
        output_dir: where results go.
        settings: solver and image size; a run's own, or the published ones, if None.
        overrides: `key=value` words on top of a run's settings.

    Raises:
        UserError: unreadable weights or pictures, or names.
    """
    if categories is not None:
        raise ConfigError("--categories: SelfMask finds the salient object whatever it is; leave the names out")
    settings = settings or _stored_settings(weights, overrides)
    device = select_device(settings.device)
    state, source = read_weights(weights)
    network = selfmask_from_state_dict(state, source=source).to(device)
    solver = None if settings.solver is None else SolverSettings(**settings.solver.model_dump())
    options = {"shorter_side": settings.selfmask_shorter_side, "solver": solver, "precision": settings.precision}
    return write_pictures(
        images,
        partial(map, partial(segment_picture, network, device=device, **options)),
        category_names=["background", "salient object"],
        palette=palette(2),
        output_dir=output_dir,
    )


def _stored_settings(weights: Path, overrides: Sequence[str]) -> SelfMaskSettings:
    """Settings of the run that the weights belong to, or the defaults."""
    config = (weights if weights.is_dir() else weights.parent) / "config.yaml"
    if config.is_file():
        return load_settings(config, overrides)
    return settings_from_dict({"system": "selfmask"}, source="defaults", overrides=overrides)


def _benchmark(settings: SelfMaskSettings) -> SaliencyBenchmark:
    return SaliencyBenchmark(settings.dataset_name, settings.benchmark_dir, max_images=settings.max_images)


def _scorer(
    settings: SelfMaskSettings, benchmark: SaliencyBenchmark, device: torch.device | str
) -> Callable[[SelfMask, int], dict[str, float]]:
    """Function from a network (and the iteration) to its scores on the benchmark."""
    options = {"device": device, "precision": settings.precision, "num_workers": settings.val_loader.num_workers}
    return lambda network, iteration: score_benchmark(network, benchmark, **options)


def _pictures(image_dir: Path) -> dict[str, Path]:
    """Name in the mask file (path below the folder) and path of every training picture."""
    return {path.relative_to(image_dir).as_posix(): path for path in list_pictures([image_dir])}


def _describe(settings: SelfMaskSettings, run: RunFolder) -> None:
    """Check and build everything that needs no masks, read a batch if there are masks, and tell how large it is."""
    pictures = _pictures(settings.image_dir)
    lines = {"run folder": str(run.path), "pictures": f"{len(pictures):,} in {settings.image_dir}"}
    for feature in settings.features:
        network = load_feature_network(FeatureSpec(feature.network, feature.weights, feature.block))
        lines[f"features: {network.name}"] = f"stride {network.stride}"
    num_masks = len(settings.features) * sum(settings.cluster_counts)
    lines["candidates per picture"] = f"{num_masks}" if settings.features else "none, the mask file is used as it is"
    if settings.dataset_name and settings.benchmark_dir:
        lines["benchmark"] = f"{settings.dataset_name}, {len(_benchmark(settings))} pictures"
    path = settings.pseudo_mask_path or run.path / "pseudo_masks.json"
    network = build_network(settings, list(pictures.values()))
    if path.is_file():
        lines |= describe_training(
            network, make_dataset(settings, path), collate_samples, stages.loop_settings(settings)
        )
    else:
        lines["pseudo-masks"] = f"none yet, they will be made as {path}"
        lines["parameters"] = f"{sum(parameter.numel() for parameter in network.parameters()):,}"
    logger.info("dry run, nothing is written\n%s", "\n".join(f"  {name}: {text}" for name, text in lines.items()))
