"""Labels and instances from the segmenter's outputs, against slow and obvious ways of computing them."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks import mask_nms as nms_module
from networks import resized_argmax as argmax_module
from networks.interpolation import bilinear_matrix, resize, resize_adjoint
from networks.mask_nms import mask_nms
from networks.resized_argmax import resized_argmax
from networks.zutis_prediction import predict_instances, predict_semantic


def unit(*shape: int) -> Tensor:
    """Random unit vectors along the last axis."""
    return F.normalize(torch.randn(shape), dim=-1)


def smooth_proposals(batch: int, queries: int, grid: tuple[int, int]) -> Tensor:
    """Soft blobs, (B, Q, h, w)."""
    coarse = torch.randn(batch, queries, 3, 3)
    return (4 * F.interpolate(coarse, size=grid, mode="bicubic")).sigmoid()


@pytest.mark.parametrize(
    ("cells", "pixels"), [((5, 7), (40, 56)), ((5, 7), (33, 41)), ((6, 4), (3, 9)), ((1, 1), (4, 5))]
)
def test_resizing_matrices_and_adjoint(cells: tuple[int, int], pixels: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps, other = torch.rand(3, *cells), torch.rand(3, *pixels)
    rows, columns = (bilinear_matrix(a, b) for a, b in zip(cells, pixels, strict=True))
    assert torch.allclose(rows @ maps @ columns.T, resize(maps, pixels), atol=1e-5)
    assert torch.allclose((resize(maps, pixels) * other).sum(), (maps * resize_adjoint(other, cells)).sum(), rtol=1e-5)


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(("grid", "size"), [((6, 8), (48, 64)), ((7, 5), (52, 43)), ((5, 5), (3, 4)), ((1, 1), (9, 2))])
def test_argmax_of_resized_scores(
    smooth: bool, grid: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    scores = torch.randn(2, *grid, 30)
    if smooth:  # one clear winner in most cells, so that the pruned way is taken
        scores = 0.1 * scores + 3 * F.one_hot(torch.randint(0, 3, (2, 1, 1)).expand(2, *grid), 30)
        scores[:, ::3, ::4] += 3 * F.one_hot(torch.tensor(7), 30)
    expected = F.interpolate(scores.permute(0, 3, 1, 2), size=size, mode="bilinear").argmax(dim=1)
    assert torch.equal(resized_argmax(scores, size), expected)
    monkeypatch.setattr(argmax_module, "CHUNK_ELEMENTS", {"cpu": 64})
    assert torch.equal(resized_argmax(scores, size), expected)


@pytest.mark.parametrize("size", [(4, 4), (9, 13)])
def test_the_first_of_equal_categories_wins(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    scores = torch.randn(1, 4, 4, 3)
    doubled = torch.cat((scores, scores), dim=-1)  # every category has an equal one behind it
    assert torch.equal(resized_argmax(doubled, size), resized_argmax(scores, size))


@pytest.mark.parametrize("kind", ["hard", "linear", "gaussian", None])
@pytest.mark.parametrize("size", [(40, 52), None])
def test_a_batch_gives_what_single_pictures_give(kind: str | None, size: tuple[int, int] | None) -> None:
    torch.manual_seed(2)
    proposals, tokens, text = smooth_proposals(3, 12, (10, 13)), unit(3, 10, 13, 16), unit(4, 16)
    together = predict_instances(proposals, tokens, text, size, nms=kind)
    stacked = torch.stack((torch.rand_like(proposals), proposals), dim=1)  # earlier layers must not count
    for layered, index in zip(predict_instances(stacked, tokens, text, size, nms=kind), range(3), strict=True):
        single = predict_instances(proposals[[index]], tokens[[index]], text, size, nms=kind)[0]
        for a, b, c in zip(together[index], single, layered, strict=True):
            assert torch.equal(a, c)
            assert torch.allclose(a.float(), b.float(), atol=1e-6)
        assert (single.category_ids > 0).all()
        assert single.masks.flatten(1).any(dim=1).all()
    assert sum(len(found.scores) for found in together) > 3


def test_one_query_and_pictures_without_instances() -> None:
    tokens, text = unit(2, 6, 6, 8), unit(3, 8)
    proposals = torch.full((2, 1, 6, 6), 0.2)
    for found in predict_instances(proposals, tokens, text, (20, 30)):
        assert found.masks.shape == (0, 20, 30)
        assert found.scores.shape == found.category_ids.shape == (0,)


def test_a_mask_is_named_by_the_tokens_inside_it() -> None:
    text = torch.eye(4)
    tokens = text[torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 3, 3], [1, 1, 3, 3]])][None]
    proposals = torch.zeros(1, 3, 4, 4)
    proposals[0, 0, :2, 2:], proposals[0, 1, 2:, :2], proposals[0, 2, :2, :2] = 0.9, 0.6, 0.99
    found = predict_instances(proposals, tokens, text)[0]
    assert found.category_ids.tolist() == [1, 2]  # the third is background
    expected = torch.tensor([0.6, 0.9]) / (1 + math.exp(-5))
    assert torch.allclose(found.scores, expected, atol=1e-5)
    assert torch.equal(found.masks[1], proposals[0, 0] > 0.5)


def slow_nms(masks: Tensor, scores: Tensor, kind: str, threshold: float, sigma: float, minimum: float) -> list[tuple]:
    """Suppression of one category, one pair at a time."""
    left = list(zip(masks, scores.tolist(), strict=True))
    kept = []
    while left:
        left.sort(key=lambda pair: pair[1])
        best, best_score = left.pop()
        kept.append((best, best_score))
        remaining = []
        for mask, score in left:
            iou = ((mask & best).sum() / ((mask | best).sum() + 1e-7)).item()
            if kind == "gaussian":
                weight = math.exp(-(iou**2) / sigma)
            else:
                weight = 1.0 if iou <= threshold else (0.0 if kind == "hard" else 1 - iou)
            if score * weight > minimum:
                remaining.append((mask, score * weight))
        left = remaining
    return [(mask, score) for mask, score in kept if mask.any()]


@pytest.mark.parametrize("kind", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("settings", [(0.3, 0.5, 0.001), (0.05, 0.1, 0.3)])
def test_suppression_equals_the_slow_way_in_any_order(kind: str, settings: tuple[float, float, float]) -> None:
    torch.manual_seed(3)
    masks = smooth_proposals(1, 24, (9, 11))[0] > 0.5
    masks[5] = False
    scores, categories = torch.rand(24), torch.randint(0, 3, (24,))
    scores[5] = 0.99  # an empty mask may be picked first; it is dropped only at the end
    threshold, sigma, minimum = settings
    options = {"kind": kind, "iou_threshold": threshold, "sigma": sigma, "score_threshold": minimum}
    found_masks, found_scores, found_categories = mask_nms(masks, scores, categories, **options)
    for category in (1, 2):
        members = categories == category
        expected = slow_nms(masks[members], scores[members], kind, threshold, sigma, minimum)
        mine = found_categories == category
        assert torch.allclose(found_scores[mine], torch.tensor([s for _, s in expected]), atol=1e-5)
        assert torch.equal(found_masks[mine], torch.stack([m for m, _ in expected]))
    order = torch.randperm(24)
    for a, b in zip(mask_nms(masks[order], scores[order], categories[order], **options),
                    (found_masks, found_scores, found_categories), strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_without_numpys_bit_count_the_areas_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = torch.rand(5, 7, 13) > 0.5
    expected = (masks.flatten(1).float() @ masks.flatten(1).float().T).numpy()
    overlaps = nms_module.MaskOverlaps(masks)
    assert (overlaps.intersections(torch.arange(5).numpy()) == expected).all()
    monkeypatch.delattr(nms_module.np, "bitwise_count", raising=False)
    again = nms_module.MaskOverlaps(masks)
    assert (again.areas == expected.diagonal()).all()
    assert (again.intersections(torch.arange(5).numpy()) == expected).all()


def test_no_candidates_at_all() -> None:
    masks, scores, categories = mask_nms(torch.zeros(0, 4, 5, dtype=torch.bool), torch.zeros(0), torch.zeros(0).long())
    assert masks.shape == (0, 4, 5)
    assert len(scores) == len(categories) == 0


def test_wrong_inputs_are_named() -> None:
    proposals, tokens = torch.rand(1, 2, 4, 4), unit(1, 4, 4, 8)
    with pytest.raises(
        ValueError, match=r"text embeddings \(3, 9\) do not fit patch tokens .* expected \(categories, 8\)"
    ):
        predict_semantic(tokens, unit(3, 9), (8, 8))
    with pytest.raises(ValueError, match=r"take both from the same CLIP architecture"):
        predict_instances(proposals, tokens, unit(3, 9))
    with pytest.raises(ValueError, match=r"mask proposals \(1, 2, 4, 4\) and patch tokens \(1, 5, 4, 8\) differ"):
        predict_instances(proposals, unit(1, 5, 4, 8), unit(3, 8))
    with pytest.raises(ValueError, match=r"hard, linear, gaussian or None .* received 'soft'"):
        predict_instances(proposals, tokens, unit(3, 8), nms="soft")
    with pytest.raises(ValueError, match=r"received 2 masks, 1 scores, 2 categories"):
        mask_nms(torch.ones(2, 3, 3, dtype=torch.bool), torch.ones(1), torch.ones(2).long())
