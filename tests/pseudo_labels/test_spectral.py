import numpy as np
import pytest
import scipy.linalg
import torch

from pseudo_labels import spectral
from pseudo_labels.kmeans import cluster_rows, number_by_appearance
from pseudo_labels.spectral import cosine_affinity, smallest_eigenpairs, spectral_embedding, spectral_labels


def block_map(height: int, width: int, regions: list[tuple[slice, slice]], noise: float = 0.02) -> tuple:
    """Features (C, h, w) with one direction per region, and the region of every location."""
    rng = np.random.default_rng(0)
    truth = np.zeros((height, width), np.int64)
    for number, (rows, columns) in enumerate(regions, start=1):
        truth[rows, columns] = number
    directions = np.eye(len(regions) + 1, 16)
    features = directions[truth] + noise * rng.standard_normal((height, width, 16))
    return torch.from_numpy(features).permute(2, 0, 1).float(), truth


REGIONS = [(slice(2, 6), slice(1, 6)), (slice(6, 11), slice(8, 14)), (slice(0, 4), slice(9, 15))]


@pytest.mark.parametrize("k", [2, 3, 4])
def test_recovers_the_blocks(k):
    features, truth = block_map(12, 16, REGIONS[: k - 1])
    (labels,) = spectral_labels(features, [k])
    assert np.array_equal(labels, number_by_appearance(truth))


def test_one_decomposition_serves_all_numbers_of_clusters():
    features, _ = block_map(12, 16, REGIONS)
    together = spectral_labels(features, [2, 3, 4])
    assert all(np.array_equal(a, spectral_labels(features, [k])[0]) for a, k in zip(together, (2, 3, 4), strict=True))


def test_partition_follows_a_transposed_map():
    features, _ = block_map(12, 16, REGIONS)
    plain, turned = spectral_labels(features, [4])[0], spectral_labels(features.transpose(1, 2), [4])[0]
    assert np.array_equal(plain, number_by_appearance(turned.T))


def generalised(features: torch.Tensor, num: int) -> np.ndarray:
    """Eigenvalues by the formula, in float64."""
    unit = torch.nn.functional.normalize(features.double(), dim=1).numpy()
    similarity = unit @ unit.T
    similarity = (similarity - similarity.min()) / (similarity.max() - similarity.min())
    degree = np.diag(similarity.sum(axis=1))
    return scipy.linalg.eigh(degree - similarity, degree, eigvals_only=True)[:num]


@pytest.mark.parametrize("num_locations", [30, 450])  # direct solver, Lanczos
def test_eigenpairs_solve_the_generalised_problem(num_locations):
    features = torch.randn(num_locations, 12, generator=torch.Generator().manual_seed(0))
    affinity = cosine_affinity(features)
    values, vectors = smallest_eigenpairs(affinity, 4)
    assert np.allclose(values, generalised(features, 4), atol=1e-5)
    similarity, degree = affinity.matrix().double().numpy(), affinity.degrees.double().numpy()
    residual = degree[:, None] * vectors - similarity @ vectors - values * degree[:, None] * vectors
    assert np.abs(residual).max() < 1e-4
    assert np.allclose(vectors.T @ (degree[:, None] * vectors), np.eye(4), atol=1e-5)
    again = smallest_eigenpairs(affinity, 4)[1]
    assert np.array_equal(vectors, again)


def test_affinity_is_the_same_in_blocks(monkeypatch):
    features = torch.randn(37, 5, generator=torch.Generator().manual_seed(1))
    whole = cosine_affinity(features)
    monkeypatch.setattr(spectral, "_BLOCK_ENTRIES", 100)
    blocks = cosine_affinity(features)
    assert whole.minimum == pytest.approx(blocks.minimum)
    assert whole.spread == pytest.approx(blocks.spread)
    matrix = whole.matrix()
    assert matrix.min() == pytest.approx(0, abs=1e-6)
    assert matrix.max() == pytest.approx(1, abs=1e-6)
    assert torch.allclose(matrix.sum(dim=1), blocks.degrees, rtol=1e-5)
    assert torch.equal(matrix[3:9], whole.rows(3, 9))


@pytest.mark.parametrize("shape", [(8, 1, 1), (8, 2, 2), (8, 30, 30)])
def test_constant_features_are_one_cluster(shape):
    labels = spectral_labels(torch.full(shape, 0.3), [2, 4])
    assert all(label.shape == shape[1:] and not label.any() for label in labels)
    assert not spectral_labels(torch.zeros(shape), [3])[0].any()


def test_fewer_different_features_than_clusters():
    features, truth = block_map(4, 5, [(slice(0, 2), slice(0, 2))], noise=0.0)
    labels = spectral_labels(features, [2, 3, 4])
    assert np.array_equal(labels[0], number_by_appearance(truth))
    assert all(label.max() <= k - 1 for label, k in zip(labels, (2, 3, 4), strict=True))


def test_more_clusters_than_locations():
    labels = spectral_labels(torch.randn(4, 1, 2, generator=torch.Generator().manual_seed(0)), [4])[0]
    assert labels.shape == (1, 2)
    assert labels.max() <= 1
    assert spectral_embedding(torch.eye(3)[:, :, None], 5).shape == (3, 3)


def test_locations_without_any_feature():
    features, _ = block_map(6, 6, [(slice(0, 3), slice(0, 3))])
    features[:, 5, 5] = 0
    assert all(np.isfinite(spectral_embedding(features, 3)).ravel())


def test_refuses_features_that_are_not_numbers():
    features = torch.ones(2, 3, 3)
    features[0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="the features hold NaN or infinity; check the weights"):
        spectral_labels(features, [2])
    with pytest.raises(ValueError, match=r"expected features of shape \(C, h, w\), received \(3, 3\)"):
        spectral_labels(torch.ones(3, 3), [2])
    with pytest.raises(ValueError, match="numbers of clusters >= 1, received \\[0\\]"):
        spectral_labels(torch.ones(3, 3, 3), [0])


def test_kmeans_is_repeatable_and_numbered_by_appearance():
    rows = np.random.default_rng(0).standard_normal((60, 3))
    labels = cluster_rows(rows, 4)
    assert np.array_equal(labels, cluster_rows(rows, 4))
    first = [int(np.flatnonzero(labels == value)[0]) for value in range(4)]
    assert first == sorted(first)
    assert first[0] == 0
    assert not cluster_rows(rows, 1).any()
    assert len(cluster_rows(rows[:0], 3)) == 0
    assert number_by_appearance(np.array([[7, 7], [2, 9]])).tolist() == [[0, 0], [1, 2]]
