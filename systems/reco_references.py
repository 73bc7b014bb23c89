"""ReCo's first two stages: pictures retrieved for the names, and one reference embedding per name computed of them.

Co-segmentation itself: `pseudo_labels/reference_pictures.py` and below. What references are good for:
`reco_predict.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from networks.patch_encoders import PatchEncoder, load_encoder
from networks.reco import Reco
from pseudo_labels.reference_building import needed_categories
from pseudo_labels.references import (
    References,
    ReferenceSettings,
    check_width,
    in_order,
    read_references,
    write_references,
)
from retrieval.prompts import load_templates
from systems import reco_places, stages
from systems.text_cache import cached_text
from training.run_folder import RunFolder
from utils.distributed import all_gather_objects, on_main
from utils.errors import DataError
from utils.log import get_logger
from utils.settings import RecoSettings

if TYPE_CHECKING:
    from networks.dense_clip import DenseClip

logger = get_logger(__name__)


@dataclass(frozen=True)
class RecoNetworks:
    """ReCo's networks, each loaded when it is first asked for.

    Attributes:
        settings: which they are.
        device: where they are put.
    """

    settings: RecoSettings
    device: torch.device
    _vectors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)  # of names

    @cached_property
    def encoder(self) -> PatchEncoder:
        """The image encoder, whose features references are made of."""
        return load_encoder(self.settings.encoder_arch, self.settings.encoder_weights).to(self.device)

    @cached_property
    def tower(self) -> DenseClip:
        """The dense CLIP, which compares pictures with names."""
        from networks.clip import load_clip  # takes seconds to import
        from networks.dense_clip import dense_clip

        return dense_clip(load_clip(self.settings.dense_clip_arch, device=self.device, towers=("image",)))

    def text(self, names: Sequence[str]) -> Tensor:
        """Unit text vectors of names, averaged over the prompts: (N, D), float32, on the device; made once."""
        if missing := [name for name in names if name not in self._vectors]:
            self._vectors.update(zip(missing, self._embed(missing).to(self.device), strict=True))
        return torch.stack([self._vectors[name] for name in names])

    def _embed(self, names: Sequence[str]) -> Tensor:
        source, templates = self.settings.dense_clip_arch, load_templates(self.settings.prompts)

        def embed() -> Tensor:
            from networks.clip import load_clip  # takes seconds to import
            from networks.dense_clip import text_vectors

            logger.info("embedding %d names with the text tower of %s", len(names), source)
            clip = load_clip(source, device=self.device, towers=("text",))
            return text_vectors(clip, names, templates)

        return cached_text(source, "prompt ensemble", *templates, "names", *names, make=embed)

    def with_references(self, references: References) -> Reco:
        """The whole network, in evaluation mode, on the device.

        Args:
            references: of the categories to choose between; they fit the encoder.
        """
        sharpens = self.settings.dense_clip_inference
        network = Reco(
            self.encoder,
            references.vectors,
            tower=self.tower if sharpens else None,
            text=self.text(references.names) if sharpens else None,
            temperature=self.settings.temperature,
        )
        return network.to(self.device).eval()


def reference_settings(settings: RecoSettings) -> ReferenceSettings:
    """What reference embeddings depend on, as it is kept beside them."""
    encoder = stages.model_identity(settings.encoder_arch)
    if settings.encoder_weights is not None:
        encoder += f", {stages.model_identity(str(settings.encoder_weights))}"
    return ReferenceSettings(
        encoder=encoder,
        dense_clip=stages.model_identity(settings.dense_clip_arch),
        retrieval_clip=stages.model_identity(settings.retrieval_clip),
        templates=load_templates(settings.prompts),
        num_images=settings.num_images,
        image_size=settings.reference_image_size,
        text_attention=settings.text_attention,
        context_elimination=settings.context_elimination,
        context_categories=tuple(settings.context_categories),
        temperature=settings.temperature,
        seed_window=settings.seed_window,
    )


def index_settings(settings: RecoSettings) -> RecoSettings:
    """The settings with the folders of index images as they are: ImageNet's root stands for one of its splits."""
    split = settings.imagenet_split
    folders = [folder / split if split and (folder / split).is_dir() else folder for folder in settings.index_dirs]
    return settings.model_copy(update={"index_dirs": folders})


def find_archive(settings: RecoSettings, names: Sequence[str], options: ReferenceSettings) -> stages.Archive:
    """Pictures of every name and of the context categories, retrieved unless they are already."""
    needed = needed_categories(names, options)
    if around := [name for name in options.used_context if name not in names]:
        logger.info("retrieval: pictures of the context categories, too: %s", ", ".join(around))
    shared = RunFolder(reco_places.shared_path(settings))
    with shared.locked():
        return stages.build_archive(index_settings(settings), needed, shared)


def known_references(settings: RecoSettings) -> References | None:
    """All references of the file that the settings name, or of earlier runs; None if there are none yet.

    Raises:
        DataError: the file is damaged, or was made with another encoder or other settings.
    """
    options = reference_settings(settings)
    if settings.reference_path is not None:
        return read_references(settings.reference_path, settings=options)
    path = reco_places.reference_cache(settings)
    if not path.is_file():
        return None
    index_dirs = None if settings.path_map else _index_of(settings)
    try:
        return read_references(path, settings=options, index_dirs=index_dirs or None)
    except DataError as error:
        raise DataError(
            f"{error} With another suffix or name a run has references of its own; to compute these again, delete the "
            "file."
        ) from error


def lacks(settings: RecoSettings, names: Sequence[str]) -> bool:
    """Whether references of some of the names have still to be computed; never of a file that the settings name."""
    if settings.reference_path is not None:
        return False
    known = known_references(settings)
    return known is None or not set(names) <= set(known.names)


def _index_of(settings: RecoSettings) -> list[str]:
    """The folders that pictures are retrieved from, as records name them."""
    from retrieval.archive import folder_names

    return folder_names(index_settings(settings).index_dirs)


def find_references(settings: RecoSettings, names: Sequence[str], networks: RecoNetworks) -> References:
    """References of the names: read, or computed of retrieved pictures and kept; new names are added to known ones.

    Args:
        settings: of the run; its folder is held.
        names: categories in label order.
        networks: of the run.

    Raises:
        UserError: whatever is wrong with files, pictures or settings.
    """
    # One answer for all ranks. Runs that only read what they share do not wait for each other.
    if all_gather_objects(lacks(settings, names))[0]:
        with RunFolder(reco_places.shared_path(settings)).locked():
            archive = find_archive(settings, names, reference_settings(settings))
            on_main(lambda: _compute(settings, names, networks, archive) if lacks(settings, names) else None)
    path = settings.reference_path or reco_places.reference_cache(settings)
    references = in_order(known_references(settings), names, path, tells_extra=settings.reference_path is not None)
    check_width(references, networks.encoder.width, path)
    return references


def _compute(settings: RecoSettings, names: Sequence[str], networks: RecoNetworks, archive: stages.Archive) -> None:
    """Compute the references that are missing, and write all."""
    from pseudo_labels.reference_pictures import make_references
    from systems.reco_report import SeedPictures

    options, path = reference_settings(settings), reco_places.reference_cache(settings)
    before = known_references(settings)
    known = {} if before is None else before.by_name()
    names = list(dict.fromkeys([*(() if before is None else before.names), *names]))
    needed = [name for name in needed_categories(names, options) if name not in known]
    wanted = list(dict.fromkeys([*needed, *(names if settings.dense_clip_inference else [])]))  # one visit to the tower
    texts = dict(zip(wanted, networks.text(wanted), strict=True)) if settings.text_attention else None
    references = make_references(
        names,
        archive,
        encoder=networks.encoder,
        tower=networks.tower if settings.text_attention else None,
        text=texts,
        settings=options,
        known=known,
        device=networks.device,
        num_workers=settings.val_loader.num_workers,
        watcher=SeedPictures(reco_places.seed_pictures(settings)),
    )
    write_references(path, references, options, index_dirs=_index_of(settings))
    logger.info("references of %d categories, %d computed now (context included): %s", len(names), len(needed), path)
