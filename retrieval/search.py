"""Exact search: the images most similar to each text embedding, over indices of any length.

The index is read once, block by block. A float32 matrix product finds everything that could be among the best, with a
proven bound on its rounding error; those few are then scored again by a sum in a fixed order. So the result is the same
for every block size, number of threads, number of ranks and device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retrieval.index import EmbeddingIndex
from utils.distributed import all_gather_objects, is_initialised, rank, world_size
from utils.errors import DataError

CPU_BLOCK_SIZE = 1024  # a block of converted float32 rows then stays in the cache of a core
GPU_BLOCK_SIZE = 65536
PAIRS_AT_ONCE = 128  # of the exact scoring, for the same reason


class SearchResult(NamedTuple):
    """The best images per text, best first.

    Attributes:
        rows: (K, n) int64, row numbers over all indices in their order; n = min(num_images, number of images).
        scores: (K, n) float32, cosines where both sides have unit length.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


def search(
    text: NDArray[np.float32] | Tensor,
    indices: Sequence[EmbeddingIndex],
    num_images: int,
    *,
    block_size: int | None = None,
    device: torch.device | str = "cpu",
) -> SearchResult:
    """Find the `num_images` most similar images of each text, exactly.

    A score is the inner product summed in float64 in a fixed order and rounded to float32. Equal scores are ordered by
    position, lower rows first. Ranks share the rows, and every rank gets the whole result.

    Args:
        text: (K, D) float32, one row per category.
        indices: searched together; rows count through them in order.
        num_images: images per category.
        block_size: rows per matrix product; a matter of speed alone. By default what suits the device.
        device: where the matrix products run.

    Raises:
        DataError: if the widths differ, there is no image, or an embedding is not finite.
        ValueError: if a number is below 1.

    Shapes: K categories, D width, n images found.
    """
    text = np.ascontiguousarray(torch.as_tensor(text).cpu().numpy(), dtype=np.float32)
    device = torch.device(device)
    if num_images < 1 or (block_size is not None and block_size < 1):
        raise ValueError(f"num_images ({num_images}) and block_size ({block_size}) must be at least 1")
    _check_widths(text, indices)
    block_size = block_size or (CPU_BLOCK_SIZE if device.type == "cpu" else GPU_BLOCK_SIZE)
    total = sum(map(len, indices))
    this, ranks = (rank(), world_size()) if is_initialised() else (0, 1)
    start, stop = total * this // ranks, total * (this + 1) // ranks
    candidates = _Candidates(text, min(num_images, total), device)
    for name, first, block in _blocks(indices, block_size, start, stop):
        if not candidates.add(first, block):
            raise DataError(
                f"{name}: there is an embedding that is not finite near row {first} of the search (of {total}). "
                f"Embed these pictures again."
            )
    categories, rows = candidates.finish()
    scores = _score_exactly(text, indices, categories, rows)
    found = (categories, rows, scores)
    if ranks > 1:
        parts = all_gather_objects(_best(*found, len(text), min(num_images, stop - start)))
        found = tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    _, rows, scores = _best(*found, len(text), min(num_images, total))
    return SearchResult(rows.reshape(len(text), -1), scores.reshape(len(text), -1))


def _check_widths(text: NDArray[np.float32], indices: Sequence[EmbeddingIndex]) -> None:
    if text.ndim != 2 or not np.isfinite(text).all():
        raise DataError(f"search: expected finite (K, D) text embeddings, received shape {text.shape}.")
    for index in indices:
        if index.dim != text.shape[1]:
            raise DataError(
                f"{index.name}: holds embeddings of width {index.dim}, but the text embeddings have {text.shape[1]}. "
                f"They come from different CLIPs: embed the pictures again, or choose the CLIP the index was made with."
            )
    if sum(map(len, indices)) == 0:
        names = ", ".join(index.name for index in indices) or "no index was given"
        raise DataError(f"search: there is no image to search in ({names}).")


def _blocks(
    indices: Sequence[EmbeddingIndex], block_size: int, start: int, stop: int
) -> Iterator[tuple[str, int, NDArray[Any]]]:
    """Name of the index, first row and rows of each block between rows start .. stop, counted through all indices."""
    offset = 0
    for index in indices:
        low, high = max(start - offset, 0), min(stop - offset, len(index))
        if low < high:
            for first, block in index.blocks(block_size, low, high):
                yield index.name, offset + first, block
        offset += len(index)


class _Candidates:
    """Collects all (category, row) pairs that may be among the best n of their category.

    A float32 inner product over D terms is off by at most `factor * |text| * |image|`. A pair is dropped only if n
    others of its category are better beyond doubt.
    """

    def __init__(self, text: NDArray[np.float32], num_images: int, device: torch.device) -> None:
        self.text = torch.from_numpy(text).to(device)
        self.num_images, self.device = num_images, device
        norms = np.linalg.norm(text.astype(np.float64), axis=1)
        # On a GPU, or with a lowered matmul precision, inputs may be rounded to TF32 or bfloat16 (8 bits).
        is_exact = device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
        factor = (text.shape[1] + 8) * 2.0**-23 + (0.0 if is_exact else 2.0**-7)
        self.doubt = torch.from_numpy(norms * factor).float().to(device) * 1.0001  # (K,)
        self.threshold = torch.full((len(text),), -torch.inf, device=device)
        self.found: list[tuple[NDArray[Any], ...]] = []  # category, row, score, and how far that may be off
        self.num_found = 0
        self.limit = max(4 * len(text) * num_images, 1 << 16)
        self._images = self._scores = torch.empty(0)

    def add(self, first: int, block: NDArray[Any]) -> bool:
        """Look at one block of rows, (b, D), that begins at row `first`; False if it is not finite."""
        images = self._to_float(block)
        doubt = self.doubt * torch.linalg.vector_norm(images, dim=1).max()  # (K,)
        if not torch.isfinite(doubt).all():
            return False
        scores = self._score(images)
        places = _at_least(scores, self.threshold - doubt)
        if len(places) > self.limit and len(scores) > self.num_images:
            lower = scores.topk(self.num_images, dim=0).values[-1] - doubt
            self.threshold = torch.maximum(self.threshold, lower)
            places = _at_least(scores, self.threshold - doubt)
        near = (scores.flatten()[places], doubt[places % len(self.text)])
        places = places.cpu().numpy()
        rows, categories = np.divmod(places, len(self.text))
        self.found.append((categories, rows + first, *(values.cpu().numpy() for values in near)))
        self.num_found += len(places)
        if self.num_found > self.limit:
            self._tighten()
            self.limit = max(self.limit, 2 * self.num_found)
        return True

    def _to_float(self, block: NDArray[Any]) -> Tensor:
        """The block as float32 on the device; on the CPU the same memory is used again for every block."""
        source = torch.from_numpy(np.require(block, requirements=["C", "W"]))
        if self.device.type != "cpu":
            return source.to(self.device, non_blocking=True).float()
        if len(source) > len(self._scores):
            self._scores = torch.empty(len(source), len(self.text))
            self._images = torch.empty(source.shape)
        return source if source.dtype == torch.float32 else self._images[: len(source)].copy_(source)

    def _score(self, images: Tensor) -> Tensor:
        """(b, D) images -> (b, K) scores."""
        if self.device.type != "cpu":
            return images @ self.text.T
        return torch.mm(images, self.text.T, out=self._scores[: len(images)])

    def _tighten(self) -> None:
        """Raise the thresholds to what is known now, and drop the pairs below them."""
        categories, rows, scores, doubts = (np.concatenate(parts) for parts in zip(*self.found, strict=True))
        order = np.argsort(doubts - scores)
        narrow = np.uint16 if len(self.text) < 1 << 16 else np.int64  # numpy sorts 16 bits by radix
        order = order[np.argsort(categories[order].astype(narrow), kind="stable")]
        counts = np.bincount(categories, minlength=len(self.text))
        place = np.cumsum(counts) - counts + self.num_images - 1  # of the n-th best of each category
        lower = (scores - doubts)[order[np.minimum(place, len(order) - 1)]]
        lower = np.where(counts >= self.num_images, lower, np.float32(-np.inf))
        threshold = np.maximum(self.threshold.cpu().numpy(), lower)
        kept = scores + doubts >= threshold[categories]
        self.found = [(categories[kept], rows[kept], scores[kept], doubts[kept])]
        self.num_found = int(kept.sum())
        self.threshold = torch.from_numpy(threshold).to(self.device)

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Category and row of every remaining pair."""
        if not self.found:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        if any(len(part[0]) for part in self.found):
            self._tighten()
        return self.found[0][:2]


def _at_least(scores: Tensor, threshold: Tensor) -> Tensor:
    """Flat places of the scores (b, K) that reach the threshold (K,), (m,) int64; numpy is faster on the CPU."""
    if scores.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(scores.numpy() >= threshold.numpy()))
    return (scores >= threshold).flatten().nonzero().flatten()


def _score_exactly(
    text: NDArray[np.float32],
    indices: Sequence[EmbeddingIndex],
    categories: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Scores of single pairs, (m,) float32, each independent of which other pairs are asked for."""
    scores = np.empty(len(rows), np.float32)
    wide_text = torch.from_numpy(text.astype(np.float64))
    order = np.lexsort((rows, categories))
    starts = np.cumsum([0, *map(len, indices)])
    owners = np.searchsorted(starts, rows, side="right") - 1
    changes = np.flatnonzero(np.diff(categories[order]) | np.diff(owners[order])) + 1
    for run in np.split(order, changes):  # pairs of one category and one index
        for begin in range(0, len(run), PAIRS_AT_ONCE):
            pairs = run[begin : begin + PAIRS_AT_ONCE]
            owner = owners[pairs[0]]
            images = torch.from_numpy(indices[owner].take(rows[pairs] - starts[owner])).double()
            products = images.mul_(wide_text[categories[pairs[0]]])  # exact: 24 + 24 bits fit into 53
            scores[pairs] = _sum_in_fixed_order(products).numpy().astype(np.float32)
    return scores


def _sum_in_fixed_order(values: Tensor) -> Tensor:
    """Row sums, (m, D) -> (m,), by halving; library sums may change their order with the shape."""
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        folded = values[:, :half] + values[:, half : 2 * half]
        values = folded if values.shape[1] % 2 == 0 else torch.cat((folded, values[:, -1:]), dim=1)
    return values[:, 0]


def _best(
    categories: NDArray[np.int64],
    rows: NDArray[np.int64],
    scores: NDArray[np.float32],
    num_categories: int,
    num_images: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The first n pairs of each category by (score descending, row ascending), category by category."""
    order = np.lexsort((rows, -scores, categories))
    counts = np.bincount(categories, minlength=num_categories)
    starts = np.cumsum(counts) - counts
    kept = order[(np.arange(len(order)) - np.repeat(starts, counts)) < num_images]
    return categories[kept], rows[kept], scores[kept]
