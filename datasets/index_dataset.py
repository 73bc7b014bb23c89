"""Training samples from retrieved pictures and their pseudo-masks; sample i is a pure function of (seed, i).

`IndexDataset` draws what goes into a sample; `datasets/synthesis.py` makes it; `datasets/batch.py` stacks samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from torch.utils.data import Dataset

from datasets.geometric import GeometricDraws, draw_geometric, scaled_size
from datasets.photometric import PhotometricDraws, PhotometricSettings, draw_photometric
from datasets.pictures import read_image_size, read_index_image
from datasets.synthesis import Place, Sample, Source, synthesise_sample
from utils.errors import DataError

Archive = Mapping[str, Sequence[Path]]


@dataclass(frozen=True)
class Pick:
    """One drawn picture and the category in whose list it was found."""

    path: Path
    category: str


class IndexDataset(Dataset[Sample]):
    """Copy-paste training samples from an image archive.

    Any position i >= 0 is valid and gives the same sample on every machine, process and worker; the length is the
    number of retrieved pictures, repetitions included.

    Args:
        archive: category -> retrieved pictures, in the order of the retrieval file.
        categories: all category names of the run **without** background; label = 1 + place in this list.
        mask_path: (picture, category that gives its label) -> its pseudo-mask file.
        read_mask: reads such a file: (H, W), non-zero is object (`pseudo_labels.store.read_mask`).
        image_size: side of a sample in pixels.
        scale_range: pictures are scaled by a factor drawn uniformly from this range.
        ignore_index: label of padding.
        random_duplicate: with probability 1/2 draw all objects of a sample from one category.
        max_num_objects: samples hold 1 to this many drawn objects, uniformly.
        photometric: colour changes; the published ones if None.
        label_rule: a picture retrieved for several categories has the label of the "last" one wherever it was drawn
            (as published), or of the category it was "drawn" from.
        fast_decode: decode JPEGs at 1/2, 1/4 or 1/8 where they are scaled down at least that much. Faster; pixels
            differ by a few levels because libjpeg's averaging replaces a part of the antialiasing.
        seed: of all samples.

    Raises:
        DataError: a category without pictures, or pictures of an unknown category.
        ValueError: settings that no sample can be made with.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        categories: Sequence[str],
        mask_path: Callable[[Path, str], Path],
        read_mask: Callable[[Path], np.ndarray],
        image_size: int = 384,
        scale_range: tuple[float, float] = (0.1, 1.0),
        ignore_index: int = 255,
        random_duplicate: bool = True,
        max_num_objects: int = 10,
        photometric: PhotometricSettings | None = None,
        label_rule: Literal["last", "drawn"] = "last",
        fast_decode: bool = False,
        seed: int = 0,
    ) -> None:
        _check_settings(len(categories), image_size, scale_range, ignore_index, max_num_objects, label_rule, seed)
        self.archive = _check_archive(archive, categories)
        self.mask_path, self.read_mask = mask_path, read_mask
        self.image_size, self.scale_range, self.ignore_index = image_size, tuple(scale_range), ignore_index
        self.random_duplicate, self.max_num_objects = random_duplicate, max_num_objects
        self.photometric = photometric or PhotometricSettings()
        self.label_rule, self.fast_decode, self.seed = label_rule, fast_decode, seed
        self._labels = {name: label for label, name in enumerate(categories, start=1)}
        # Kept for released weights: the last category of a picture in config order wins, wherever it was drawn.
        self._last_categories = {path: name for name in categories for path in archive[name]}
        self._starts = np.cumsum([0, *(len(paths) for paths in self.archive.values())])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, position: int) -> Sample:
        """The sample at any position >= 0.

        Raises:
            DataError: a picture or mask is missing, damaged, or the two differ in size; names the files.
        """
        if position < 0:
            raise IndexError(f"sample positions start at 0, got {position}")
        rng = np.random.default_rng((self.seed, position))
        picks = self.draw_picks(rng)
        masks = [self.read_mask(self._mask_path(pick)) for pick in picks]
        draws = [
            (
                draw_geometric(rng, mask.shape, self.image_size, self.scale_range),
                draw_photometric(rng, self.photometric),
            )
            for mask in masks
        ]
        return self.synthesise(picks, masks, draws, partial(place_randomly, rng))

    def image_label(self, path: Path) -> int:
        """Label of a picture, from 1: that of its last category."""
        return self._labels[self._last_categories[path]]

    def pick(self, index: int, category: str | None = None) -> Pick:
        """The picture at `index` of one category's list, or of all lists one after the other."""
        if category is not None:
            return Pick(self.archive[category][index], category)
        row = int(np.searchsorted(self._starts, index, side="right")) - 1
        category = list(self.archive)[row]
        return Pick(self.archive[category][index - int(self._starts[row])], category)

    def draw_picks(self, rng: np.random.Generator) -> list[Pick]:
        """Decide which pictures go into a sample, in order (spec 7.5-1 to 7.5-3)."""
        num_objects = int(rng.integers(1, self.max_num_objects, endpoint=True))
        category, length = None, len(self)
        if self.random_duplicate and rng.random() > 0.5:
            category = list(self.archive)[rng.integers(len(self.archive))]
            length = len(self.archive[category])
        return [self.pick(int(index), category) for index in rng.integers(length, size=num_objects)]

    def synthesise(
        self,
        picks: Sequence[Pick],
        masks: Sequence[np.ndarray],
        draws: Sequence[tuple[GeometricDraws, PhotometricDraws]],
        place: Place,
    ) -> Sample:
        """Make a sample of given pictures by given decisions.

        Args:
            picks: the pictures in order, the canvas first.
            masks: their pseudo-masks, (H, W) each.
            draws: how each is cropped and coloured.
            place: decides where each object goes, see `synthesis.plan_pastes`.
        """
        sources = [
            Source(
                partial(self.read_image, pick, mask.shape, geometric),
                mask,
                self._labels[self._category(pick)],
                geometric,
                colours,
            )
            for pick, mask, (geometric, colours) in zip(picks, masks, draws, strict=True)
        ]
        return synthesise_sample(
            sources,
            crop_size=self.image_size,
            ignore_index=self.ignore_index,
            blur_kernel=self.photometric.kernel_width(self.image_size),
            place=place,
        )

    def _category(self, pick: Pick) -> str:
        """The category whose label, and whose mask, a drawn picture has."""
        return pick.category if self.label_rule == "drawn" else self._last_categories[pick.path]

    def _mask_path(self, pick: Pick) -> Path:
        return self.mask_path(pick.path, self._category(pick))

    def read_image(self, pick: Pick, mask_size: tuple[int, int], geometric: GeometricDraws) -> np.ndarray:
        """Read a drawn picture and check that it fits its mask; raises DataError naming both files."""
        shrink = _shrink_factor(mask_size, geometric.scale) if self.fast_decode else 1
        image = read_index_image(pick.path, shrink=shrink)
        size = image.shape[:2] if shrink == 1 else read_image_size(pick.path)
        if tuple(size) != tuple(mask_size):
            raise DataError(
                f"{self._mask_path(pick)}: this pseudo-mask is {mask_size[0]}x{mask_size[1]}, but its picture "
                f"{pick.path} is {size[0]}x{size[1]} (height x width). Delete the mask file to have it made again."
            )
        return image


def place_randomly(rng: np.random.Generator, free_rows: int, free_columns: int) -> tuple[int, int]:
    """Position of a pasted object, uniform over all that fit."""
    return int(rng.integers(free_rows, endpoint=True)), int(rng.integers(free_columns, endpoint=True))


def _shrink_factor(size: tuple[int, int], scale: float) -> int:
    """Largest of 8, 4, 2, 1 at which a picture of `size` is still at least as large as it will be scaled to."""
    height, width = scaled_size(size, scale)
    return next((f for f in (8, 4, 2) if size[0] // f >= height and size[1] // f >= width), 1)


def _check_archive(archive: Archive, categories: Sequence[str]) -> dict[str, list[Path]]:
    """A copy in the archive's own order; raises DataError."""
    empty = [name for name in categories if not archive.get(name)]
    if empty:
        raise DataError(
            f"no retrieved picture for {len(empty)} of {len(categories)} categories: {_first(empty)}. "
            "Retrieve again with these names, add pictures to the index, or take the names out of 'categories'."
        )
    unknown = sorted(set(archive) - set(categories))
    if unknown:
        raise DataError(
            f"the image archive holds {len(unknown)} categories that are not among the {len(categories)} of this run: "
            f"{_first(unknown)}. Use the retrieval file made for these categories, or retrieve again."
        )
    return {name: [Path(path) for path in paths] for name, paths in archive.items()}


def _check_settings(
    num_categories: int,
    image_size: int,
    scale_range: tuple[float, float],
    ignore_index: int,
    max_num_objects: int,
    label_rule: str,
    seed: int,
) -> None:
    low, high = scale_range
    if not 0 < low <= high:
        raise ValueError(f"scale_range has to be two factors 0 < low <= high, got {scale_range}")
    if image_size < 1 or max_num_objects < 1 or seed < 0:
        raise ValueError(
            f"image_size and max_num_objects have to be at least 1 and seed at least 0, "
            f"got {image_size}, {max_num_objects} and {seed}"
        )
    if not num_categories < ignore_index < 2**15:
        raise ValueError(
            f"ignore_index has to lie above the {num_categories} labels and below 32768, got {ignore_index}"
        )
    if label_rule not in ("last", "drawn"):
        raise ValueError(f"label_rule is 'last' or 'drawn', got {label_rule!r}")


def _first(names: Sequence[str], limit: int = 10) -> str:
    shown = ", ".join(map(repr, names[:limit]))
    return shown if len(names) <= limit else f"{shown}, ... ({len(names) - limit} more)"
