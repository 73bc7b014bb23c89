"""From ReCo's two grids of scores per picture to score maps, labels, or log-probabilities for a CRF.

The grids come from ``reco.py``. Both are enlarged to the picture before they are multiplied, so the product has to be
taken at full size; labels need only a few categories of it at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from networks.interpolation import resize

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}  # of one enlarged group of categories


@dataclass(frozen=True)
class RecoGrids:
    """Scores of every category at the networks' own grids.

    Attributes:
        similarity: sigmoid of the cosine with each reference, (B, N, h, w), float32 in (0, 1).
        attention: dense CLIP's attention to each name, (B, N, h', w'), float32 in (0, 1); None without it.
    """

    similarity: Tensor
    attention: Tensor | None = None

    def __len__(self) -> int:
        return len(self.similarity)

    def part(self, pictures: slice) -> RecoGrids:
        """The grids of some of the pictures."""
        return RecoGrids(self.similarity[pictures], None if self.attention is None else self.attention[pictures])

    def categories(self, rows: slice) -> RecoGrids:
        """The grids of some of the categories."""
        return RecoGrids(self.similarity[:, rows], None if self.attention is None else self.attention[:, rows])


def score_maps(grids: RecoGrids, size: tuple[int, int]) -> Tensor:
    """Scores of every pixel.

    Args:
        grids: of B pictures and N categories.
        size: (H, W) of the result.

    Returns:
        (B, N, H, W), float32 in (0, 1): similarity times attention, each enlarged first (bilinear, not aligned at the
        corners).

    Source: ReCo, section 3.3.
    """
    scores = resize(grids.similarity, size)
    return scores if grids.attention is None else scores.mul_(resize(grids.attention, size))


def log_probabilities(grids: RecoGrids, size: tuple[int, int]) -> Tensor:
    """What the CRF starts from: log-softmax over the categories of the score maps.

    Args:
        grids: of B pictures and N categories; give a few pictures at a time, the result is B·N·H·W numbers.
        size: (H, W) of the result.

    Returns:
        (B, N, H, W), float32. Kept for the published numbers: scores in (0, 1) without any temperature, so the
        probabilities are almost equal.
    """
    return score_maps(grids, size).log_softmax(dim=1)


@torch.no_grad()
def predict_labels(grids: RecoGrids, size: tuple[int, int]) -> Tensor:
    """Label every pixel with the category of the highest score.

    Args:
        grids: of B pictures and N categories.
        size: (H, W) of the result.

    Returns:
        (B, H, W), int64: arg-max of ``score_maps``, the first of equal ones. All score maps never exist together.
    """
    return torch.cat([_label_picture(grids.part(slice(n, n + 1)), size) for n in range(len(grids))])


def _label_picture(grids: RecoGrids, size: tuple[int, int]) -> Tensor:
    """Labels (1, H, W) of one picture, a group of categories after the other."""
    num_categories = grids.similarity.shape[1]
    group = max(CHUNK_ELEMENTS["cuda" if grids.similarity.is_cuda else "cpu"] // (size[0] * size[1]), 1)
    best, labels = score_maps(grids.categories(slice(0, group)), size).max(dim=1)
    for start in range(group, num_categories, group):
        values, winners = score_maps(grids.categories(slice(start, start + group)), size).max(dim=1)
        better = values > best  # strictly: the first of equal categories stays
        labels = torch.where(better, winners + start, labels)
        best = torch.maximum(best, values)
    return labels
