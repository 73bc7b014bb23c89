"""Writes a whole shapes world to a folder, in parallel, and goes on where a killed run stopped.

Next: ``layouts.py`` and ``stuff_layouts.py`` for the files, ``scenes.py`` and ``stuff_scenes.py`` for the pictures.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.shapes import layouts, stuff_layouts
from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.layouts import Layout
from datasets.shapes.stuff_scenes import STUFF_CATEGORY_NAMES
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.log import get_logger, progress

_logger = get_logger(__name__)

_CHUNK = 128
_FORMAT = 2


@dataclass(frozen=True)
class Part:
    """What one count of `make_world` is about.

    Attributes:
        layout: how the pictures are written.
        what: is counted.
        default: how many the command line writes.
    """

    layout: type[Layout]
    what: str
    default: int = 0


#: The counts that `make_world` takes, things first, then stuff.
PARTS: Mapping[str, Part] = {
    "num_imagenet": Part(layouts.ImageNetLayout, "pictures of the ImageNet2012-like index dataset", 4000),
    "num_pass": Part(layouts.PassLayout, "pictures of the PASS-like index dataset", 1000),
    "num_val": Part(layouts.CocoLayout, "pictures of the COCO2017-like validation set", 500),
    "num_voc": Part(layouts.VocLayout, "pictures of the VOC2012-like set, two thirds of them for validation"),
    "num_cityscapes": Part(layouts.CityscapesLayout, "pictures of the Cityscapes-like validation set of things"),
    "num_coca": Part(layouts.CocaLayout, "pictures of the CoCA-like set"),
    "num_imagenet_s": Part(layouts.ImageNetSLayout, "pictures of the ImageNet-S-like validation set"),
    "num_caption_shards": Part(layouts.CaptionLayout, "shards of 500 captioned pictures"),
    "num_stuff_index": Part(stuff_layouts.StuffIndexLayout, "pictures of the index dataset of stuff"),
    "num_stuff_val": Part(stuff_layouts.StuffValLayout, "pictures of stuff for validation, the world's own categories"),
    "num_stuff_train": Part(stuff_layouts.StuffTrainLayout, "pictures of the training split beside them"),
    "num_cityscapes_stuff": Part(
        stuff_layouts.CityscapesStuffLayout, "pictures of the Cityscapes-like set of stuff, half of them for training"
    ),
    "num_kitti": Part(stuff_layouts.KittiStepLayout, "pictures of the KITTI-STEP-like set, half of them for training"),
    "num_coco_stuff": Part(
        stuff_layouts.CocoStuffLayout, "pictures of the COCO-Stuff-like set, half of them for training, as 10K"
    ),
    "num_pascal_context": Part(
        stuff_layouts.PascalContextLayout, "pictures of the Pascal-Context-like set, half of them for training"
    ),
}


@dataclass(frozen=True)
class World:
    """Where the parts of a written world are; a part that was not asked for has a folder that does not exist.

    Attributes:
        root: folder of the world.
        imagenet_dir: index dataset, ``ImageNet2012/train`` below it holds wnid folders.
        pass_dir: index dataset, flat ``images`` folder inside.
        coco_dir: COCO2017-like validation set.
        voc_dir: VOC2012-like set.
        cityscapes_dir: Cityscapes-like validation set of things.
        coca_dir: CoCA-like set.
        imagenet_s_dir: folder that holds the ImageNet-S-like validation set, ``ImageNetS50`` or another.
        captions_dir: webdataset shards.
        stuff_index_dir: index dataset of stuff, ``train`` below it holds wnid folders.
        stuff_dir: COCO2017-like set of stuff with both splits and the world's own categories.
        cityscapes_stuff_dir: Cityscapes-like set of stuff.
        kitti_dir: KITTI-STEP-like set.
        coco_stuff_dir: COCO-Stuff-like validation set; the training set lies beside it as in 10K.
        pascal_context_dir: Pascal-Context-like set.
        truth_dir: what the index pictures show; for reports only, never for learning.
        category_names: without background.
        stuff_category_names: of the sets of stuff, which have no background.
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
    stuff_index_dir: Path
    stuff_dir: Path
    cityscapes_stuff_dir: Path
    kitti_dir: Path
    coco_stuff_dir: Path
    pascal_context_dir: Path
    truth_dir: Path
    category_names: tuple[str, ...]
    stuff_category_names: tuple[str, ...]


def _locate(root: Path) -> World:
    return World(
        root=root,
        imagenet_dir=root / layouts.ImageNetLayout.name,
        pass_dir=root / layouts.PassLayout.name,
        coco_dir=root / layouts.CocoLayout.name,
        voc_dir=root / layouts.VocLayout.name,
        cityscapes_dir=root / layouts.CityscapesLayout.name,
        coca_dir=root / layouts.CocaLayout.name,
        imagenet_s_dir=root / layouts.ImageNetSLayout.name,
        captions_dir=root / layouts.CaptionLayout.name,
        stuff_index_dir=root / stuff_layouts.StuffIndexLayout.name,
        stuff_dir=root / stuff_layouts.StuffValLayout.folder,
        cityscapes_stuff_dir=root / stuff_layouts.CityscapesStuffLayout.name,
        kitti_dir=root / stuff_layouts.KittiStepLayout.name,
        coco_stuff_dir=root / stuff_layouts.CocoStuffLayout.name,
        pascal_context_dir=root / stuff_layouts.PascalContextLayout.name,
        truth_dir=root / "truth",
        category_names=CATEGORY_NAMES,
        stuff_category_names=STUFF_CATEGORY_NAMES,
    )


def make_world(
    root: str | Path,
    *,
    imagenet_s_categories: int = 50,
    image_size: int = 128,
    seed: int = 0,
    num_workers: int = 2,
    **counts: int,
) -> World:
    """Write a world of real files; parts that are complete are left alone.

    Args:
        root: folder, made if missing.
        imagenet_s_categories: which ImageNet-S the part ``num_imagenet_s`` is like: 50, 300 or 919.
        image_size: shorter side of the pictures.
        seed: number of the world; the same seed gives the same bytes.
        num_workers: processes; 0 works in this one.
        **counts: how many pictures of each part, by the keys of ``PARTS``, which says what they are; 0 if not given.

    Returns:
        Where everything is.

    Raises:
        TypeError: if there is no such part.
        DataError: if the folder holds a world of other settings.
        UserError: if the disk is full or the folder cannot be written.
    """
    if unknown := sorted(set(counts) - set(PARTS)):
        raise TypeError(f"make_world() knows no part {unknown[0]!r}: choose from {', '.join(PARTS)}")
    root = Path(root)
    _check_settings(root, {"format": _FORMAT, "image_size": image_size, "seed": seed})
    with _mapper(num_workers) as run:
        for name, part in PARTS.items():
            if counts.get(name):
                is_sized = part.layout is layouts.ImageNetSLayout
                options = {"num_categories": imagenet_s_categories} if is_sized else {}
                _write_layout(part.layout(root, counts[name], image_size, seed, **options), run)
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
    names = {"categories": list(CATEGORY_NAMES), "stuff_categories": list(STUFF_CATEGORY_NAMES)}
    write_json(path, settings | names)


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
    step = 1 if isinstance(layout, layouts.CaptionLayout) else _CHUNK
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
        layout_name: "ImageNet2012", "pass" or "stuff_index".

    Returns:
        File name -> its named things, and in stuff its grounds, each with ``category``, ``size`` and ``counts`` (COCO
        compressed RLE).

    Raises:
        DataError: if the file is missing or not JSON.
    """
    return read_json(world.truth_dir / f"{layout_name}.json", what="truth of an index dataset")
