"""ZUTIS: zero-shot unsupervised transfer instance segmentation (Shin, Albanie, Xie; CVPR workshops 2023).

The stages in the order of the paper: names -> retrieved pictures (`stages.build_archive`) -> pseudo-masks
(`stages.build_pseudo_masks`) -> copy-paste samples -> a CLIP encoder with a query decoder, trained for labels and
instances at once -> scores and pictures. Networks: `networks/zutis.py`; loss: `training/losses.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datasets.base import Benchmark
from datasets.batch import TrainingBatch, collate_samples, normalise_images
from datasets.metadata import BACKGROUND
from evaluation.evaluate import EvaluationResult
from evaluation.pictures import PictureResult
from evaluation.pictures import segment_pictures as write_pictures
from networks.zutis import Zutis
from systems import scoring, stages
from systems.baselines import DenseClip
from systems.run_report import write_training_report
from systems.run_weights import check_names_to_find
from systems.zutis_segmenter import Segmenter, segment_picture
from systems.zutis_weights import StoredSegmenter, build_from_clip, read_segmenter, text_embeddings
from training.launch import evaluation_device, make_fabric
from training.loop import fit
from training.loop_settings import FitResult, Step
from training.losses import zutis_criterion
from training.optimizers import zutis_optimizer
from training.run_folder import RunFolder
from training.schedules import PolyLR
from utils.device import select_device
from utils.distributed import is_main
from utils.drawing import palette
from utils.errors import UserError
from utils.log import get_logger
from utils.naming import architecture_name, experiment_name
from utils.seeds import seed_everything
from utils.settings import ZutisSettings, yaml_values

if TYPE_CHECKING:
    from lightning.fabric import Fabric

logger = get_logger(__name__)
DECISIVE = (  # YAML keys that a resumed run has to share with its checkpoint
    *("clip_arch", "stop_gradient", "frozen_bn", "ignore_index", "n_images", "train_image_size", "scale_range"),
    *("random_duplicate", "max_objects", "photometric", "label_rule", "fast_decode", "weight_ce_loss", "optimiser"),
)


# ---- training -------------------------------------------------------------------------------------------------------


def train(settings: ZutisSettings, *, resume: str = "auto", dry_run: bool = False) -> RunFolder:
    """Go from names and unlabelled pictures to a segmenter; complete stages are skipped, cut-off ones go on.

    Args:
        settings: of the run, validated for the task "train".
        resume: "auto", "never", or a checkpoint to go on from.
        dry_run: check, build, read one batch, report, and write nothing.

    Returns:
        The run folder.

    Raises:
        UserError: whatever is wrong with settings, files or pictures.
    """
    names = stages.category_names(settings)
    stages.check_ignore_index(settings, names)
    run = RunFolder(run_path(settings))
    if dry_run:
        _describe(settings, names, run)
        return run
    fabric = make_fabric(settings.device, settings.precision)
    with run.locked():
        _train(settings, names, run, fabric, resume)
    return run


def _train(settings: ZutisSettings, names: Sequence[str], run: RunFolder, fabric: Fabric, resume: str) -> None:
    """The stages, in a run folder that is held."""
    benchmark = stages.open_benchmark(settings, names) if settings.evaluates_in_training else None
    archive = stages.build_archive(settings, names, run)
    if not settings.goes_on_after("retrieval"):
        return
    archive, masks = stages.build_pseudo_masks(settings, archive, run)
    if not settings.goes_on_after("pseudo_masks"):
        return
    # Here and not earlier: which stages had work to do must not change the initial weights.
    seed_everything(settings.seed)
    network, text = build_from_clip(settings, names)
    text = text.to(fabric.device)
    optimizer, options = make_optimizer(network, settings), settings.optimiser
    schedule = PolyLR(optimizer, settings.num_iterations, power=options.power, min_lr=options.min_lr)

    def score_network(network: Zutis, visit: scoring.Visit) -> EvaluationResult:
        return score(settings, Segmenter(network, text, settings.nms, settings.precision), benchmark, visit=visit)

    result = fit(
        network,
        training_step=ZutisStep(text, settings.ignore_index, settings.weight_ce_loss),
        optimizer=optimizer,
        schedule=schedule.rates,
        dataset=stages.training_samples(settings, names, archive, masks),
        collate=collate_samples,
        loop=stages.loop_settings(settings),
        run=run,
        counts=lambda batch: (batch.semantic != settings.ignore_index).sum()[None],
        evaluate=None if benchmark is None else scoring.TrainingEvaluation(score_network, benchmark, run),
        better=scoring.selecting_score(benchmark),
        resume=resume,
        config=yaml_values(settings),
        settings={"categories": names, **{key: yaml_values(settings)[key] for key in DECISIVE}},
        category_names=names,
        extra_state={"text_embeddings": text.cpu(), "network": network.settings},
        fabric=fabric,
    )
    _tell_result(result, run)
    if is_main():
        write_training_report(run, archive, {"SelfMask": masks.read}, **report_heading(settings, names))


@dataclass(frozen=True)
class ZutisStep:
    """One training step: batch -> losses (paper, section 3.3).

    Attributes:
        text: unit text embeddings, background first, (N, D), on the device.
        ignore_index: label that the cross-entropy leaves out.
        weight_ce: weight of the cross-entropy beside the mask loss.
    """

    text: Tensor
    ignore_index: int
    weight_ce: float

    def __call__(self, network: torch.nn.Module, batch: TrainingBatch, step: Step) -> dict[str, Tensor]:
        """Losses of a batch on the device; "loss" is minimised."""
        output = network(normalise_images(batch.images))
        losses = zutis_criterion(
            output.mask_proposals,
            output.patch_tokens,
            self.text,
            batch.instance_masks,
            batch.semantic,
            ignore_index=self.ignore_index,
            weight_ce=self.weight_ce,
            num_pixels=step.mean_counts,
        )
        return {"loss": losses.loss, "mask_loss": losses.mask_loss, "ce_loss": losses.ce_loss}


def run_path(settings: ZutisSettings) -> Path:
    """Folder of a run: `<output_dir>/<benchmark>/<split>/<experiment>`, or `<output_dir>/<name>` if it has a name."""
    if settings.name is not None:
        return settings.output_dir / settings.name
    experiment = experiment_name(
        clip_arch=settings.clip_arch,
        index_dirs=settings.index_dirs,
        num_images=settings.num_images,
        scale_range=settings.scale_range,
        random_duplicate=settings.random_duplicate,
        stop_gradient=settings.stop_gradient,
        frozen_bn=settings.frozen_bn,
        suffix=settings.suffix or "",
        seed=settings.seed,
    )
    return scoring.benchmark_path(settings) / experiment


def report_heading(settings: ZutisSettings, names: Sequence[str]) -> dict[str, str]:
    """Title and subtitle of a run's report."""
    return {
        "title": f"ZUTIS: {settings.dataset_name or 'your own categories'}",
        "subtitle": f"{len(names) - 1} categories, {settings.clip_arch}, {settings.num_iterations} iterations",
    }


def make_optimizer(network: Zutis, settings: ZutisSettings) -> torch.optim.Optimizer:
    """AdamW with the published groups; weight decay on everything."""
    options = settings.optimiser
    groups = network.parameter_groups(options.encoder_lr, options.decoder_lr)
    return zutis_optimizer(groups, weight_decay=options.weight_decay)


def _describe(settings: ZutisSettings, names: Sequence[str], run: RunFolder) -> None:
    """What `--dry-run` reports."""
    logger.info("run folder: %s", run.path)
    logger.info("%d categories with background: %s", len(names), ", ".join(names[:8]) + (", ..." if names[8:] else ""))
    if settings.evaluates_in_training:
        logger.info("benchmark: %s", stages.open_benchmark(settings, names).protocol["benchmark"])
    archive = stages.preview_archive(settings, names, run)
    if archive is None:
        stages.describe_index(settings, run)
    network, _ = build_from_clip(settings, names)
    if archive is None:
        logger.info("retrieval, pseudo-masks and a batch are left for the real run: nothing is retrieved yet")
        return
    store = stages.mask_store(settings)
    images = {path for paths in archive.values() for path in paths}
    num_missing = sum(not store.path(path).is_file() for path in images)
    logger.info("image archive: %d images, pseudo-masks to make: %d", len(images), num_missing)
    if num_missing == 0:
        samples = stages.training_samples(settings, names, archive, store)
        stages.describe_samples(settings, network, samples)


def _tell_result(result: FitResult, run: RunFolder) -> None:
    best = "" if result.best["value"] is None else f", best mIoU {100 * result.best['value']:.1f} %"
    logger.info("trained for %d iterations%s: %s", result.iteration, best, run.path)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(settings: ZutisSettings, weights: Path) -> EvaluationResult:
    """Score weights on the benchmark of the settings; scores, protocol and instances go to a folder of their own.

    Args:
        settings: validated for the task "evaluate".
        weights: a published file, a run folder, or a file in one.

    Returns:
        Everything measured. ImageNet-S test has no labels: its predictions are exported as label PNGs instead.
    """
    names = stages.category_names(settings)
    device = evaluation_device(settings.device, settings.precision)
    benchmark = stages.open_benchmark(settings, names)
    stored = read_segmenter(weights, settings)
    text = text_embeddings(settings, names, stored)
    segmenter = Segmenter(stored.network.to(device), text.to(device), settings.nms, settings.precision)
    folder = RunFolder(evaluation_path(settings, weights))
    return scoring.evaluate_weights(
        settings, benchmark, folder, lambda visit: score(settings, segmenter, benchmark, visit=visit)
    )


def score(
    settings: ZutisSettings,
    segmenter: Segmenter | DenseClip,
    benchmark: Benchmark,
    *,
    visit: scoring.Visit | None = None,
) -> EvaluationResult:
    """Run a segmenter over a benchmark, with instances where the benchmark has annotations of them."""
    with_instances = benchmark.annotations_path is not None
    protocol = {
        "prompts": "bare category names",
        "suppression": (settings.nms or "none") if with_instances else None,
        "extra": {"precision": settings.precision, "encoder": settings.clip_arch},
    }
    return scoring.score(
        settings,
        partial(segmenter, with_instances=with_instances),
        benchmark,
        device=segmenter.text.device,
        with_instances=with_instances,
        protocol=protocol,
        visit=visit,
    )


def evaluation_path(settings: ZutisSettings, weights: Path) -> Path:
    """Folder of an evaluation."""
    nms = "" if settings.nms == "hard" else f"nms_{settings.nms or 'none'}"
    return scoring.evaluation_path(settings, weights, architecture_name(settings.clip_arch), nms)


# ---- users' pictures ------------------------------------------------------------------------------------------------


def segment_pictures(
    weights: Path,
    images: Sequence[str | Path],
    *,
    categories: Sequence[str] | None,
    output_dir: Path,
    settings: ZutisSettings | None = None,
    overrides: Sequence[str] = (),
) -> list[PictureResult]:
    """Segment pictures by name: label PNGs, overlays, COCO JSON and a table.

    Args:
        weights: a run folder, a file in one, or a published file.
        images: folders, files or globs.
        categories: names to find; None: those of the run (or of the settings).
        output_dir: where results go.
        settings: for files that do not lie in a run folder; a run's own settings are read from it.
        overrides: `key=value` words on top of a run's settings.

    Raises:
        UserError: unreadable weights or pictures, or names that nobody told.
    """
    stored = read_segmenter(weights, settings, overrides)
    settings = stored.settings
    names = _names_to_find(categories, stored)
    device = select_device(settings.device)
    text = text_embeddings(settings, names, stored).to(device)
    segmenter = Segmenter(stored.network.to(device), text, settings.nms, settings.precision)
    logger.info("segmenting by %d names on %s", len(names) - 1, device)
    return write_pictures(
        images,
        partial(map, partial(segment_picture, segmenter, long_edge=settings.picture_long_edge)),
        category_names=names,
        palette=palette(len(names)),
        output_dir=output_dir,
    )


def _names_to_find(categories: Sequence[str] | None, stored: StoredSegmenter) -> list[str]:
    """Background and the names to find; the run's own if none are given."""
    if categories is None:
        names = stored.category_names or stages.category_names(stored.settings)
        if not names:
            raise UserError("these weights come without category names: say what to find, --categories cat,dog")
        return list(names)
    return [BACKGROUND, *(name for name in check_names_to_find(categories) if name != BACKGROUND)]
