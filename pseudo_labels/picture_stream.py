"""Pictures for the pseudo-mask stage, read and resized by loader processes, in order and in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pseudo_labels.preparation import resize_image
from utils.errors import DataError, UnreadableImageError
from utils.images import read_rgb


class MaskJob(NamedTuple):
    """An image and the file of its mask."""

    image_path: Path
    mask_path: Path


class Picture(NamedTuple):
    """A picture at the size of the network's input, or the reason why there is none.

    Attributes:
        number: row in the list of jobs.
        image: RGB, (h, w, 3), uint8; empty if the image could not be read.
        original_size: (height, width) of the image.
        error: what is wrong with the image, or "".
    """

    number: int
    image: Tensor
    original_size: tuple[int, int]
    error: str


class PictureDataset(Dataset[Picture]):
    """Reads and resizes the images of jobs; an unreadable one gives a `Picture` with its error."""

    def __init__(self, jobs: Sequence[MaskJob], shorter_side: int | None) -> None:
        self.jobs, self.shorter_side = jobs, shorter_side

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, number: int) -> Picture:
        try:
            image = read_rgb(self.jobs[number].image_path)
        except UnreadableImageError as error:
            return Picture(number, torch.empty(0, dtype=torch.uint8), (0, 0), str(error))
        resized = image if self.shorter_side is None else resize_image(image, self.shorter_side)
        return Picture(number, torch.from_numpy(resized.copy()), (image.shape[0], image.shape[1]), "")


def list_jobs(image_paths: Sequence[str | Path], mask_paths: Sequence[str | Path]) -> list[MaskJob]:
    """Pair images with mask files; an image that is named several times is made once.

    Raises:
        ValueError: if the lists differ in length.
        DataError: if two images share one mask file.
    """
    image_of_mask: dict[Path, Path] = {}
    for image, mask in zip(map(Path, image_paths), map(Path, mask_paths), strict=True):
        known = image_of_mask.setdefault(mask, image)
        if known != image:
            raise DataError(
                f"{known} and {image} would share the pseudo-mask {mask}. Rename one, or choose a folder for "
                "pseudo-masks (dir_pseudo_masks), where the names keep their extension."
            )
    return [MaskJob(image, mask) for mask, image in image_of_mask.items()]


def stream_pictures(
    jobs: Sequence[MaskJob], shorter_side: int | None, num_workers: int, pin_memory: bool
) -> Iterator[Picture]:
    """Read the images of jobs in order.

    Args:
        jobs: what to read.
        shorter_side: length in pixels to which the shorter side is brought; None: as it is.
        num_workers: loader processes; 0 reads in this process.
        pin_memory: put pictures into memory from which a GPU copies faster.

    Yields:
        One `Picture` per job.
    """
    dataset = PictureDataset(jobs, shorter_side)
    if not num_workers:
        yield from (dataset[number] for number in range(len(dataset)))
        return
    yield from DataLoader(
        dataset, batch_size=None, num_workers=num_workers, pin_memory=pin_memory, collate_fn=_unchanged
    )


def _unchanged(picture: Picture) -> Picture:
    return picture
