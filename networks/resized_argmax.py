"""Arg-max of bilinearly resized score maps without the resized maps.

Between four neighbouring cells the scores are mixtures of those at the cells: a category that is below another one's
minimum at all four can win nowhere between them. Few categories are left per cell, often one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 21, "cuda": 1 << 27}
BUCKETS = (2, 4, 8, 16)


def resized_argmax(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Label every pixel with the category whose resized score is highest.

    Args:
        scores: (B, h, w, N), float32.
        size: (H, W).

    Returns:
        (B, H, W), int64: arg-max over N after a bilinear resize (align_corners false); the first of equal ones.
    """
    maps = [_argmax_between_cells(image, size) for image in scores]
    return torch.stack(maps)


def _axis(num_cells: int, num_pixels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Lower cell of every pixel of a line, and the share of the cell after it."""
    position = (torch.arange(num_pixels, device=device, dtype=torch.float32) + 0.5) * (num_cells / num_pixels) - 0.5
    position = position.clamp(min=0)
    low = position.floor().long().clamp(max=num_cells - 1)
    return low, position - low


def _corners(image: Tensor) -> Tensor:
    """Scores at the four corners of every cell, clamped at the border: (h, w, N) -> (4, h·w, N)."""
    padded = F.pad(image.permute(2, 0, 1), (0, 1, 0, 1), mode="replicate").permute(1, 2, 0)
    corners = (padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:])
    return torch.stack([corner.flatten(0, 1) for corner in corners])


def _argmax_between_cells(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (H, W) of one picture's scores (h, w, N)."""
    height, width, num_categories = image.shape
    corners = _corners(image)
    highest, floor = corners.amax(dim=0), corners.amin(dim=0).amax(dim=1, keepdim=True)
    possible = highest >= floor  # (h·w, N)
    num_possible = possible.sum(dim=1)
    few = num_possible <= BUCKETS[-1]
    if 4 * int(few.sum()) < 3 * len(few):
        return _argmax_direct(image, size)
    (rows, down), (columns, right) = _axis(height, size[0], image.device), _axis(width, size[1], image.device)
    cell = rows[:, None] * width + columns  # (H, W): the cell of every pixel
    labels = possible.byte().argmax(dim=1)[cell]  # right wherever one category is possible
    lower = 1
    for upper in (*BUCKETS, num_categories):
        members = (num_possible > lower) & (num_possible <= upper)
        lower = upper
        y, x = members[cell].nonzero(as_tuple=True)
        chunk = max(CHUNK_ELEMENTS["cuda" if image.is_cuda else "cpu"] // (4 * upper), 1)
        table = _candidates(corners, possible, members, min(upper, num_categories))
        for part_y, part_x in zip(y.split(chunk), x.split(chunk), strict=True):
            labels[part_y, part_x] = _decide(table, cell[part_y, part_x], down[part_y], right[part_x])
    return labels


def _candidates(corners: Tensor, possible: Tensor, members: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For the cells of a bucket: row of each cell, its categories (M, K) ascending, their corner scores (4, M, K)."""
    row = members.cumsum(0) - 1
    # A stable descending sort of 0 and 1 puts the possible categories first, in ascending order.
    categories = possible[members].byte().sort(dim=1, descending=True, stable=True).indices[:, :count]
    values = corners[:, members].gather(2, categories.expand(4, -1, -1))
    impossible = ~possible[members].gather(1, categories)
    return row, categories, values.masked_fill_(impossible, -torch.inf)


def _decide(table: tuple[Tensor, Tensor, Tensor], cell: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Categories of pixels (P,) from their cells and their places inside the cells."""
    row_of_cell, categories, values = table
    row, down, right = row_of_cell[cell], down[:, None], right[:, None]
    upper = values[0, row] * (1 - right) + values[1, row] * right
    lower = values[2, row] * (1 - right) + values[3, row] * right
    # Padding is -inf, and -inf times a share of 0 is NaN: it must lose.
    mixed = (upper * (1 - down) + lower * down).nan_to_num_(nan=-torch.inf, neginf=-torch.inf)
    return categories[row, mixed.argmax(dim=1)]


def _argmax_direct(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The same by resizing all categories, a few at a time: for scores without any order."""
    group = max(CHUNK_ELEMENTS["cuda" if image.is_cuda else "cpu"] // (size[0] * size[1]), 1)
    best, labels = None, None
    for start in range(0, image.shape[2], group):
        part = image[..., start : start + group].permute(2, 0, 1)[None].contiguous()
        values, winners = F.interpolate(part, size=tuple(size), mode="bilinear", align_corners=False)[0].max(dim=0)
        if best is None or labels is None:
            best, labels = values, winners
            continue
        better = values > best  # strictly: the first of equal categories stays
        labels = torch.where(better, winners + start, labels)
        best = torch.where(better, values, best)
    return labels
