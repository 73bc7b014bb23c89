"""Arg-max of bilinearly resized score maps without the resized maps.

Between four neighbouring cells the scores are mixtures of those at the cells. Where one category wins at all four, it
wins everywhere between them: one look at every score decides most pixels. Between other cells a category that is below
another one's minimum at all four can win nowhere; few categories are left there, often two.
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
    maps = [_argmax_of_image(image, size) for image in scores]
    return torch.stack(maps)


def _argmax_of_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (H, W) of one picture's scores (h, w, N)."""
    height, width, num_categories = image.shape
    winners = image.argmax(dim=2)
    corners = F.pad(winners[None].float(), (0, 1, 0, 1), mode="replicate")[0]  # whole numbers below 2^24 stay exact
    neighbours = (corners[:-1, 1:], corners[1:, :-1], corners[1:, 1:])
    contested = torch.stack([corners[:-1, :-1] != other for other in neighbours]).any(dim=0)  # (h, w)
    if 2 * int(contested.sum()) > contested.numel():
        return _argmax_direct(image, size)
    rows, down = _axis(height, size[0])
    columns, right = (values.to(image.device) for values in _axis(width, size[1]))
    labels = winners[rows.to(image.device)[:, None], columns]
    strip = max(_chunk_elements(image) // (4 * width * num_categories), 1)  # rows of cells that are looked at together
    for top in range(0, height, strip):
        bottom = min(top + strip, height)
        # Rows of pixels that lie between these rows of cells.
        start, stop = (int(edge) for edge in torch.searchsorted(rows, torch.tensor([top, bottom])))
        y, x = contested[rows[start:stop].to(image.device)[:, None], columns].nonzero(as_tuple=True)
        if len(y) > 0:
            shares = down[start:stop].to(image.device)[y], right[x]
            cell = rows[start:stop].to(image.device)[y] * width + columns[x]
            labels[start + y, x] = _contest(image, contested, (top, bottom), cell, shares)
    return labels


def _axis(num_cells: int, num_pixels: int) -> tuple[Tensor, Tensor]:
    """Lower cell of every pixel of a line, and the share of the cell after it; on the CPU."""
    position = (torch.arange(num_pixels, dtype=torch.float32) + 0.5) * (num_cells / num_pixels) - 0.5
    position = position.clamp(min=0)
    low = position.floor().long().clamp(max=num_cells - 1)
    return low, position - low


def _contest(
    image: Tensor, contested: Tensor, rows: tuple[int, int], cell: Tensor, shares: tuple[Tensor, Tensor]
) -> Tensor:
    """Categories of pixels (P,) between contested cells, from their cells and their places inside these."""
    y, x = contested[rows[0] : rows[1]].nonzero(as_tuple=True)
    y = y + rows[0]
    row_of_cell = torch.zeros(contested.numel(), dtype=torch.int64, device=image.device)
    row_of_cell[y * image.shape[1] + x] = torch.arange(len(y), device=image.device)
    after_y, after_x = (y + 1).clamp_(max=image.shape[0] - 1), (x + 1).clamp_(max=image.shape[1] - 1)
    corners = torch.stack([image[y, x], image[y, after_x], image[after_y, x], image[after_y, after_x]])  # (4, M, N)
    row, labels = row_of_cell[cell], torch.empty_like(cell)
    possible = corners.amax(dim=0) >= corners.amin(dim=0).amax(dim=1, keepdim=True)  # (M, N)
    num_possible, lower = possible.sum(dim=1), 0
    for upper in (*BUCKETS, image.shape[2]):
        members = (num_possible > lower) & (num_possible <= upper)
        lower = upper
        pixels = members[row].nonzero()[:, 0]
        if len(pixels) == 0:
            continue
        table = _candidates(corners, possible, members, min(upper, image.shape[2]))
        for part in pixels.split(max(_chunk_elements(image) // (4 * upper), 1)):
            labels[part] = _decide(table, row[part], shares[0][part], shares[1][part])
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
    group = max(_chunk_elements(image) // (size[0] * size[1]), 1)
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


def _chunk_elements(x: Tensor) -> int:
    return CHUNK_ELEMENTS["cuda" if x.is_cuda else "cpu"]
