"""ReCo's later stages, driven by settings: the segmenter that references make, and label PNGs of a whole split.

Shared by ReCo (`reco.py`) and ReCo+ (`reco_plus.py`). Earlier stages: `reco_references.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from datasets.base import Benchmark
from datasets.build import build_benchmark
from datasets.metadata import prediction_table
from datasets.picture_folder import PictureFolder
from networks.reco import DenseNames, Reco
from pseudo_labels.label_maps import MAX_LABEL
from pseudo_labels.references import References
from retrieval.prompts import load_templates, templates_digest
from systems import reco_places, stages
from systems.reco_labels import LabelFolder, write_pseudo_labels
from systems.reco_predict import CrfRefiner, RecoSegmenter, describe_refiner, make_refiner
from systems.reco_references import RecoNetworks, find_references, index_settings, reference_settings
from training.run_folder import RunFolder
from utils.errors import ConfigError
from utils.settings import RecoSettings
from utils.settings_reco import CRF_FOLDER


def open_split(settings: RecoSettings, split: str, *, with_labels: bool | None) -> Benchmark:
    """A split of the benchmark, checked but for its pixels; `with_labels` None: labels where there are any."""
    categories = None if reco_places.has_table(settings) else reco_places.category_names(settings)
    return build_benchmark(
        settings.dataset_name, settings.benchmark_dir, split, categories=categories, with_labels=with_labels
    )


def open_training_pictures(settings: RecoSettings) -> Benchmark:
    """The pictures that ReCo+ learns from: the benchmark's training split, or the user's own."""
    stages.check_ignore_index(settings, reco_places.label_names(settings))
    if settings.dataset_name is not None:
        return open_split(settings, "train", with_labels=False)
    names = reco_places.label_names(settings)
    if len(names) > MAX_LABEL + 1:
        raise ConfigError(
            f"categories: ReCo+ takes {MAX_LABEL + 1} names at most (its label PNGs hold bytes), received {len(names)}."
        )
    folders = settings.picture_dirs or index_settings(settings).index_dirs
    return PictureFolder(folders, names, shorter_side=settings.picture_shorter_side, ignore_index=settings.ignore_index)


def make_segmenter(
    settings: RecoSettings, networks: RecoNetworks, references: References
) -> tuple[RecoSegmenter, CrfRefiner | None]:
    """ReCo with references and, unless it is switched off, the CRF; finer categories become those that are scored."""
    return segment_with(settings, networks.with_references(references), networks.device)


def segment_with(
    settings: RecoSettings, network: Reco | DenseNames, device: torch.device
) -> tuple[RecoSegmenter, CrfRefiner | None]:
    """A network on the device, and the CRF unless it is switched off; finer categories become those that are scored."""
    scored_as = prediction_table(settings.dataset_name).scored_as if reco_places.has_table(settings) else None
    table = None if scored_as is None else torch.tensor(scored_as, dtype=torch.int64, device=device)
    segmenter = RecoSegmenter(network, device, settings.precision, scored_as=table)
    return segmenter, make_refiner(settings, device, scored_as)


def describe_method(settings: RecoSettings) -> dict[str, Any]:
    """What ReCo's predictions depend on, as entries of a protocol."""
    names, templates = reco_places.category_names(settings), load_templates(settings.prompts)
    around = ", ".join(settings.context_categories) if settings.context_elimination else "none"
    if settings.reference_path is not None:
        made = f"{settings.reference_path.name}"
    else:
        made = f"{settings.num_images} pictures per category, context {around}, seed window {settings.seed_window}"
    return {
        "background": "none: every pixel has a category",
        "prompts": f"{len(templates)} templates for each of {len(names)} names",
        "refiner": describe_refiner(settings),
        "extra": {
            "precision": settings.precision,
            "image encoder": settings.encoder_arch,
            "dense CLIP": settings.dense_clip_arch if settings.dense_clip_inference else "not used",
            "references": made,
        },
    }


def label_split(
    settings: RecoSettings, pictures: Benchmark, networks: RecoNetworks, accepted: Callable[[], None] | None = None
) -> LabelFolder:
    """Label PNGs of a split: made where they are missing, and refused where they were made otherwise.

    Args:
        settings: of ReCo; its folder is `reco_places.run_path(settings)`.
        pictures: to be labelled.
        networks: of the run; only the image encoder is loaded when all PNGs exist.
        accepted: called on all ranks once references and earlier labels are known to fit, before any is made.

    Raises:
        UserError: whatever is wrong with files, pictures or settings.
    """
    path, names = reco_places.run_path(settings), reco_places.category_names(settings)
    folder = LabelFolder(path, pictures, reco_places.label_folders(settings))
    with RunFolder(path).locked():
        references = find_references(settings, names, networks)
        folder.check_record(label_facts(settings, references, pictures, folder.kinds))
        if accepted is not None:
            accepted()
        if folder.is_finished(settings.max_images):
            return folder
        segmenter, refiner = make_segmenter(settings, networks, references)
        write_pseudo_labels(
            folder,
            segmenter,
            refiner,
            device=networks.device,
            batch_size=settings.val_loader.batch_size,
            num_workers=settings.val_loader.num_workers,
            num_pictures=settings.max_images,
            skips_unreadable=isinstance(pictures, PictureFolder),
        )
    return folder


def label_facts(
    settings: RecoSettings, references: References, pictures: Benchmark, kinds: Sequence[str]
) -> dict[str, Any]:
    """Everything that label PNGs depend on, as it is kept beside them; what the CRF adds under `crf`."""
    options = reference_settings(settings)
    templates = templates_digest(options.templates)
    facts = {
        "pictures": [pictures.name, pictures.split, *_own_folders(settings, pictures)],
        "categories": list(references.names),
        "references": references.digest(),
        "encoder": options.encoder,
        "dense_clip_inference": [options.dense_clip, templates] if settings.dense_clip_inference else None,
        "temperature": settings.temperature,
        "precision": settings.precision,
        "image size": pictures.protocol["image size"],
    }
    if CRF_FOLDER in kinds:
        facts["crf"] = settings.crf.constants()
    return facts


def _own_folders(settings: RecoSettings, pictures: Benchmark) -> list[str]:
    """The folders of users' pictures: unlike those of a benchmark, their names do not tell them from others."""
    if isinstance(pictures, PictureFolder):
        return [str(folder) for folder in pictures.folders]
    return [] if reco_places.has_table(settings) else [str(settings.benchmark_dir)]
