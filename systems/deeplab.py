"""A DeepLabv3+ as the segmenter of a system: built, trained, read from files, and run. NamedMask, experts, ReCo+.

The network: `networks/deeplab.py`; the training step: `training/semantic_step.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from evaluation.evaluate import Prediction
from evaluation.pictures import Segmentation
from evaluation.regions import region_results
from networks.checkpoints import read_state_dict
from networks.deeplab import DeepLabV3Plus, build_deeplab, check_backbone_state, deeplab_from_state_dict
from networks.deeplab_prediction import compute_logits, label_pixels, predict_labels
from systems.run_weights import folder_of, stored_state, weight_file
from utils.errors import ConfigError, WeightsError
from utils.images import shrink_to
from utils.log import get_logger
from utils.settings_deeplab import SEGMENTER_PREFIX, DeepLabSettings

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from training.loop_settings import FitResult, LoopSettings
    from training.run_folder import RunFolder
    from training.samplers import MapDataset

logger = get_logger(__name__)
DECISIVE = ("segmenter_name", "optimiser")  # YAML keys that a resumed run has to share with its checkpoint
OBJECT = "object"  # what an expert calls its one class, whatever it was trained for


@dataclass(frozen=True)
class SemanticSegmenter:
    """A trained network: pictures in, label maps out.

    Attributes:
        network: in evaluation mode, on the device.
        device: where it is.
        precision: "fp32", "bf16" or "fp16".
    """

    network: DeepLabV3Plus
    device: torch.device
    precision: str = "fp32"

    def __call__(self, images: Tensor, size: tuple[int, int]) -> list[Prediction]:
        """Label pictures of one size.

        Args:
            images: RGB, uint8, (B, h, w, 3), on the device.
            size: (H, W) of the results.

        Returns:
            One prediction per picture: labels int64 (H, W).
        """
        return [Prediction(labels) for labels in predict_labels(self.network, images, size, precision=self.precision)]


def segmenter_name(network: DeepLabV3Plus) -> str:
    """A network, by the name used in settings."""
    return f"{SEGMENTER_PREFIX}{network.backbone_name}"


def check_batch(batch_size: int, world_size: int, accumulate_steps: int) -> None:
    """Refuse a batch of which a pass of one process would get a single sample, before hours go into other stages.

    Raises:
        ConfigError: if a pass has fewer than two samples, or the batch cannot be shared out evenly.
    """
    from training.samplers import local_batch_size

    parts = world_size * accumulate_steps
    if local_batch_size(batch_size, world_size, accumulate_steps) < 2:
        raise ConfigError(
            f"train_dataloader_kwargs: batch_size {batch_size} leaves one sample for each of {world_size} process(es) "
            f"x {accumulate_steps} accumulation step(s), but batch norm needs two. Use batch_size={2 * parts} or more."
        )


def check_backbone_weights(settings: DeepLabSettings, run: RunFolder, resume: str) -> None:
    """Read what the backbone starts from, and download it, before hours go into other stages.

    A run that goes on with a checkpoint does not need it.

    Raises:
        WeightsError: if it is missing, damaged, or not a backbone's weights.
        ConfigError: if there are no such weights for this backbone.
    """
    from networks.backbone_weights import read_backbone_weights

    if _resumes(run, resume):
        return
    state = read_backbone_weights(settings.backbone_weights, settings.backbone)
    if state is not None:
        check_backbone_state(settings.backbone, state, source=f"{settings.backbone_weights}")


def preview_network(settings: DeepLabSettings, num_classes: int) -> DeepLabV3Plus:
    """For `--dry-run`: the network as its training starts, but for weights that would have to be downloaded."""
    from networks.backbone_weights import needs_download, read_backbone_weights

    weights, initial = settings.backbone_weights, None
    if needs_download(weights):
        logger.info("backbone weights: %s are left for the real run, which downloads what is not here", weights)
    else:
        initial = read_backbone_weights(weights, settings.backbone)
        logger.info("backbone weights: %s", "random values" if weights is None else weights)
    return build_deeplab(settings.backbone, num_classes, initial, source=f"{weights}")


def _resumes(run: RunFolder, resume: str) -> bool:
    """Whether a training goes on with a checkpoint."""
    return resume != "never" and (resume != "auto" or run.checkpoint_path.is_file())


def train_deeplab(
    settings: DeepLabSettings,
    *,
    num_classes: int,
    ignore_index: int,
    dataset: MapDataset,
    collate: Callable[[list[Any]], Any],
    loop: LoopSettings,
    run: RunFolder,
    fabric: Fabric,
    resume: str,
    score: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    selecting_score: str | None = None,
    config: Mapping[str, Any],
    decisive: Mapping[str, Any],
    category_names: Sequence[str],
) -> FitResult:
    """Train a segmenter as NamedMask and ReCo+ do (NamedMask spec 4, ReCo spec 12).

    Args:
        settings: network, initial backbone, optimiser.
        num_classes: labels, background included.
        ignore_index: label without loss.
        dataset: samples with `image` and `semantic`.
        collate: list of samples -> `datasets.batch.TrainingBatch`.
        loop: length, batches, intervals.
        run: the run folder, held.
        fabric: devices.
        resume: "auto", "never", or a checkpoint.
        score: (network, iterations done) -> scores; None: no evaluation.
        selecting_score: score that `select_on: val` goes by.
        config: all settings, kept in the run.
        decisive: settings that a resumed run has to share.
        category_names: kept in the checkpoint.
    """
    from networks.backbone_weights import read_backbone_weights
    from training.loop import fit
    from training.optimizers import deeplab_optimizer
    from training.schedules import PolyLR
    from training.semantic_step import SemanticStep
    from utils.seeds import seed_everything

    # Here and not earlier: which stages had work to do must not change the initial weights.
    seed_everything(loop.seed)
    initial = None if _resumes(run, resume) else read_backbone_weights(settings.backbone_weights, settings.backbone)
    network = build_deeplab(settings.backbone, num_classes, initial, source=f"{settings.backbone_weights}")
    if settings.sync_batch_norm and fabric.world_size > 1 and fabric.device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    options = settings.optimiser
    groups = network.parameter_groups(options.backbone_lr, options.head_lr)
    optimizer = deeplab_optimizer(groups, weight_decay=options.weight_decay)
    schedule = PolyLR(optimizer, loop.num_iterations, power=options.power, min_lr=options.min_lr)
    step = SemanticStep(ignore_index)
    return fit(
        network,
        training_step=step,
        optimizer=optimizer,
        schedule=schedule.rates,
        dataset=dataset,
        collate=collate,
        loop=loop,
        run=run,
        counts=step.counts,
        evaluate=score,
        better=selecting_score if settings.select_on == "val" else None,
        resume=resume,
        config=config,
        settings=decisive,
        category_names=category_names,
        fabric=fabric,
    )


@dataclass(frozen=True)
class StoredDeepLab:
    """A trained network and what was stored with it.

    Attributes:
        network: in evaluation mode, on the CPU.
        category_names: of the run, background first; None for a file on its own.
        source: the file.
    """

    network: DeepLabV3Plus
    category_names: list[str] | None
    source: Path


def read_deeplab(weights: Path, num_classes: int | None = None) -> StoredDeepLab:
    """Load a segmenter strictly; nothing else is built or downloaded.

    Args:
        weights: a run folder (its best weights if it has any, else the final ones, else the checkpoint's), a file in
            a run folder, or a published file.
        num_classes: how many classes there have to be; None: any number.

    Raises:
        WeightsError: missing, damaged, of another network or another number of classes.
    """
    file = weight_file(Path(weights))
    network = deeplab_from_state_dict(read_state_dict(file), num_classes=num_classes, source=str(file))
    return StoredDeepLab(network, stored_state(folder_of(Path(weights))).get("category_names"), file)


def check_stored_names(
    stored: StoredDeepLab, expected: Sequence[str], benchmark: str, *, category: str | None = None
) -> None:
    """Refuse the weights of a run that learnt other categories: their number alone does not tell.

    Args:
        stored: the weights; a file on its own has no names and passes.
        expected: names of the benchmark's labels.
        benchmark: its name.
        category: the one category of a binary benchmark, which has to be among those that the run was for.

    Raises:
        WeightsError: says which name differs.
    """
    names = stored.category_names
    if names is None or names == list(expected) or category in names:
        return
    other = next((pair for pair in zip(names, expected, strict=False) if pair[0] != pair[1]), None)
    raise WeightsError(
        f"{stored.source}: this run learnt other categories than those of {benchmark}: "
        f"{f'{other[0]!r} where the benchmark has {other[1]!r}' if other else f'{names[1:]}'}. "
        "Evaluate it on the benchmark that it was trained for."
    )


@torch.inference_mode()
def segment_picture(
    segmenter: SemanticSegmenter,
    picture: np.ndarray,
    *,
    long_edge: int | None = None,
    classes: Sequence[int] | None = None,
) -> Segmentation:
    """Segment one picture at its own size; connected regions of one category are its instances.

    Args:
        segmenter: the network.
        picture: RGB, uint8, (H, W, 3).
        long_edge: pictures with a longer side are shrunk to it for the network; results keep the picture's size.
        classes: the network's classes to choose between, in the order of the result's labels; None: all.
    """
    small = np.ascontiguousarray(shrink_to(picture, long_edge))
    images = torch.from_numpy(small)[None].to(segmenter.device)
    logits = compute_logits(segmenter.network, images, precision=segmenter.precision)
    if classes is not None:
        logits = logits[:, list(classes)]
    size = picture.shape[:2]
    labels = label_pixels(logits, size)[0]
    certainty = nn.functional.interpolate(logits.softmax(dim=1).amax(dim=1, keepdim=True), size, mode="bilinear")
    label_map = labels.to(torch.int16).cpu().numpy()
    return Segmentation(label_map, region_results(label_map, certainty[0, 0].cpu().numpy()))
