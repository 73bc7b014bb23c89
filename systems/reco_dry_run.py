"""What `--dry-run` does for ReCo, ReCo+ and dense CLIP: check, build, read, tell; nothing is written or downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from networks.patch_encoders import needs_download
from pseudo_labels.reference_building import needed_categories
from pseudo_labels.references import check_width, in_order
from systems import reco_places, stages
from systems.reco_labels import LabelFolder
from systems.reco_references import RecoNetworks, index_settings, known_references, reference_settings
from systems.reco_stages import open_split, open_training_pictures
from training.run_folder import RunFolder
from utils.log import get_logger
from utils.settings import RecoSettings

logger = get_logger(__name__)


def describe(settings: RecoSettings, names: Sequence[str], run: RunFolder) -> None:
    """Go through a run as far as that is possible without writing.

    Args:
        settings: of the run.
        names: of its labels.
        run: its folder, which need not exist.

    Raises:
        UserError: whatever is wrong with settings, files or pictures.
    """
    logger.info("run folder: %s", run.path)
    logger.info("%d categories: %s", len(names), ", ".join(names[:8]) + (", ..." if names[8:] else ""))
    if settings.benchmark_dir is not None and settings.dataset_name is not None:
        _describe_benchmark(settings)
    if not (settings.trains and settings.pseudo_label_dir is not None):  # given label PNGs stand for all of ReCo
        networks = RecoNetworks(settings, torch.device("cpu"))
        _describe_networks(settings, networks)
        if settings.uses_references:
            _describe_references(settings, networks)
    if settings.trains:
        _describe_training(settings, names)


def _describe_benchmark(settings: RecoSettings) -> None:
    """Pair its files, and read the first picture and its label."""
    has_truth = None if settings.writes_pseudo_labels and not settings.trains else True
    benchmark = open_split(settings, settings.split, with_labels=has_truth)
    logger.info("benchmark: %s", benchmark.protocol["benchmark"])
    item = benchmark[0]
    truth = "without labels" if item.label is None else "with labels"
    logger.info("first picture: %s, %d x %d pixels for the network, %s", item.path, *item.image.shape[:2], truth)


def _describe_networks(settings: RecoSettings, networks: RecoNetworks) -> None:
    """Build ReCo's networks, those whose weights are here."""
    if settings.uses_references and _is_here("image encoder", settings.encoder_arch, settings.encoder_weights):
        encoder = networks.encoder
        logger.info("image encoder: %d channels every %d pixels", encoder.width, encoder.patch_size)
    sharpens = settings.dense_clip_inference or not settings.uses_references
    if sharpens and _is_here("dense CLIP", settings.dense_clip_arch):
        logger.info("dense CLIP: %d channels every %d pixels", networks.tower.width, networks.tower.stride)


def _is_here(what: str, name: str, weights: Path | None = None) -> bool:
    """Whether a network can be built without a download; says so if not."""
    if needs_download(name, weights):
        logger.info("%s: %s is left for the real run, which downloads its weights", what, name)
        return False
    return True


def _describe_references(settings: RecoSettings, networks: RecoNetworks) -> None:
    """Read references, if there are any already; whether they fit the encoder is checked where its weights are here."""
    names, options = reco_places.category_names(settings), reference_settings(settings)
    path = settings.reference_path or reco_places.reference_cache(settings)
    known = known_references(settings)
    missing = [] if settings.reference_path is not None else needed_categories(names, options)
    missing = [name for name in missing if known is None or name not in known.by_name()]
    if known is not None and not needs_download(settings.encoder_arch, settings.encoder_weights):
        check_width(known, networks.encoder.width, path)
    if missing:
        stages.describe_index(index_settings(settings), RunFolder(reco_places.shared_path(settings)))
        logger.info("references to compute: %d", len(missing))
    else:
        in_order(known, names, path)
        logger.info("references: %s", path)


def _describe_training(settings: RecoSettings, names: Sequence[str]) -> None:
    """ReCo+: pair pictures and label PNGs, build the segmenter, and read a batch, as far as there are label PNGs."""
    from systems import reco_plus
    from systems.deeplab import preview_network

    network = preview_network(settings, len(names)) if settings.goes_on_after("prediction") else None
    pictures, label_dir = open_training_pictures(settings), settings.pseudo_label_dir
    logger.info("pictures to learn from: %d", len(pictures))
    left_out: list[Path] = []
    if label_dir is None:
        reco = reco_plus.reco_of(settings)
        folder = LabelFolder(reco_places.run_path(reco), pictures, reco_places.label_folders(reco))
        label_dir, left_out = folder.path / reco_places.training_labels(settings), folder.refused()
        if not folder.is_finished():
            logger.info("label PNGs and a batch are left for the real run: not all pictures are labelled yet")
            return
    samples = reco_plus.training_set(settings, pictures, label_dir, left_out)
    samples.check_sizes()
    if network is not None:
        stages.describe_samples(settings, network, samples)
