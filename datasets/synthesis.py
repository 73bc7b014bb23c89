"""Training samples by copy-paste: objects of several pictures on the crop of the first one.

Labels come first: the masks alone tell which pixels of which picture remain visible, so that pictures without a visible
pixel are never opened and of the others only the needed part is coloured and blurred. The result is that of the plain
way (augment every picture whole, then paste). Random decisions: `datasets/index_dataset.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from datasets.geometric import CropPlan, GeometricDraws, crop_image, crop_mask, pad_crop, plan_crop
from datasets.photometric import PhotometricDraws, adjust_colours, blur

Box = tuple[int, int, int, int]  # top, left, bottom, right; bottom and right are exclusive
Place = Callable[[int, int], tuple[int, int]]  # free rows and columns (inclusive maxima) -> (top, left)


@dataclass(frozen=True)
class Source:
    """One picture that goes into a sample.

    Attributes:
        read_image: returns the RGB picture, uint8, (H, W, 3), or a smaller one of the same shape; called at most once.
        mask: pseudo-mask of the object, (H, W), non-zero is object.
        label: category id of the object, from 1.
        geometric: how the picture is cropped.
        photometric: how its colours change.
    """

    read_image: Callable[[], np.ndarray]
    mask: np.ndarray
    label: int
    geometric: GeometricDraws
    photometric: PhotometricDraws


@dataclass(frozen=True)
class Sample:
    """One training sample with side S and n drawn objects.

    Attributes:
        image: RGB, uint8, (S, S, 3).
        semantic: category ids, 0 background, `ignore_index` for the padding of the first picture; int16, (S, S).
        instance_masks: bool, (n, S, S); may hold empty masks (objects that were lost or covered).
        category_ids: label of every drawn object, n entries.
    """

    image: np.ndarray
    semantic: np.ndarray
    instance_masks: np.ndarray
    category_ids: tuple[int, ...]


@dataclass(frozen=True)
class Paste:
    """Pixels to copy: those of `mask` from the box `source` to the box `target`, both of the mask's size."""

    source: tuple[slice, slice]
    target: tuple[slice, slice]
    mask: np.ndarray

    def stamp(self, target: np.ndarray, values: np.ndarray | int) -> None:
        """Copy into `target` (S, S, ...), in place, from a map of the same shape, or one value everywhere."""
        if isinstance(values, np.ndarray):
            target[self.target][self.mask] = values[self.source][self.mask]
        else:
            target[self.target][self.mask] = values


def find_objects(semantic: np.ndarray, *, ignore_index: int, background_index: int = 0) -> np.ndarray:
    """Object pixels of a label map: above background, below ignore; bool, same shape."""
    return (semantic > background_index) & (semantic < ignore_index)


def plan_pastes(objects: Sequence[np.ndarray], place: Place) -> list[Paste | None]:
    """Find a place for every object.

    Args:
        objects: object pixels of every picture that is pasted, bool, (S, S) each.
        place: decides the position; asked once for every object that has a pixel, in order.

    Returns:
        One entry per object, None where there is no object pixel.

    Source: ZUTIS spec 7.5-4. # Kept for released weights: the box leaves out the object's last row and column, so
    objects one pixel wide or high paste nothing (they still get a place).
    """
    pastes: list[Paste | None] = []
    for pixels in objects:
        box = _bounding_box(pixels)
        if box is None:
            pastes.append(None)
            continue
        top, left, bottom, right = box
        height, width = bottom - top - 1, right - left - 1
        y, x = place(pixels.shape[0] - height, pixels.shape[1] - width)
        source = (slice(top, top + height), slice(left, left + width))
        pastes.append(Paste(source, (slice(y, y + height), slice(x, x + width)), pixels[source]))
    return pastes


def synthesise_sample(
    sources: Sequence[Source], *, crop_size: int, ignore_index: int, blur_kernel: int, place: Place
) -> Sample:
    """Make one training sample: crop every picture, paste the objects of the later ones onto the first.

    Args:
        sources: the pictures in drawing order; the first is the canvas.
        crop_size: side S of the sample.
        ignore_index: label of the canvas's padding.
        blur_kernel: width of the blur kernel in pixels, odd.
        place: decides where each object goes, see `plan_pastes`.

    Returns:
        The sample.

    Raises:
        ValueError: no source, or an offset outside the scaled picture.

    Source: ZUTIS spec 7.5.
    """
    if not sources:
        raise ValueError("a sample needs at least one picture")
    plans = [plan_crop(source.mask.shape, source.geometric, crop_size) for source in sources]
    contents = [crop_mask(source.mask, plan) != 0 for source, plan in zip(sources, plans, strict=True)]
    objects = [pad_crop(content, plan, False) for content, plan in zip(contents, plans, strict=True)]
    pastes = plan_pastes(objects[1:], place)
    semantic = pad_crop(contents[0] * np.int16(sources[0].label), plans[0], ignore_index)
    instance = objects[0].astype(np.uint16)  # number of the object, from 1
    owner = np.zeros((crop_size, crop_size), np.uint16)  # the picture whose pixel is seen, from 0
    for number, (source, paste) in enumerate(zip(sources[1:], pastes, strict=True), start=1):
        if paste is not None:
            paste.stamp(semantic, source.label)
            paste.stamp(instance, number + 1)
            paste.stamp(owner, number)
    image = _paint(sources, plans, pastes, owner, blur_kernel)
    numbers = np.arange(1, len(sources) + 1, dtype=np.uint16)
    return Sample(image, semantic, instance == numbers[:, None, None], tuple(source.label for source in sources))


def render_crop(
    image: np.ndarray, plan: CropPlan, photometric: PhotometricDraws, *, blur_kernel: int, region: Box | None = None
) -> np.ndarray:
    """Scale, pad, crop, flip and colour a picture, or only a region of the result.

    Args:
        image: RGB, uint8, (H, W, 3).
        plan: the crop.
        photometric: the colour changes.
        blur_kernel: width of the blur kernel in pixels, odd.
        region: part of the finished crop; all of it if None.

    Returns:
        RGB, uint8, the region's size.
    """
    side = plan.crop_size
    top, left, bottom, right = region or (0, 0, side, side)
    margin = blur_kernel // 2 if photometric.blur_sigma is not None else 0
    outer = (max(top - margin, 0), max(left - margin, 0), min(bottom + margin, side), min(right + margin, side))
    content, fill = crop_image(image, plan)
    y, x, _, _ = plan.rect
    seen = _intersect(outer, plan.rect)
    keep = (seen[1] - x, seen[0] - y, seen[3] - x, seen[2] - y) if seen is not None else (0, 0, 1, 1)
    num_fill = side * side - content.width * content.height
    content, fill = adjust_colours(content, photometric, fill=fill, num_fill=num_fill, keep=keep)
    canvas = np.asarray(content)
    if seen != outer:
        canvas = np.empty((outer[2] - outer[0], outer[3] - outer[1], 3), np.uint8)
        canvas[:] = fill
        if seen is not None:
            canvas[seen[0] - outer[0] : seen[2] - outer[0], seen[1] - outer[1] : seen[3] - outer[1]] = content
    canvas = blur(canvas, photometric.blur_sigma, blur_kernel)
    return canvas[top - outer[0] : bottom - outer[0], left - outer[1] : right - outer[1]]


def _paint(
    sources: Sequence[Source],
    plans: Sequence[CropPlan],
    pastes: Sequence[Paste | None],
    owner: np.ndarray,
    blur_kernel: int,
) -> np.ndarray:
    """Bring together the visible pixels of all pictures: uint8, (S, S, 3)."""
    image = np.empty((*owner.shape, 3), np.uint8)
    for number, (source, plan) in enumerate(zip(sources, plans, strict=True)):
        paste = None if number == 0 else pastes[number - 1]
        if number > 0 and paste is None:
            continue
        visible = owner == number if paste is None else owner[paste.target] == number
        box = _bounding_box(visible)
        if box is None:
            continue
        top, left, bottom, right = box
        y, x = (0, 0) if paste is None else (paste.source[0].start, paste.source[1].start)
        region = (y + top, x + left, y + bottom, x + right)
        pixels = render_crop(source.read_image(), plan, source.photometric, blur_kernel=blur_kernel, region=region)
        target = image if paste is None else image[paste.target]
        target = target[top:bottom, left:right]
        shown = visible[top:bottom, left:right]
        if not shown.all():
            # Copies in place: OpenCV writes into the view it is given, many times faster than boolean indexing.
            cv2.copyTo(np.ascontiguousarray(pixels), np.ascontiguousarray(shown).view(np.uint8), target)
        else:
            target[:] = pixels
    return image


def _bounding_box(pixels: np.ndarray) -> Box | None:
    if not pixels.size:
        return None
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(pixels).view(np.uint8))
    return (top, left, top + height, left + width) if width else None


def _intersect(first: Box, second: Box) -> Box | None:
    top, left = max(first[0], second[0]), max(first[1], second[1])
    bottom, right = min(first[2], second[2]), min(first[3], second[3])
    return (top, left, bottom, right) if bottom > top and right > left else None
