"""Training samples of SelfMask: a picture, its one pseudo-mask, and the random geometry and colours of the release.

Every random decision is an explicit draw that depends on the seed and the sample's position in the run alone, so a
sample is the same in any worker, process or resumed run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.geometric import GeometricDraws, crop_image, crop_mask, pad_crop, plan_crop, scaled_size
from datasets.photometric import PhotometricSettings, apply_photometric, draw_photometric
from pseudo_labels import rle
from training.samplers import ShuffledDataset
from utils.errors import DataError
from utils.files import read_json
from utils.images import read_rgb

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class SelfMaskBatch(NamedTuple):
    """Samples of one forward pass.

    Attributes:
        images: RGB, (B, 3, S, S), uint8.
        masks: pseudo-masks, (B, S, S), bool.
    """

    images: Tensor
    masks: Tensor


def draw_square_geometry(
    rng: np.random.Generator, *, crop_size: int, scale_range: tuple[float, float]
) -> GeometricDraws:
    """Draw scale, crop offset and flip for a square picture of the crop's own size; padding is right and bottom.

    Args:
        rng: source of randomness.
        crop_size: side of picture and crop.
        scale_range: the scale is uniform between these two; up to 1 the offset is always (0, 0).
    """
    scale = float(rng.uniform(*scale_range))
    slack = max(0, scaled_size((crop_size, crop_size), scale)[0] - crop_size)
    top, left = (int(offset) for offset in rng.integers(0, slack, size=2, endpoint=True))
    return GeometricDraws(scale, pad_top=False, pad_left=False, top=top, left=left, flip=bool(rng.random() > 0.5))


def augment_geometry(
    image: np.ndarray, mask: np.ndarray, draws: GeometricDraws, *, crop_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scale, pad, crop and flip a picture with a mask that may have another size.

    Args:
        image: RGB, (S, S, 3), uint8: already resized to a square.
        mask: its mask at any size, (H, W), uint8 or bool.
        draws: the random decisions.
        crop_size: side of the result.

    Returns:
        image: (crop_size, crop_size, 3), uint8; around the scaled picture its mean colour.
        mask: (crop_size, crop_size), type of ``mask``; 0 there.

    Source: SelfMask, released augmentation: bilinear with Pillow's antialiasing for the picture, nearest straight from
    the mask's own size for the mask, mean colour taken after scaling and truncated.
    """
    plan = plan_crop(image.shape[:2], draws, crop_size)
    content, fill = crop_image(image, plan)
    return pad_crop(np.asarray(content), plan, fill), pad_crop(crop_mask(mask, plan), plan, 0)


def read_pseudo_masks(path: str | Path) -> dict[str, dict[str, Any]]:
    """Read a pseudo-mask file ``{picture name: {"size": [H, W], "counts": text}}``, published or of our own making.

    Raises:
        DataError: if the file is missing, damaged, or not of this kind; names the file and the first bad entry.
    """
    masks = read_json(path, what="pseudo-mask file")
    if not isinstance(masks, dict) or not masks:
        raise DataError(f"{path}: expected a JSON object of picture names and masks, found {type(masks).__name__}")
    for name, code in masks.items():
        if not isinstance(code, dict) or set(code) < {"size", "counts"} or not isinstance(code["counts"], str):
            raise DataError(
                f"{path}: the mask of {name!r} is not a run-length code {{'size': [H, W], 'counts': text}}. "
                f"Make the file again, or remove this entry."
            )
    return masks


class SelfMaskDataset:
    """Endless augmented samples: position p of a run is a pure function of (seed, p).

    Args:
        image_dir: folder that the names in ``masks`` are relative to.
        masks: picture name to run-length code of its pseudo-mask; empty masks are left out.
        batch_size: samples per optimiser step; an epoch has only full batches.
        seed: of the order and of all augmentation.
        image_size: side of the samples in pixels.
        scale_range: range of the random scale.
        photometric: colour changes; the published ones if None.

    Raises:
        DataError: if pictures are missing or every mask is empty.

    Source: SelfMask, section 4.2 and released data loading: aspect ratio not kept, names in sorted order.
    """

    def __init__(
        self,
        image_dir: str | Path,
        masks: Mapping[str, Mapping[str, Any]],
        *,
        batch_size: int,
        seed: int = 0,
        image_size: int = 224,
        scale_range: tuple[float, float] = (0.1, 1.0),
        photometric: PhotometricSettings | None = None,
    ) -> None:
        self.image_dir, self.masks = Path(image_dir), masks
        self.seed, self.image_size, self.scale_range = seed, image_size, scale_range
        self.photometric = photometric or PhotometricSettings()
        self.names = _names_with_object(masks)
        self.num_empty = len(masks) - len(self.names)
        _check_pictures(self.image_dir, self.names)
        self._order = ShuffledDataset(self.names, seed=seed, batch_size=batch_size)

    @property
    def epoch_length(self) -> int:
        """Samples of one epoch: whole batches only."""
        return self._order.epoch_length

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """The sample at a position >= 0 of the run.

        Returns:
            image: RGB, (S, S, 3), uint8. mask: (S, S), bool; empty where the object became too small.

        Raises:
            UnreadableImageError: if the picture cannot be read.
            DataError: if the mask is damaged.
        """
        name = self.names[self._order.index(position)]
        rng = np.random.default_rng((self.seed, position))
        side = self.image_size
        image = Image.fromarray(read_rgb(self.image_dir / name)).resize((side, side), Image.Resampling.BILINEAR)
        mask = rle.decode(self.masks[name], source=f"pseudo-mask of {name}")
        draws = draw_square_geometry(rng, crop_size=side, scale_range=self.scale_range)
        pixels, mask = augment_geometry(np.asarray(image), mask, draws, crop_size=side)
        colours = draw_photometric(rng, self.photometric)
        pixels = apply_photometric(pixels, colours, blur_kernel=self.photometric.kernel_width(side))
        return np.ascontiguousarray(pixels), mask > 0


def _names_with_object(masks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sorted names of the masks that are not empty; DataError if there is none."""
    names = sorted(name for name, code in masks.items() if rle.area(code, source=f"pseudo-mask of {name}") > 0)
    if not names:
        raise DataError(
            f"all {len(masks)} pseudo-masks are empty, so there is nothing to learn from. Look at the overlays of the "
            f"voting stage; other features or numbers of clusters may help."
        )
    return names


def _check_pictures(image_dir: Path, names: Sequence[str]) -> None:
    """DataError that counts and names the pictures which the mask file lists but the folder lacks."""
    missing = [name for name in names if not (image_dir / name).is_file()]
    if missing:
        raise DataError(
            f"{image_dir}: {len(missing)} of {len(names)} pictures of the pseudo-mask file are not there "
            f"(first: {', '.join(missing[:3])}). Check dir_dataset, or leave pseudo_mask_path out to make masks of it."
        )


def collate_samples(samples: Sequence[tuple[np.ndarray, np.ndarray]]) -> SelfMaskBatch:
    """Stack samples, without those whose mask became empty; if all did, the first one stays and costs nothing.

    The release raises on a batch without any object, which ends a run that has small batches sooner or later; the
    criterion gives such a batch the loss 0.
    """
    kept = [sample for sample in samples if sample[1].any()] or list(samples[:1])
    images = torch.from_numpy(np.stack([image for image, _ in kept])).permute(
        0, 3, 1, 2
    )  # (B, S, S, 3) -> (B, 3, S, S)
    return SelfMaskBatch(images.contiguous(), torch.from_numpy(np.stack([mask for _, mask in kept])))


def normalise(images: Tensor) -> Tensor:
    """uint8 RGB pictures (B, 3, H, W) as ImageNet-normalised float32 of the same shape, on their device."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images.float() / 255 - mean) / std
