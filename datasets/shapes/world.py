"""Writes a whole shapes world to a folder, in parallel, and goes on where a killed run stopped.

Next: ``layouts.py`` for the files, ``scenes.py`` for the pictures.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.layouts import (
    CaptionLayout,
    CityscapesLayout,
    CocaLayout,
    CocoLayout,
    ImageNetLayout,
    ImageNetSLayout,
    Layout,
    PassLayout,
    VocLayout,
)
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.log import get_logger, progress

_logger = get_logger(__name__)

_CHUNK = 128
_FORMAT = 2


@dataclass(frozen=True)
class World:
    """Where the parts of a written world are; a part that was not asked for has a folder that does not exist.

    Attributes:
        root: folder of the world.
        imagenet_dir: index dataset, ``ImageNet2012/train`` below it holds wnid folders.
        pass_dir: index dataset, flat ``images`` folder inside.
        coco_dir: COCO2017-like validation set.
        voc_dir: VOC2012-like set.
        cityscapes_dir: Cityscapes-like validation set.
        coca_dir: CoCA-like set.
        imagenet_s_dir: folder that holds the ImageNet-S-like validation set, ``ImageNetS50`` or another.
        captions_dir: webdataset shards.
        truth_dir: what the index pictures show; for reports only, never for learning.
        category_names: without background.
    """

    root: Path
    imagenet_dir: Path
    pass_dir: Path
    coco_dir: Path
    voc_dir: Path
    cityscapes_dir: Path
    coca_dir: Path
    imagenet_s_dir: Path
    captions_dir: Path
    truth_dir: Path
    category_names: tuple[str, ...]


def _locate(root: Path) -> World:
    return World(
        root=root,
        imagenet_dir=root / ImageNetLayout.name,
        pass_dir=root / PassLayout.name,
        coco_dir=root / CocoLayout.name,
        voc_dir=root / VocLayout.name,
        cityscapes_dir=root / CityscapesLayout.name,
        coca_dir=root / CocaLayout.name,
        imagenet_s_dir=root / ImageNetSLayout.name,
        captions_dir=root / CaptionLayout.name,
        truth_dir=root / "truth",
        category_names=CATEGORY_NAMES,
    )


def make_world(
    root: str | Path,
    *,
    num_imagenet: int = 0,
    num_pass: int = 0,
    num_val: int = 0,
    num_voc: int = 0,
    num_cityscapes: int = 0,
    num_coca: int = 0,
    num_imagenet_s: int = 0,
    imagenet_s_categories: int = 50,
    num_caption_shards: int = 0,
    image_size: int = 128,
    seed: int = 0,
    num_workers: int = 2,
) -> World:
    """Write a world of real files; parts that are complete are left alone.

    Args:
        root: folder, made if missing.
        num_imagenet: pictures of the ImageNet2012-like index dataset.
        num_pass: pictures of the PASS-like index dataset.
        num_val: pictures of the COCO2017-like validation set.
        num_voc: pictures of the VOC2012-like set, two thirds of them for validation.
        num_cityscapes: pictures of the Cityscapes-like validation set.
        num_coca: pictures of the CoCA-like set.
        num_imagenet_s: pictures of the ImageNet-S-like validation set.
        imagenet_s_categories: which ImageNet-S it is like: 50, 300 or 919.
        num_caption_shards: webdataset shards of 500 captioned pictures each.
        image_size: shorter side of the pictures.
        seed: number of the world; the same seed gives the same bytes.
        num_workers: processes; 0 works in this one.

    Returns:
        Where everything is.

    Raises:
        DataError: if the folder holds a world of other settings.
        UserError: if the disk is full or the folder cannot be written.
    """
    root = Path(root)
    counts: dict[type[Layout], int] = {
        ImageNetLayout: num_imagenet,
        PassLayout: num_pass,
        CocoLayout: num_val,
        VocLayout: num_voc,
        CityscapesLayout: num_cityscapes,
        CocaLayout: num_coca,
        ImageNetSLayout: num_imagenet_s,
        CaptionLayout: num_caption_shards,
    }
    _check_settings(root, {"format": _FORMAT, "image_size": image_size, "seed": seed})
    with _mapper(num_workers) as run:
        for layout_class, count in counts.items():
            if count:
                options = {"num_categories": imagenet_s_categories} if layout_class is ImageNetSLayout else {}
                _write_layout(layout_class(root, count, image_size, seed, **options), run)
    return _locate(root)


def _check_settings(root: Path, settings: dict[str, int]) -> None:
    path = root / "world.json"
    if path.exists():
        found = {key: read_json(path).get(key) for key in settings}
        if found != settings:
            raise DataError(
                f"{root} holds another shapes world: expected {settings}, found {found}. "
                f"Choose another folder, or delete this one."
            )
    write_json(path, {**settings, "categories": list(CATEGORY_NAMES)})


@contextmanager
def _mapper(num_workers: int) -> Iterator[Any]:
    if num_workers == 0:
        yield map
        return
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield pool.imap


def _part_path(layout: Layout, start: int, stop: int) -> Path:
    return layout.root / ".parts" / layout.name / f"{start:07d}_{stop:07d}.json"


def _write_chunk(task: tuple[Layout, int, int]) -> None:
    layout, start, stop = task
    records = [layout.write(index) for index in range(start, stop)]
    write_json(_part_path(layout, start, stop), records, indent=False)


def _is_complete(layout: Layout, start: int, stop: int) -> bool:
    if not _part_path(layout, start, stop).exists():
        return False
    return all(path.exists() for index in range(start, stop) for path in layout.paths(index))


def _write_layout(layout: Layout, run: Any) -> None:
    step = 1 if isinstance(layout, CaptionLayout) else _CHUNK
    starts = range(0, layout.num_images, step)
    chunks = [(start, min(start + step, layout.num_images)) for start in starts]
    missing = [chunk for chunk in chunks if not _is_complete(layout, *chunk)]
    skipped = len(chunks) - len(missing)
    if skipped:
        _logger.info("%s: %d of %d parts exist", layout.name, skipped, len(chunks))
    tasks = [(layout, *chunk) for chunk in missing]
    for _ in progress(run(_write_chunk, tasks), total=len(tasks), description=f"{layout.name} pictures", unit="part"):
        pass
    layout.finish(_read_records(layout, chunks))


def _read_records(layout: Layout, chunks: Sequence[tuple[int, int]]) -> list[Any]:
    return [record for chunk in chunks for record in read_json(_part_path(layout, *chunk))]


def read_truth(world: World, layout_name: str) -> dict[str, list[dict[str, Any]]]:
    """Read what the pictures of an index dataset show; for reports, never for learning.

    Args:
        world: a written world.
        layout_name: "ImageNet2012" or "pass".

    Returns:
        File name -> its named things, each with ``category``, ``size`` and ``counts`` (COCO compressed RLE).

    Raises:
        DataError: if the file is missing or not JSON.
    """
    return read_json(world.truth_dir / f"{layout_name}.json", what="truth of an index dataset")
