"""Connected regions of a label map as instances, for segmenters that know labels only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from evaluation.instances import coco_results, instances_to_records

MIN_SHARE = 0.002  # of a picture's pixels, below which a connected region is no instance


class Region(NamedTuple):
    """A connected region of one category.

    Attributes:
        mask: bool, (H, W).
        score: mean certainty of its pixels.
        category_id: its label.
    """

    mask: np.ndarray
    score: float
    category_id: int


def label_regions(labels: np.ndarray, certainty: np.ndarray, *, min_share: float = MIN_SHARE) -> Iterator[Region]:
    """Find the connected regions (4 neighbours) of a label map, one at a time, background left out.

    Args:
        labels: label of every pixel, whole numbers, (H, W), 0 is background.
        certainty: of every pixel, (H, W).
        min_share: smaller regions are left out.
    """
    from scipy import ndimage

    for category in np.unique(labels[labels > 0]):
        numbers, count = ndimage.label(labels == category)
        areas = np.bincount(numbers.ravel(), minlength=count + 1)
        for number in 1 + np.flatnonzero(areas[1:] >= min_share * labels.size):
            mask = numbers == number
            yield Region(mask, float(certainty[mask].mean()), int(category))


def region_results(labels: np.ndarray, certainty: np.ndarray) -> list[dict[str, Any]]:
    """Regions of a label map as COCO results without `image_id`, as `evaluation.pictures.Segmentation` holds them."""
    records = []
    for region in label_regions(labels, certainty):
        mask, score = torch.from_numpy(region.mask)[None], torch.tensor([region.score])
        records += coco_results(instances_to_records(mask, score, torch.tensor([region.category_id]), with_box=False))
    for record in records:
        del record["image_id"]
    return records
