"""Retrieved pictures to features of both networks, category by category: loader processes read ahead of the networks.

Used by ``make_references``, the whole way from an image archive to reference embeddings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from networks.patch_encoders import PatchEncoder
from pseudo_labels.cosegmentation import Cosegmentation
from pseudo_labels.preparation import MAX_ASPECT
from pseudo_labels.reference_building import CategoryFeatures, build_references, needed_categories
from pseudo_labels.references import References, ReferenceSettings
from utils.errors import DataError
from utils.images import read_rgb
from utils.loader import load_batches
from utils.log import get_logger, progress
from utils.normalisation import normalise_images

if TYPE_CHECKING:
    from networks.dense_clip import DenseClip  # open_clip takes seconds to import

IMAGE_SIZE = 224
BATCH_SIZE = 64
FEW = 5  # from so many on, what pictures have in common is mostly the category
PictureWatcher = Callable[[str, Tensor, Cosegmentation], None]
logger = get_logger(__name__)


def square_picture(image: NDArray[np.uint8], size: int = IMAGE_SIZE) -> NDArray[np.uint8]:
    """Resize the shorter side of a picture to ``size`` (bilinear, antialiased) and cut out the middle.

    Args:
        image: RGB, (H, W, 3), uint8. Of one longer than 16 times its shorter side only the middle is looked at.
        size: side S in pixels.

    Returns:
        RGB, (S, S, 3), uint8.
    """
    height, width = image.shape[:2]
    limit = MAX_ASPECT * min(height, width)
    if max(height, width) > limit:
        top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
        image = image[top : top + limit, left : left + limit]
        height, width = image.shape[:2]
    shorter = min(height, width)
    height, width = (size if side == shorter else int(size * side / shorter) for side in (height, width))
    picture = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.asarray(picture.crop((left, top, left + size, top + size)))


def picture_batch(images: Sequence[NDArray[np.uint8]], size: int = IMAGE_SIZE) -> Tensor:
    """Pictures of any sizes (H, W, 3) as bytes for the networks: (k, 3, S, S), uint8; see ``normalise_images``."""
    return torch.from_numpy(np.stack([square_picture(image, size) for image in images])).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Squares:
    """A map-style dataset: path -> square picture."""

    size: int

    def __getitem__(self, path: Path) -> NDArray[np.uint8]:
        return square_picture(read_rgb(path), self.size)


def _collate(squares: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


def make_references(
    categories: Sequence[str],
    archive: Mapping[str, Sequence[str | Path]],
    *,
    encoder: PatchEncoder,
    tower: DenseClip | None = None,
    text: Mapping[str, Tensor] | None = None,
    settings: ReferenceSettings,
    known: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 4,
    watcher: PictureWatcher | None = None,
) -> References:
    """From retrieved pictures to one reference embedding per category.

    Args:
        categories: names of the benchmark, in the order of their labels.
        archive: name -> retrieved pictures, best first, for every name of ``needed_categories``; the first
            ``settings.num_images`` are used.
        encoder: image encoder, on ``device``.
        tower: dense CLIP of the text attention, on ``device``; may be None where the settings switch it off.
        text: name -> unit text vector of the same CLIP, for the same names.
        settings: how references are made.
        known: as in ``build_references``; their pictures are not looked at.
        device: where the networks are.
        num_workers: loader processes; 0 reads in this one.
        watcher: called after each category with its name, its pictures (k, 3, S, S), uint8, and what was found.

    Returns:
        References on the CPU.

    Raises:
        DataError: if a category has no picture.
        UnreadableImageError: if a picture cannot be read.
    """
    vectors, known = text or {}, known or {}
    names = [name for name in needed_categories(categories, settings) if name not in known]
    if settings.text_attention and (tower is None or not vectors.keys() >= set(names)):
        raise ValueError("text attention needs a dense CLIP and the text vector of every category")
    paths = [_paths_of(name, archive, settings.num_images) for name in names]
    loaded = load_batches(
        _Squares(settings.image_size),
        paths,
        collate=_collate,
        num_workers=min(num_workers, len(names)),
        pin_memory=torch.device(device).type == "cuda",
    )
    tower = tower if settings.text_attention else None
    latest: list[Tensor] = []

    def features() -> Iterator[CategoryFeatures]:
        steps = progress(loaded, total=len(names), description="co-segmentation", unit="name")
        for name, pictures in zip(names, steps, strict=True):
            latest[:] = [pictures]
            yield _look_at(pictures, encoder, tower, None if tower is None else vectors[name], device)

    def watch(name: str, result: Cosegmentation) -> None:
        if watcher is not None:
            watcher(name, latest[0], result)

    return build_references(categories, features(), settings, known=known, watcher=watch)


def _paths_of(name: str, archive: Mapping[str, Sequence[str | Path]], num_images: int) -> list[Path]:
    paths = [Path(path) for path in archive.get(name, ())[:num_images]]
    if not paths:
        raise DataError(
            f"no picture was retrieved for {name!r}, so there is nothing to compute its reference embedding from. Add "
            "pictures of it to the index, or rename the category."
        )
    if len(paths) < num_images:
        level = logging.WARNING if len(paths) < FEW else logging.INFO
        logger.log(level, "%s: only %d pictures to co-segment, %d were asked for", name, len(paths), num_images)
    return paths


@torch.no_grad()
def _look_at(
    pictures: Tensor, encoder: PatchEncoder, tower: DenseClip | None, text: Tensor | None, device: torch.device | str
) -> CategoryFeatures:
    """Features of pictures (k, 3, S, S), uint8, by both networks."""
    parts = [normalise_images(part.to(device, non_blocking=True)) for part in pictures.split(BATCH_SIZE)]
    features = torch.cat([encoder(part) for part in parts])
    if tower is None or text is None:
        return CategoryFeatures(features)
    return CategoryFeatures(features, torch.cat([tower(part) for part in parts]), text.to(features.device))
