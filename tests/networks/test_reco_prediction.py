"""ReCo's predictions: labels without all score maps, log-probabilities, tiny pictures, what may not be combined."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from networks import reco_prediction
from networks.dense_clip import dense_clip
from networks.patch_encoders import encoder_from_state_dict
from networks.reco import DenseNames, Reco
from networks.reco_prediction import RecoGrids, log_probabilities, predict_labels, score_maps
from networks.vit import VisionTransformer
from tests.networks.tiny_clips import RESNET, VIT, tiny_clip


def grids(batch: int = 2, categories: int = 7, seed: int = 0) -> RecoGrids:
    generator = torch.Generator().manual_seed(seed)
    similarity, attention = (
        torch.rand(batch, categories, 4, 5, generator=generator),
        torch.rand(batch, categories, 2, 3, generator=generator),
    )
    return RecoGrids(similarity, attention)


def reco(categories: int = 5, dimensions=RESNET) -> Reco:
    torch.manual_seed(0)
    encoder = encoder_from_state_dict(
        VisionTransformer(width=64, num_layers=1, patch_size=16, native_grid=4, distilled=True).state_dict()
    )
    references, text = F.normalize(torch.randn(categories, 64)), F.normalize(torch.randn(categories, 32))
    return Reco(encoder, references, tower=dense_clip(tiny_clip(dimensions)), text=text).eval()


@pytest.mark.parametrize("size", [(9, 11), (4, 5), (1, 1), (3, 2)])
@pytest.mark.parametrize("chunk", [1, 99 * 2, 99 * 3, 1 << 20])
def test_labels_are_the_argmax_of_the_product_of_enlarged_maps(monkeypatch, size, chunk) -> None:
    monkeypatch.setitem(reco_prediction.CHUNK_ELEMENTS, "cpu", chunk)
    found = grids()
    enlarged = [F.interpolate(maps, size, mode="bilinear") for maps in (found.similarity, found.attention)]
    scores = score_maps(found, size)
    assert torch.allclose(scores, enlarged[0] * enlarged[1], atol=1e-7)
    labels = predict_labels(found, size)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, scores.argmax(dim=1))
    single = [predict_labels(found.part(slice(n, n + 1)), size) for n in range(2)]
    assert torch.equal(labels, torch.cat(single))
    alone = RecoGrids(found.similarity)
    assert torch.equal(predict_labels(alone, size), enlarged[0].argmax(dim=1))


def test_the_first_of_equal_categories_wins_across_groups(monkeypatch) -> None:
    monkeypatch.setitem(reco_prediction.CHUNK_ELEMENTS, "cpu", 2 * 16)
    equal = RecoGrids(torch.full((1, 9, 2, 2), 0.5), torch.full((1, 9, 1, 1), 0.5))
    assert predict_labels(equal, (4, 4)).eq(0).all()
    equal.similarity[:, 3:] = 0.6
    assert predict_labels(equal, (4, 4)).eq(3).all()


def test_grids_are_not_changed_and_log_probabilities_sum_to_one() -> None:
    found = grids()
    before = found.similarity.clone()
    log = log_probabilities(found, (4, 5))  # the similarity's own size: the resize may return its input
    assert torch.equal(found.similarity, before)
    assert torch.allclose(log.exp().sum(dim=1), torch.ones(2, 4, 5), atol=1e-5)
    assert torch.allclose(log, score_maps(found, (4, 5)).log_softmax(dim=1))


@pytest.mark.parametrize("dimensions", [RESNET, VIT])
@pytest.mark.parametrize("size", [(64, 64), (50, 97), (1, 1), (3, 200)])
@torch.no_grad()
def test_batched_is_single_at_any_size(dimensions, size) -> None:
    network, images = reco(dimensions=dimensions), torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    both = score_maps(network(images), size)
    assert both.shape == (2, 5, *size)
    assert torch.allclose(both, torch.cat([score_maps(network(image[None]), size) for image in images]), atol=1e-5)
    assert ((both > 0) & (both < 1)).all()


@torch.no_grad()
def test_without_dense_clip_the_references_decide() -> None:
    network, images = reco(), torch.randn(1, 3, 64, 48)
    alone = Reco(network.encoder, network.references)
    assert alone.min_size == 16
    assert alone(images).attention is None
    assert torch.equal(alone(images).similarity, network(images).similarity)
    features = F.normalize(network.encoder(images), dim=1)
    cosines = torch.einsum("nd,bdhw->bnhw", network.references, features)
    assert torch.allclose(alone(images).similarity, cosines.sigmoid(), atol=1e-6)


@pytest.mark.parametrize("dimensions", [RESNET, VIT])
def test_dense_clip_alone_is_its_part_of_reco(dimensions) -> None:
    network = reco(dimensions=dimensions)
    alone = DenseNames(network.tower, network.text, temperature=network.temperature)
    images = torch.randn(2, 3, 64, 96)
    assert torch.equal(alone(images).similarity, network(images).attention)
    assert alone(images).attention is None
    tiny = torch.randn(1, 3, 1, 5)  # stretched as far as the tower needs it
    size = (network.tower.min_size, max(network.tower.min_size, 5))
    assert torch.equal(alone(tiny).similarity, alone(F.interpolate(tiny, size, mode="bilinear")).similarity)
    with pytest.raises(ValueError, match=r"text vectors: expected \(N, 32\), received \(5, 64\)"):
        DenseNames(network.tower, network.references)


def test_what_does_not_fit_together_is_refused() -> None:
    network = reco()
    with pytest.raises(ValueError, match=r"references: expected \(N, 64\), received \(5, 63\)"):
        Reco(network.encoder, torch.ones(5, 63))
    with pytest.raises(ValueError, match=r"text vectors: expected \(N, 32\), received \(5, 64\)"):
        Reco(network.encoder, network.references, tower=network.tower, text=network.references)
    with pytest.raises(ValueError, match="5 references but 4 text vectors"):
        Reco(network.encoder, network.references, tower=network.tower, text=network.text[:4])
    with pytest.raises(ValueError, match="together or not at all"):
        Reco(network.encoder, network.references, text=network.text)
