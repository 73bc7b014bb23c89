import numpy as np
import pytest

from pseudo_labels import rle, voting
from pseudo_labels.election import Ballot, VotingSettings, elect_mask, make_candidates
from pseudo_labels.voting import kept_candidates, pairwise_iou, vote


def random_masks(seed: int, num: int = 12, size: tuple[int, int] = (17, 23)) -> np.ndarray:
    """Boxes of all sizes, some spanning the picture, some empty."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((num, *size), bool)
    for mask in masks[: num - 2]:
        top, bottom = sorted(rng.integers(0, size[0] + 1, 2))
        left, right = sorted(rng.integers(0, size[1] + 1, 2))
        mask[top:bottom, left:right] = True
    return masks[rng.permutation(num)]


def plain_keep(masks: np.ndarray, by_area: bool) -> list[int]:
    kept = []
    for index, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        if not len(ys):
            continue
        is_long = (ys.min() == 0 and ys.max() == mask.shape[0] - 1) or (xs.min() == 0 and xs.max() == mask.shape[1] - 1)
        box = (xs.max() - xs.min()) * (ys.max() - ys.min())
        is_odd = by_area and (mask.sum() < 0.05 * mask.size or box > 0.95 * mask.size)
        if not is_long and not is_odd:
            kept.append(index)
    return kept or list(range(len(masks)))


def plain_vote(masks: np.ndarray, kept: list[int]) -> list[float]:
    return [sum((masks[i] & masks[j]).sum() / ((masks[i] | masks[j]).sum() + 1e-7) for j in kept) for i in kept]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("by_area", [False, True])
def test_equals_the_plain_way(seed, by_area):
    masks = random_masks(seed)
    kept = plain_keep(masks, by_area)
    assert kept_candidates(masks, remove_by_area=by_area).tolist() == kept
    sums = plain_vote(masks, kept)
    result = vote(masks.astype(np.uint8), remove_by_area=by_area)
    assert result.kept.tolist() == kept
    assert sums[kept.index(result.winner)] == pytest.approx(max(sums))


def test_nothing_is_dropped_when_everything_would_be():
    masks = np.ones((3, 5, 6), bool)
    masks[1] = False
    assert vote(masks).kept.tolist() == [0, 1, 2]
    assert vote(masks).winner == 0
    assert vote(np.zeros((2, 4, 4))).winner == 0


def test_long_masks_stay_when_they_may():
    masks = np.zeros((2, 6, 6), bool)
    masks[0, :, 2:4] = True
    masks[1, 2:4, 2:4] = True
    assert vote(masks).kept.tolist() == [1]
    assert vote(masks, remove_long_masks=False).kept.tolist() == [0, 1]


def test_first_of_equals_wins_and_order_does_not_matter_otherwise():
    masks = random_masks(3)
    winner = masks[vote(masks).winner]
    order = np.random.default_rng(0).permutation(len(masks))
    assert np.array_equal(masks[order][vote(masks[order]).winner], winner)
    twins = np.stack([masks[0], winner, winner])
    assert vote(twins, remove_long_masks=False).winner == 1


def test_counts_stay_exact_beyond_float32(monkeypatch):
    masks = random_masks(1)
    expected = pairwise_iou(masks)
    monkeypatch.setattr(voting, "_EXACT_FLOAT32", 10)
    assert np.array_equal(pairwise_iou(masks), expected)


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 4), (2, 0, 4)])
def test_refuses_what_is_not_a_set_of_masks(shape):
    with pytest.raises(ValueError, match=r"expected candidate masks of shape \(n, H, W\) with n, H, W > 0"):
        vote(np.zeros(shape))


def two_cell_ballot(grid: tuple[int, int], inside: tuple[slice, slice], cell: float) -> Ballot:
    embedding = np.zeros((*grid, 4))
    embedding[inside] = 1.0
    return Ballot(embedding.reshape(-1, 4), grid, cell)


def test_candidates_have_the_published_order_and_size():
    ballots = [two_cell_ballot((4, 6), (slice(1, 3), slice(1, 3)), 4.0) for _ in range(2)]
    candidates = make_candidates(ballots, (14, 22), VotingSettings())
    assert candidates.shape == (2 * 3 * 2, 14, 22)  # two different points only: two clusters whatever k is
    assert np.array_equal(candidates[0], ~candidates[1])
    assert candidates[1, 4:12, 4:12].all()
    assert candidates[1].sum() == 64


def test_cells_need_not_be_whole_pixels():
    candidates = make_candidates([two_cell_ballot((4, 4), (slice(0, 2), slice(0, 2)), 3.5)], (13, 13), VotingSettings())
    assert candidates[0, :7, :7].all()
    assert candidates[0].sum() == 49


def test_winner_comes_back_at_the_size_of_the_picture():
    ballot = two_cell_ballot((8, 8), (slice(2, 5), slice(2, 5)), 4.0)
    mask = rle.decode(elect_mask([ballot], (32, 32), (64, 48), VotingSettings()))
    assert mask.shape == (64, 48)
    assert mask[20, 14] == 1
    assert mask.sum() == 9 * 16 * 2 * 1.5
