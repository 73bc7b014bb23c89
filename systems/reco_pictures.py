"""ReCo and ReCo+ on users' own pictures: which names, which network, and the files that are left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from datasets.metadata import BACKGROUND, benchmark_table
from evaluation.pictures import PictureResult
from evaluation.pictures import segment_pictures as write_pictures
from pseudo_labels.references import check_width, holds_references, in_order, read_references
from systems import reco_places
from systems.deeplab import StoredDeepLab, read_deeplab
from systems.reco_predict import PixelSegmenter, RecoPlusSegmenter, RecoSegmenter, make_refiner, segment_stream
from systems.reco_references import RecoNetworks, reference_settings
from systems.reco_weights import reference_file, references_in
from systems.run_weights import check_names_to_find, folder_of, has_weights, with_nearest
from utils.config import load_settings, settings_from_dict
from utils.device import select_device
from utils.drawing import palette
from utils.errors import ConfigError, DataError, WeightsError
from utils.log import get_logger
from utils.settings import RecoSettings

logger = get_logger(__name__)
_NUM_CLASSES = {27: ("cityscapes", "coco_stuff"), 19: ("kitti_step",), 59: ("pascal_context",)}
# What a run lacks of a name, and what to do.
_WITHOUT_REFERENCE = (
    "has no reference of",
    "Run train.py with these names first: ReCo itself needs no training, only pictures to retrieve from.",
)
_NOT_TRAINED = (
    "was not trained for",
    "Train one for these names (train.py), or use ReCo itself (method=reco), which needs pictures alone, no training.",
)


def segment_pictures(
    weights: Path,
    images: Sequence[str | Path],
    *,
    categories: Sequence[str] | None,
    output_dir: Path,
    settings: RecoSettings | None = None,
    overrides: Sequence[str] = (),
) -> list[PictureResult]:
    """Segment pictures; see `systems.reco.segment_pictures`."""
    weights = Path(weights)
    settings = settings or own_settings(weights, overrides)
    device = select_device(settings.device)
    segmenter, names = _make_segmenter(settings, weights, categories, device)
    reco_places.warn_of_one_name(names)
    refiner = make_refiner(settings, device)
    with_crf = "" if refiner is None else ", with the CRF (crf=off is faster)"
    logger.info("segmenting by %d names on %s%s", len(names), device, with_crf)
    return write_pictures(
        images,
        partial(segment_stream, segmenter, refiner, long_edge=settings.picture_long_edge),
        category_names=[BACKGROUND, *names],  # labels count from 1, as those of all systems
        palette=palette(len(names) + 1),
        output_dir=output_dir,
    )


def _make_segmenter(
    settings: RecoSettings, weights: Path, categories: Sequence[str] | None, device: torch.device
) -> tuple[PixelSegmenter, list[str]]:
    """The network of the settings' method, and the names that it chooses between."""
    if not settings.uses_references:
        from systems.reco_dense_clip import make_network

        if not weights.is_dir():
            raise WeightsError(
                f"{weights}: dense CLIP alone (method: dense_clip) has no weights but CLIP's own. Give the folder of "
                "one of its runs."
            )
        names = reco_places.category_names(settings) if categories is None else check_names_to_find(categories)
        return RecoSegmenter(make_network(settings, names, device), device, settings.precision), list(names)
    path = reference_file(weights, trains=settings.trains)
    if path is None:
        return _trained(settings, weights, categories, device)
    return _with_references(settings, path, categories, device)


def own_settings(weights: Path, overrides: Sequence[str]) -> RecoSettings:
    """Settings of the run folder, or the plainest ones for a file on its own.

    Raises:
        DataError: a file on its own whose categories cannot be told.
    """
    config = folder_of(weights).config_path
    if config.is_file():
        settings = load_settings(config, overrides)
        return _as_far_as_it_came(settings, weights) if weights.is_dir() else settings
    values: dict[str, object] = {"system": "reco"}
    told = any(word.split("=")[0] in ("dataset_name", "categories") for word in overrides)
    if holds_references(weights):
        if not told:
            values["categories"] = list(read_references(weights).names)
    else:
        values["method"] = "reco_plus"
        if not told:
            values["dataset_name"] = _benchmark_of(read_deeplab(weights))
    return settings_from_dict(values, source=str(weights), overrides=overrides)


def _as_far_as_it_came(settings: RecoSettings, folder: Path) -> RecoSettings:
    """The settings of a run; those of its ReCo for a run of ReCo+ that has references but no weights yet."""
    if not settings.trains or has_weights(folder) or references_in(folder) is None:
        return settings
    logger.warning(
        "%s: this run of ReCo+ has no weights yet; its references segment the pictures, as ReCo itself does "
        "(train.py with the same config goes on with it)",
        folder,
    )
    return settings.model_copy(update={"method": "reco"})


def _benchmark_of(stored: StoredDeepLab) -> str:
    """The benchmark that the number of classes tells."""
    count = stored.network.num_classes
    names = _NUM_CLASSES.get(count, ())
    if len(names) == 1:
        return names[0]
    several = f" ({' and '.join(names)} both have {count})" if names else ""
    raise DataError(
        f"{stored.source}: the names of its {count} classes cannot be told from the file{several}. Say which: "
        f"{', '.join(f'dataset_name={name}' for name in names) or 'dataset_name=...'}, or categories=[...] in the "
        "order of training."
    )


def _with_references(
    settings: RecoSettings, path: Path, categories: Sequence[str] | None, device: torch.device
) -> tuple[PixelSegmenter, list[str]]:
    """ReCo with the references of the wanted names."""
    networks = RecoNetworks(settings, device)
    known = read_references(path, settings=reference_settings(settings), for_prediction=True)
    if categories is None:
        names = reco_places.category_names(settings)
    else:
        names = _known_names(categories, list(known.names), *_WITHOUT_REFERENCE)
    references = in_order(known, names, path, tells_extra=False)
    check_width(references, networks.encoder.width, path)
    return RecoSegmenter(networks.with_references(references), device, settings.precision), names


def _trained(
    settings: RecoSettings, weights: Path, categories: Sequence[str] | None, device: torch.device
) -> tuple[PixelSegmenter, list[str]]:
    """ReCo+'s network, which chooses between the wanted names."""
    stored = read_deeplab(weights)
    known = stored.category_names or reco_places.label_names(settings)
    if reco_places.has_table(settings) and stored.category_names is None:
        known = settings.categories or list(benchmark_table(settings.dataset_name).names)
    if len(known) != stored.network.num_classes:
        raise WeightsError(
            f"{stored.source}: these weights have {stored.network.num_classes} classes, but the settings name "
            f"{len(known)}. Set dataset_name or categories to what they were trained for."
        )
    names = known if categories is None else _known_names(categories, known, *_NOT_TRAINED)
    classes = None if names == known else [known.index(name) for name in names]
    return RecoPlusSegmenter(stored.network.to(device), device, settings.precision, classes=classes), names


def _known_names(categories: Sequence[str], known: Sequence[str], lacks: str, advice: str) -> list[str]:
    """The names to find; ConfigError unless all of them are known."""
    names = check_names_to_find(categories)
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise ConfigError(f"--categories: this run {lacks} {with_nearest(unknown, known)}; it knows {shown}. {advice}")
    return names
