"""Writing what a segmenter sees in users' own pictures: label maps, overlays, a legend, COCO results, a table.

The segmenter comes in as a function from pictures to one `Segmentation` each, so every system shares this file. It may
take a few pictures ahead and work on them at the same time.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from utils.drawing import legend, outline, overlay
from utils.errors import DataError, UnreadableImageError
from utils.files import atomic_write, write_json
from utils.images import list_pictures, read_picture
from utils.log import get_logger, progress

logger = get_logger(__name__)
OVERLAY_LONG_EDGE = 2048  # overlays are for looking at; label maps keep the picture's own size


@dataclass(frozen=True)
class Segmentation:
    """What was found in one picture.

    Attributes:
        labels: category of every pixel, (H, W), row numbers of the category names, 0 is background.
        instances: COCO result records without `image_id` (`category_id`, `segmentation`, `bbox` xywh, `score`).
    """

    labels: np.ndarray
    instances: list[dict[str, Any]] = field(default_factory=list)


# Pictures, RGB, uint8, (H, W, 3) -> their segmentations, one each and in order.
Segment = Callable[[Iterable[np.ndarray]], Iterator[Segmentation]]


@dataclass
class PictureResult:
    """One line of the table: a picture, what it shows, or why it was refused."""

    path: Path
    size: tuple[int, int] = (0, 0)  # (height, width)
    shares: dict[str, float] = field(default_factory=dict)  # category -> share of the picture's pixels
    num_instances: int = 0
    refusal: str | None = None


def segment_pictures(
    paths: Sequence[str | Path],
    segment: Segment,
    *,
    category_names: Sequence[str],
    palette: np.ndarray,
    output_dir: Path,
) -> list[PictureResult]:
    """Segment every picture below `paths` and write the results.

    For a picture `a/b.jpg` found below a folder argument: `labels/a/b.png` (palette PNG, or 16-bit grey beyond 256
    categories), `overlays/a/b.jpg`; and for all of them `legend.png` (the overlays' colours with number and name of
    each category), `instances.json` (COCO results: records under `annotations` with `images` and `categories` beside
    them, `image_id` counts from 1 in reading order) and `pictures.csv`.

    Args:
        paths: picture files, folders (searched at any depth) or globs.
        segment: see `Segment`. Pictures are read as it takes them, and kept until their segmentation comes: it should
            take a few ahead at most.
        category_names: background first; label i is `category_names[i]`.
        palette: uint8 colours, (number of categories, 3).
        output_dir: made if missing.

    Returns:
        One result per picture, refused ones included.

    Raises:
        DataError: if no picture is found, or none of them can be read.
    """
    pictures = list_pictures([str(path) for path in paths])
    names = output_names(pictures)
    by_number: dict[int, PictureResult] = {}
    under_way: deque[tuple[int, Path, np.ndarray]] = deque()
    images, annotations = [], []
    for found in segment(_read(pictures, under_way, by_number)):
        number, path, picture = under_way.popleft()
        write_labels(output_dir / "labels" / f"{names[path]}.png", found.labels, palette)
        _write_overlay(output_dir / "overlays" / f"{names[path]}.jpg", picture, found, palette)
        images.append({"id": number, "file_name": str(path), "height": picture.shape[0], "width": picture.shape[1]})
        annotations += [{"id": len(annotations) + i, "image_id": number, **r} for i, r in enumerate(found.instances, 1)]
        by_number[number] = _summarise(path, found, category_names)
    results = [by_number[number] for number in range(1, len(pictures) + 1)]
    refused = [result for result in results if result.refusal]
    if len(refused) == len(results):
        if len(results) == 1:
            raise DataError(f"the only picture cannot be read: {refused[0].refusal}")
        raise DataError(f"none of the {len(results)} pictures can be read; the first: {refused[0].refusal}")
    _write_legend(output_dir / "legend.png", category_names, palette)
    categories = [{"id": i, "name": name} for i, name in enumerate(category_names) if i]
    write_json(output_dir / "instances.json", {"images": images, "annotations": annotations, "categories": categories})
    _write_table(output_dir / "pictures.csv", results)
    if refused:
        were = "was" if len(refused) == 1 else "were"
        logger.warning("%d of %d pictures %s refused, see pictures.csv", len(refused), len(results), were)
    logger.info("%s:\n%s\nresults: %s", _counted(len(results), "picture"), format_table(results), output_dir)
    return results


def _read(
    pictures: Sequence[Path], under_way: deque[tuple[int, Path, np.ndarray]], results: dict[int, PictureResult]
) -> Iterator[np.ndarray]:
    """Pictures one after the other, noted down as under way; those that cannot be read have their result at once."""
    for number, path in enumerate(progress(pictures, description="segment", unit="picture"), start=1):
        try:
            picture = read_picture(path)
        except UnreadableImageError as error:
            logger.warning("refused: %s", error)
            results[number] = PictureResult(path, refusal=str(error))
            continue
        under_way.append((number, path, picture))
        yield picture


def paths_below(pictures: Sequence[Path]) -> dict[Path, Path]:
    """Where every picture lies below the deepest folder that holds them all (links followed)."""
    resolved = {path: path.resolve() for path in pictures}
    root = next(iter(resolved.values())).parent
    for path in resolved.values():
        while root not in path.parents:
            root = root.parent
    return {path: target.relative_to(root) for path, target in resolved.items()}


def output_names(pictures: Sequence[Path]) -> dict[Path, str]:
    """A distinct output name without extension for every picture: its path below the folder that holds them all.

    Two pictures that differ by extension alone keep it in the name (`a.jpg` and `a.png` give `a_jpg` and `a_png`). A
    number follows where even that is the name of another picture, or one file is given by two paths.
    """
    below = paths_below(pictures)
    stems = {path: place.with_suffix("").as_posix() for path, place in below.items()}
    folders = {folder.as_posix() for place in below.values() for folder in place.parents}
    shared = Counter(stems.values())

    def is_free(name: str) -> bool:  # `a.png` cannot be a label map and a folder at once
        return not {f"{name}.png", f"{name}.jpg"} & folders

    names = {path: stem for path, stem in stems.items() if shared[stem] == 1 and is_free(stem)}
    taken = set(names.values())
    for path in (path for path in pictures if path not in names):
        base = f"{stems[path]}_{path.suffix[1:]}"
        candidates = chain([base], (f"{base}_{number}" for number in count(2)))
        names[path] = next(name for name in candidates if name not in taken and is_free(name))
        taken.add(names[path])
    return {path: names[path] for path in pictures}


def write_labels(path: Path, labels: np.ndarray, palette: np.ndarray) -> None:
    """Write a label map (H, W) as a PNG: palette colours up to 256 categories, 16-bit grey beyond."""
    if len(palette) <= 256:
        image = Image.fromarray(labels.astype(np.uint8), mode="P")
        image.putpalette(np.asarray(palette, np.uint8).ravel().tolist())
    else:
        image = Image.fromarray(labels.astype(np.uint16))
    with atomic_write(path) as file:
        image.save(file, format="PNG")


def _write_overlay(path: Path, picture: np.ndarray, found: Segmentation, palette: np.ndarray) -> None:
    """Write the picture with its categories coloured and its instances outlined, longest side limited."""
    from pycocotools import mask as coco_mask

    scale = min(1.0, OVERLAY_LONG_EDGE / max(picture.shape[:2]))
    size = (max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale)))
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    labels = np.asarray(Image.fromarray(found.labels.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
    drawn = overlay(small, labels, palette)
    for record in found.instances:
        mask = coco_mask.decode({**record["segmentation"], "counts": record["segmentation"]["counts"].encode("ascii")})
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)) > 0
        drawn = outline(drawn, mask, tuple(int(c) for c in palette[record["category_id"]]))
    with atomic_write(path) as file:
        Image.fromarray(drawn).save(file, format="JPEG", quality=90)


def _write_legend(path: Path, category_names: Sequence[str], palette: np.ndarray) -> None:
    """Write what the colours of the overlays mean; background is not coloured."""
    with atomic_write(path) as file:
        Image.fromarray(legend(category_names[1:], palette[1:], first=1)).save(file, format="PNG")


def _summarise(path: Path, found: Segmentation, category_names: Sequence[str]) -> PictureResult:
    """The table's line of one segmented picture."""
    counts = np.bincount(found.labels.ravel(), minlength=len(category_names))
    shares = {category_names[i]: float(counts[i]) / found.labels.size for i in np.flatnonzero(counts) if i}
    shares = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return PictureResult(path, found.labels.shape, shares, len(found.instances))


def _write_table(path: Path, results: Sequence[PictureResult]) -> None:
    """Write `pictures.csv`: one line per picture."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["picture", "height", "width", "instances", "categories", "refused"])
    for result in results:
        categories = "; ".join(f"{name} {share:.1%}" for name, share in result.shares.items())
        writer.writerow([result.path, *result.size, result.num_instances, categories, result.refusal or ""])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode("utf-8"))


def format_table(results: Sequence[PictureResult]) -> str:
    """The table as text for the terminal: one line per picture, its categories by share of the picture.

    Pictures are called by their paths below the folder that holds them all. Why some were refused was told before.
    """
    below = {path: str(place) for path, place in paths_below([result.path for result in results]).items()}
    width = max(map(len, below.values()))
    lines = []
    for result in results:
        shown = ", ".join(f"{name} {share:.0%}" for name, share in result.shares.items() if share >= 0.005)
        found = f"{shown or 'nothing found'}  [{_counted(result.num_instances, 'instance')}]"
        lines.append(f"  {below[result.path]:<{width}}  {'refused' if result.refusal else found}")
    return "\n".join(lines)


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
