"""Mask files: where the mask of an image lies, and reading and writing it.

One JSON file per image, `{"size": [H, W], "counts": "..."}`, COCO's run-length code at the size of the image. ImageNet
and PASS use the published places, any other folder the rule of `pseudo_mask_path`. Next: `mask_stores.py`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from pseudo_labels import rle
from utils.errors import DataError
from utils.files import atomic_write, read_json

SELFMASK = "selfmask"
_WNID = re.compile(r"n\d{8}")


def pseudo_mask_path(
    image_path: str | Path,
    *,
    index_dir: str | Path | None = None,
    pseudo_mask_dir: str | Path | None = None,
    maker: str = SELFMASK,
) -> Path:
    """Place of the pseudo-mask of an image; nothing on the disk is looked at.

    The first rule that applies:

    1. `pseudo_mask_dir` given: `<pseudo_mask_dir>/<path of the image below index_dir>.json`; without `index_dir` the
       whole path of the image, less its root, goes below `pseudo_mask_dir`.
    2. ImageNet (`.../ImageNet2012/...` in the path, or `<wnid>/<wnid>_<number>.JPEG` at its end):
       `<root>/<split>/<wnid>/<file>` becomes `<root>/<split>_pseudo_masks_<maker>/<wnid>/<file with JPEG → json>`
       (the published place).
    3. `.../pass/...` in the path: `<folder without /images>/pseudo_masks_<maker>/<file with its extension → json>`
       (the published place).
    4. Otherwise `<index_dir>_pseudo_masks_<maker>/<path of the image below index_dir>.json`; without `index_dir` the
       image's own folder takes its part.

    Args:
        image_path: the image.
        index_dir: root folder of the index dataset that the image belongs to.
        pseudo_mask_dir: root folder of the pseudo-masks.
        maker: "selfmask", or `experts/<benchmark>` for the masks of category experts.

    Returns:
        Path of a JSON file. Rules 1 and 4 keep the extension before `.json`, so `a.jpg` and `a.png` do not collide.

    Raises:
        DataError: if the image does not lie below `index_dir` where rule 1 or 4 needs it.
    """
    image_path = Path(image_path)
    if pseudo_mask_dir is None:
        if "/ImageNet2012/" in str(image_path) or _is_imagenet(image_path):
            return imagenet_mask_path(image_path, maker=maker)
        if "/pass/" in str(image_path):
            return _pass_path(image_path, maker)
        index_dir = Path(index_dir) if index_dir is not None else image_path.parent
        pseudo_mask_dir = index_dir.parent / f"{index_dir.name}_pseudo_masks_{maker}"
    relative = _relative_path(image_path, index_dir)
    return Path(pseudo_mask_dir) / relative.with_name(relative.name + ".json")


def imagenet_mask_path(image_path: str | Path, *, maker: str = SELFMASK, dataset_dir: str | Path | None = None) -> Path:
    """The published place of the mask of an ImageNet picture `<root>/<split>/<wnid>/<file>`.

    Args:
        image_path: the picture; only its last three parts count where `dataset_dir` is given.
        maker: see `pseudo_mask_path`.
        dataset_dir: root of the masks, if it is not that of the picture.

    Source: NamedMask spec 1.1. Every `JPEG` in the file's name becomes `json`.
    """
    image_path = Path(image_path)
    split_dir = image_path.parent.parent
    root = split_dir.parent if dataset_dir is None else Path(dataset_dir)
    store_dir = root / f"{split_dir.name}_pseudo_masks_{maker}"
    return store_dir / image_path.parent.name / image_path.name.replace("JPEG", "json")


def _is_imagenet(image_path: Path) -> bool:
    wnid = image_path.parent.name
    return image_path.suffix == ".JPEG" and _WNID.fullmatch(wnid) is not None and image_path.stem.startswith(wnid)


def _pass_path(image_path: Path, maker: str) -> Path:
    # Kept for published files: every occurrence of the extension's letters in the name is replaced.
    extension = image_path.name.rsplit(".", 1)[-1]
    folder = Path(str(image_path.parent).replace("/images", "")) / f"pseudo_masks_{maker}"
    return folder / image_path.name.replace(extension, "json")


def _relative_path(image_path: Path, index_dir: str | Path | None) -> Path:
    if index_dir is None:
        return image_path.relative_to(image_path.anchor)
    try:
        return image_path.relative_to(index_dir)
    except ValueError as error:
        raise DataError(
            f"{image_path}: this image does not lie below the index folder {index_dir}, so its pseudo-mask has no "
            "place. Check the index folder, or map the paths of the retrieval file to it."
        ) from error


def write_mask(path: str | Path, mask: NDArray[np.generic]) -> None:
    """Write a mask (H, W), 0 or 1, as the file of one image, atomically; missing folders are made.

    Raises:
        utils.errors.UserError: if the file cannot be written (full disk, permissions).
    """
    write_code(path, rle.encode(mask))


def write_code(path: str | Path, code: dict[str, object]) -> None:
    """Write a run-length code (see `pseudo_labels.rle.encode`) as the file of one image, atomically."""
    # Thousands of small files that can be made again: waiting for the disk after each would cost more than it saves.
    with atomic_write(path, sync=False) as file:
        file.write(orjson.dumps(code))


def read_mask(path: str | Path, expected_size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
    """Read the mask of one image.

    Args:
        path: a file of this store.
        expected_size: (height, width) of the image, if it is to be checked.

    Returns:
        The mask, (H, W), uint8, 0 or 1.

    Raises:
        DataError: if the file is missing, is not valid JSON, its code is damaged, or its size is not the image's.
    """
    mask = rle.decode(read_json(path, what="pseudo-mask"), source=str(path))
    if expected_size is not None and mask.shape != tuple(expected_size):
        raise DataError(
            f"{path}: the pseudo-mask is {mask.shape[0]}×{mask.shape[1]} (height × width), but its image is "
            f"{expected_size[0]}×{expected_size[1]}. It belongs to another image: delete it and make it again."
        )
    return mask


def is_complete(path: str | Path) -> bool:
    """Whether a whole, valid mask lies there; False for a missing or damaged file."""
    path = Path(path)
    if not path.exists():
        return False
    try:
        rle.area(read_json(path, what="pseudo-mask"), source=str(path))
    except DataError:
        return False
    return True
