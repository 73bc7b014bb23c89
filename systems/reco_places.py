"""ReCo's names and folders: which categories a run has, and where it leaves what.

<dir_ckpt>/<benchmark>/<split>/reco/<what references are made of>/k050    ReCo's results, as in the release
<dir_ckpt>/<benchmark>                                                    retrieval and references of all splits
<dir_ckpt>/<benchmark>/val/reco_plus/<segmenter>                          runs of ReCo+
<dir_ckpt>/<benchmark>/<split>/dense_clip/<CLIP>                          scores of dense CLIP alone
<dir_ckpt>/<name>                                                         everything of a run that has a name
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.metadata import BACKGROUND, benchmark_table, prediction_table
from systems import scoring
from utils.errors import ConfigError
from utils.log import get_logger
from utils.naming_reco import encoder_name, reco_folder, reference_file_name, reference_name
from utils.settings import RecoSettings
from utils.settings_reco import CRF_FOLDER, PLAIN_FOLDER

logger = get_logger(__name__)
CUSTOM = "custom"
COCO_LAYOUT = "coco_layout"


def category_names(settings: RecoSettings) -> list[str]:
    """Names that ReCo looks for, in label order: the prompts.

    They are the benchmark's own (the 171 of COCO-Stuff) unless `categories` gives other words for them.

    Raises:
        ConfigError: another number of names than the benchmark has labels, background among them, or no names.
    """
    table = list(prediction_table(settings.dataset_name).names) if has_table(settings) else None
    names = settings.categories
    if names is None:
        if table is None:
            raise ConfigError("categories: not set; expected the names of what fills the pictures, in label order.")
        return table
    if BACKGROUND in names:
        raise ConfigError(
            f"categories: ReCo gives every pixel one of the names and knows no {BACKGROUND!r}. Name what there is "
            "besides (wall, sky, grass, road), and leave it out."
        )
    if table is not None and len(names) != len(table):
        raise ConfigError(
            f"categories: {len(names)} names for the {len(table)} labels of {settings.dataset_name}. Leave "
            "'categories' out, or give one name for each label, in the benchmark's order."
        )
    return names


def has_table(settings: RecoSettings) -> bool:
    """Whether the benchmark has a fixed list of names."""
    return settings.dataset_name not in (None, COCO_LAYOUT)


def label_names(settings: RecoSettings) -> list[str]:
    """Names of the labels that are scored and trained: the benchmark's (27 of COCO-Stuff), else the categories."""
    return list(benchmark_table(settings.dataset_name).names) if has_table(settings) else category_names(settings)


def warn_of_one_name(names: Sequence[str]) -> None:
    """Say that with one name there is nothing to choose between."""
    if len(names) == 1:
        logger.warning(
            "categories: %r alone is every pixel of every picture, because ReCo gives each one of the names. Name what "
            "there is besides (wall, sky, grass, road)",
            names[0],
        )


def base_name(settings: RecoSettings) -> str:
    """What references are called after, as in the release."""
    return reference_name(
        encoder_arch=settings.encoder_arch,
        imagenet_split=settings.imagenet_split or "train",
        context_elimination=settings.context_elimination,
        text_attention=settings.text_attention,
        suffix=settings.suffix or "",
    )


def shared_path(settings: RecoSettings) -> Path:
    """Folder of retrieval and references."""
    return settings.output_dir / (settings.name or settings.dataset_name or CUSTOM)


def reference_cache(settings: RecoSettings) -> Path:
    """File of the references that a run computes."""
    if settings.name is not None:
        return shared_path(settings) / "references.safetensors"
    return shared_path(settings) / reference_file_name(base_name(settings), settings.num_images, ".safetensors")


def seed_pictures(settings: RecoSettings) -> Path:
    """Folder of the drawings of what a run's references were made of."""
    cache = reference_cache(settings)
    return cache.parent / "cosegmentation" / ("" if settings.name is not None else cache.stem)


def run_path(settings: RecoSettings) -> Path:
    """Folder of a run."""
    if settings.name is not None:
        return settings.output_dir / settings.name
    if not settings.uses_references:
        parts = [encoder_name(settings.dense_clip_arch), settings.suffix or ""]
        return scoring.benchmark_path(settings) / "dense_clip" / "_".join(part for part in parts if part)
    if settings.trains:
        parts = [settings.segmenter, settings.suffix or "", f"s{settings.seed}" if settings.seed else ""]
        return scoring.benchmark_path(settings) / "reco_plus" / "_".join(part for part in parts if part)
    return settings.output_dir / reco_folder(
        dataset=settings.dataset_name or CUSTOM,
        split=settings.split,
        name=base_name(settings),
        num_images=settings.num_images,
        dense_clip_inference=settings.dense_clip_inference,
    )


def training_labels(settings: RecoSettings) -> str:
    """Folder name of the label PNGs that ReCo+ learns from: with the CRF if there is one."""
    return CRF_FOLDER if settings.crf is not None else PLAIN_FOLDER


def label_folders(settings: RecoSettings) -> list[str]:
    """Folder names of the label PNGs that are written; those of the CRF need one."""
    wanted = [*settings.pseudo_label_folders, *([training_labels(settings)] if settings.trains else [])]
    return [name for name in (PLAIN_FOLDER, CRF_FOLDER) if name in wanted and (settings.crf or name == PLAIN_FOLDER)]
