"""Co-segmentation against the whole matrix written out, its windows, weights, and pictures without anything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pseudo_labels import cosegmentation
from pseudo_labels.cosegmentation import best_matches, cosegment, find_seeds, position_weights


def make(k: int, h: int = 3, w: int = 4, width: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(k, width, h, w, generator=generator)
    return features, torch.rand(k, h, w, generator=generator) * 0.9 + 0.05


def plain_scores(features: Tensor, weights: Tensor, window: str) -> Tensor:
    """Mean best match of every position, from the whole adjacency matrix: (k·P,)."""
    k, num_positions = len(features), features[0, 0].numel()
    unit = F.normalize(features.flatten(2), dim=1).transpose(1, 2).flatten(0, 1).double()
    adjacency = (unit @ unit.T) * weights.flatten().double()
    columns = []
    for i in range(k):
        last = 2 * i + 1 if window == "published" else i + 1
        columns.append(adjacency[:, i * num_positions : last * num_positions].amax(dim=1))
    return torch.stack(columns, dim=1).mean(dim=1)


@pytest.mark.parametrize("window", ["published", "own"])
@pytest.mark.parametrize("chunk", [1, 12 * 12 * 7 * 2, 12 * 12 * 7 * 3, 1 << 23])
@pytest.mark.parametrize("k", [1, 2, 7])
def test_seeds_are_those_of_the_whole_matrix(monkeypatch, window, chunk, k) -> None:
    monkeypatch.setitem(cosegmentation.CHUNK_ELEMENTS, "cpu", chunk)
    for seed in range(4):
        features, weights = make(k, seed=seed)
        scores = plain_scores(features, weights, window).view(k, -1)
        seeds = find_seeds(features, weights, window=window)
        assert seeds.dtype == torch.int64
        found = scores.gather(1, seeds[:, None])[:, 0]
        assert torch.allclose(found, scores.amax(dim=1), atol=1e-6)
        assert len(seeds) == k


def test_the_windows_differ() -> None:
    pairs = [(find_seeds(*make(7, seed=s)), find_seeds(*make(7, seed=s), window="own")) for s in range(5)]
    assert any(not torch.equal(published, own) for published, own in pairs)
    with pytest.raises(ValueError, match="window must be one of published, own, not 'both'"):
        find_seeds(*make(2), window="both")


def test_best_matches_scale_columns_only() -> None:
    features, weights = make(3)
    unit = F.normalize(features.flatten(2), dim=1).transpose(1, 2)
    weights = weights.flatten(1)
    weights[1] = 0  # positions that never match, but may be seeds
    expected = (unit.flatten(0, 1) @ unit.flatten(0, 1).T * weights.flatten()).view(36, 3, 12).amax(dim=2)
    assert torch.allclose(best_matches(unit, weights), expected, atol=1e-6)


def test_a_planted_object_is_found_in_every_picture() -> None:
    features, _ = make(6, 5, 5, 64)
    places = torch.tensor([3, 7, 24, 0, 11, 19])
    thing = torch.randn(64, generator=torch.Generator().manual_seed(9)) * 3
    for number, place in enumerate(places):
        features[number].flatten(1)[:, place] = thing * (number + 1)  # of any length
    found = cosegment(features)
    assert torch.equal(found.seeds, places)
    assert torch.allclose(found.reference, F.normalize(thing, dim=0), atol=1e-6)
    assert found.weights.eq(1).all()


def test_longer_seed_features_count_more() -> None:
    features, _ = make(4)
    found = cosegment(features)
    chosen = torch.stack([picture.flatten(1)[:, seed] for picture, seed in zip(features, found.seeds, strict=True)])
    assert torch.allclose(found.reference, F.normalize(chosen.mean(dim=0), dim=0), atol=1e-6)
    assert not torch.allclose(found.reference, F.normalize(F.normalize(chosen).mean(dim=0), dim=0), atol=1e-3)


def test_weights_are_attention_times_what_is_not_context() -> None:
    features, _ = make(2)
    generator = torch.Generator().manual_seed(3)
    dense, text = torch.randn(2, 8, 2, 2, generator=generator), F.normalize(torch.randn(8, generator=generator), dim=0)
    context = F.normalize(torch.randn(3, 16, generator=generator))
    attention = (7 * F.cosine_similarity(dense, text[None, :, None, None])).sigmoid()
    attention = F.interpolate(attention[:, None], (3, 4), mode="bilinear")[:, 0]
    expected = attention
    for vector in context:
        expected = expected * (1 - F.cosine_similarity(features, vector[None, :, None, None]).sigmoid())
    found = position_weights(features, dense_features=dense, text=text, context=context, temperature=7)
    assert torch.allclose(found, expected, atol=1e-6)
    alone = position_weights(features, dense_features=dense, text=text, temperature=7)
    assert torch.allclose(alone, attention, atol=1e-6)
    assert position_weights(features, context=context[:0]).eq(1).all()
    with pytest.raises(ValueError, match="together or not at all"):
        position_weights(features, text=text)


def test_one_position_and_empty_features() -> None:
    found = cosegment(torch.ones(1, 4, 1, 1))
    assert found.seeds.tolist() == [0]
    assert torch.allclose(found.reference, torch.full((4,), 0.5))
    features, weights = make(3)
    features[1] = 0  # a picture in which the encoder sees nothing
    assert torch.isfinite(cosegment(features).reference).all()
    assert find_seeds(features, weights)[1] == 0
