"""ZUTIS: zero-shot unsupervised transfer instance segmentation (Shin, Albanie, Xie; CVPR workshops 2023).

The stages in the order of the paper: names -> retrieved pictures (`stages.build_archive`) -> pseudo-masks
(`stages.build_pseudo_masks`) -> copy-paste samples -> a CLIP encoder with a query decoder, trained for labels and
instances at once -> scores and pictures. Networks: `networks/zutis.py`; loss: `training/losses.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from datasets.base import Benchmark, EvaluationItem
from datasets.batch import TrainingBatch, collate_samples, normalise_images
from datasets.imagenet_s import write_imagenet_s_label
from datasets.index_dataset import IndexDataset
from datasets.metadata import BACKGROUND
from datasets.photometric import PhotometricSettings
from evaluation.evaluate import EvaluationResult, Prediction, evaluate_semantic_and_instances, protocol_of
from evaluation.instances import write_coco_results
from evaluation.pictures import PictureResult, format_table
from evaluation.pictures import segment_pictures as write_pictures
from evaluation.protocol import format_scores, write_results
from networks.zutis import Zutis
from systems import stages
from systems.zutis_report import EvaluationPictures, write_training_report
from systems.zutis_segmenter import Segmenter, segment_picture
from systems.zutis_weights import StoredSegmenter, build_from_clip, read_segmenter, text_embeddings
from training.describe import describe_training
from training.launch import make_fabric
from training.loop import fit
from training.loop_settings import FitResult, Step
from training.losses import zutis_criterion
from training.optimizers import zutis_optimizer
from training.run_folder import RunFolder
from training.schedules import PolyLR
from utils.device import select_device
from utils.distributed import is_main
from utils.drawing import palette
from utils.errors import ConfigError, UserError
from utils.log import get_logger
from utils.naming import architecture_name, experiment_name
from utils.seeds import seed_everything
from utils.settings import ZutisSettings, yaml_values

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
    archive, masks = stages.build_pseudo_masks(settings, archive, run)
    # Here and not earlier: which stages had work to do must not change the initial weights.
    seed_everything(settings.seed)
    network, text = build_from_clip(settings, names)
    text = text.to(fabric.device)
    optimizer, options = make_optimizer(network, settings), settings.optimiser
    schedule = PolyLR(optimizer, settings.num_iterations, power=options.power, min_lr=options.min_lr)
    result = fit(
        network,
        training_step=ZutisStep(text, settings.ignore_index, settings.weight_ce_loss),
        optimizer=optimizer,
        schedule=schedule.rates,
        dataset=training_samples(settings, names, archive, masks),
        collate=collate_samples,
        loop=stages.loop_settings(settings),
        run=run,
        counts=lambda batch: (batch.semantic != settings.ignore_index).sum()[None],
        evaluate=None if benchmark is None else _Evaluation(settings, names, text, benchmark, run),
        better=None if benchmark is None or not benchmark.has_labels else "mean_iou",
        resume=resume,
        config=yaml_values(settings),
        settings={"categories": names, **{key: yaml_values(settings)[key] for key in DECISIVE}},
        category_names=names,
        extra_state={"text_embeddings": text.cpu(), "network": network.settings},
        fabric=fabric,
    )
    _tell_result(result, run)
    if is_main():
        write_training_report(settings, names, run, archive, masks)


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
    return benchmark_path(settings) / experiment


def benchmark_path(settings: ZutisSettings) -> Path:
    """Folder of all runs on a benchmark; `custom` without one."""
    if settings.dataset_name is None:
        return settings.output_dir / "custom"
    number = settings.num_categories if settings.dataset_name == "imagenet-s" else None
    return settings.output_dir / f"{settings.dataset_name}{number or ''}" / settings.split


def training_samples(
    settings: ZutisSettings, names: Sequence[str], archive: stages.Archive, masks: stages.MaskStore
) -> IndexDataset:
    """Copy-paste samples of the retrieved pictures."""
    return IndexDataset(
        archive,
        categories=list(names[1:]),
        mask_path=masks.path,
        read_mask=stages.read_mask,
        image_size=settings.train_image_size,
        scale_range=settings.scale_range,
        ignore_index=settings.ignore_index,
        random_duplicate=settings.random_duplicate,
        max_num_objects=settings.max_objects,
        photometric=PhotometricSettings(**settings.photometric.model_dump()),
        label_rule=settings.label_rule,
        fast_decode=settings.fast_decode,
        seed=settings.seed,
    )


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
    network, _ = build_from_clip(settings, names)
    if archive is None:
        logger.info("retrieval, pseudo-masks and a batch are left for the real run: nothing is retrieved yet")
        return
    store = stages.MaskStore(tuple(settings.index_dirs), settings.pseudo_mask_dir)
    images = {path for paths in archive.values() for path in paths}
    num_missing = sum(not store.path(path).is_file() for path in images)
    logger.info("image archive: %d images, pseudo-masks to make: %d", len(images), num_missing)
    if num_missing == 0:
        samples = training_samples(settings, names, archive, store)
        for name, text in describe_training(network, samples, collate_samples, stages.loop_settings(settings)).items():
            logger.info("%s: %s", name, text)


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
    fabric = make_fabric(settings.device, settings.precision)
    benchmark = stages.open_benchmark(settings, names)
    stored = read_segmenter(weights, settings)
    text = text_embeddings(settings, names, stored)
    segmenter = Segmenter(stored.network.to(fabric.device), text.to(fabric.device), settings.nms, settings.precision)
    folder = RunFolder(evaluation_path(settings, weights))
    pictures = EvaluationPictures(folder.pictures_dir, benchmark)
    export = None if benchmark.has_labels or benchmark.name != "imagenet-s" else folder.path / "labels"

    def visit(item: EvaluationItem, prediction: Prediction) -> None:
        pictures.add(item, prediction)
        if export is not None:
            write_imagenet_s_label(benchmark.export_path(export, item.path), prediction.labels.cpu().numpy())

    result = score(settings, segmenter, benchmark, visit=visit)
    if is_main():
        _report_evaluation(settings, result, folder, export)
    return result


def score(settings: ZutisSettings, segmenter: Segmenter, benchmark: Benchmark, **options: Any) -> EvaluationResult:
    """Run a segmenter over a benchmark; `options` are those of `evaluate_semantic_and_instances`."""
    with_instances = benchmark.annotations_path is not None
    protocol = protocol_of(
        benchmark,
        prompts="bare category names",
        suppression=(settings.nms or "none") if with_instances else None,
        extra={"precision": settings.precision, "encoder": settings.clip_arch},
    )
    return evaluate_semantic_and_instances(
        lambda images, size: segmenter(images, size, with_instances=with_instances),
        benchmark,
        device=segmenter.text.device,
        protocol=protocol,
        with_instances=with_instances,
        class_agnostic=with_instances,
        max_images=settings.max_images,
        batch_size=settings.val_loader.batch_size,
        num_workers=settings.val_loader.num_workers,
        **options,
    )


def evaluation_path(settings: ZutisSettings, weights: Path) -> Path:
    """Folder of an evaluation, beside the runs of the benchmark: it never touches the folder of a training run."""
    stem = weights.name if weights.is_dir() else weights.stem
    if weights.is_file() and (weights.parent / "config.yaml").is_file():
        stem = f"{weights.parent.name}_{stem}"
    nms = "" if settings.nms == "hard" else f"_nms_{settings.nms or 'none'}"
    return benchmark_path(settings) / f"evaluation_{stem}_{architecture_name(settings.clip_arch)}{nms}"


def _report_evaluation(
    settings: ZutisSettings, result: EvaluationResult, folder: RunFolder, export: Path | None
) -> None:
    """Print scores with their protocol and write them down."""
    class_iou = None if result.semantic is None else result.semantic.class_iou
    folder.write_config(yaml_values(settings))
    write_results(
        folder.path / "results.json",
        result.scores(),
        result.protocol,
        class_iou=class_iou,
        extra={"seconds": result.seconds},
    )
    if result.coco is not None:
        write_coco_results(folder.path / "instances.json", result.records)
    if export is not None:
        logger.info("this split has no public labels: label PNGs for the benchmark's server are in %s", export)
    logger.info("scores in %%\n%s", format_scores(result.scores(), result.protocol, class_iou=class_iou, num_classes=5))
    logger.info("results: %s", folder.path / "results.json")


@dataclass(frozen=True)
class _Evaluation:
    """The evaluation inside training: the network as it is, on the whole benchmark, with pictures."""

    settings: ZutisSettings
    names: Sequence[str]
    text: Tensor
    benchmark: Benchmark
    run: RunFolder

    def __call__(self, network: Zutis, iteration: int) -> Mapping[str, float]:
        """Scores as fractions."""
        pictures = EvaluationPictures(self.run.pictures_dir / f"{iteration:06d}", self.benchmark)
        segmenter = Segmenter(network, self.text, self.settings.nms, self.settings.precision)
        result = score(self.settings, segmenter, self.benchmark, visit=pictures.add)
        if is_main():
            class_iou = None if result.semantic is None else result.semantic.class_iou
            write_results(
                self.run.path / "results.json",
                result.scores(),
                result.protocol,
                class_iou=class_iou,
                extra={"iteration": iteration},
            )
            logger.info("iteration %d\n%s", iteration, format_scores(result.scores(), result.protocol))
        return result.scores()


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
    results = write_pictures(
        images,
        lambda picture: segment_picture(segmenter, picture, long_edge=settings.picture_long_edge),
        category_names=names,
        palette=palette(len(names)),
        output_dir=output_dir,
    )
    logger.info("%d pictures:\n%s\nresults: %s", len(results), format_table(results), output_dir)
    return results


def _names_to_find(categories: Sequence[str] | None, stored: StoredSegmenter) -> list[str]:
    """Background and the names to find; the run's own if none are given."""
    if categories is None:
        names = stored.category_names or stages.category_names(stored.settings)
        if not names:
            raise UserError("these weights come without category names: say what to find, --categories cat,dog")
        return list(names)
    cleaned = [name.strip() for name in categories]
    if not all(cleaned):
        raise ConfigError(f"--categories: expected names with commas between them, but one is empty: {categories}")
    twice = sorted({name for name in cleaned if cleaned.count(name) > 1})
    if twice:
        raise ConfigError(f"--categories: given more than once: {', '.join(map(repr, twice))}")
    return [BACKGROUND, *(name for name in cleaned if name != BACKGROUND)]
