"""The bilateral solver against a second, slow way of writing the same sums."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from pseudo_labels import colour_grid
from pseudo_labels.bilateral_solver import SolverSettings, refine_mask, solve
from pseudo_labels.colour_grid import COLOUR_MATRIX, COLOUR_OFFSETS, build_grid
from tests.pseudo_labels.tiny_selfmask import picture


def dense_solution(image: np.ndarray, target: np.ndarray, settings: SolverSettings) -> np.ndarray:
    """Solve the system of the specification with dense matrices, dictionaries and an exact solver."""
    height, width = image.shape[:2]
    yuv = image.reshape(-1, 3).astype(float) @ np.array(COLOUR_MATRIX).T + np.array(COLOUR_OFFSETS)
    sigmas = np.array([settings.sigma_luma, settings.sigma_chroma, settings.sigma_chroma])
    rows, columns = np.divmod(np.arange(height * width), width)
    place = np.stack([columns, rows], 1) / settings.sigma_spatial
    cells = [tuple(cell) for cell in np.concatenate([place, yuv / sigmas], 1).astype(int).tolist()]
    names = sorted(set(cells), key=lambda cell: cell[::-1])
    number = {cell: i for i, cell in enumerate(names)}
    splat = np.zeros((len(names), len(cells)))
    splat[[number[cell] for cell in cells], np.arange(len(cells))] = 1
    blur = 10 * np.eye(len(names))
    for cell, axis, step in product(names, range(5), (-1, 1)):
        other = tuple(value + step * (i == axis) for i, value in enumerate(cell))
        if other in number:
            blur[number[cell], number[other]] = 1
    mass, n = splat.sum(1), np.ones(len(names))
    for _ in range(settings.bistochastic_iterations):
        n = np.sqrt(n * mass / (blur @ n))
    m = n * (blur @ n)
    matrix = settings.smoothness * (np.diag(m) - np.diag(n) @ blur @ np.diag(n)) + np.diag(settings.confidence * mass)
    values = np.linalg.solve(matrix, settings.confidence * splat @ target.reshape(-1).astype(float))
    return (splat.T @ values).reshape(height, width)


@pytest.mark.parametrize("size", [(40, 56), (33, 17), (1, 1), (1, 70), (90, 2)])
@pytest.mark.parametrize("sigmas", [(16, 16, 8), (7.5, 20, 11.25)])
def test_the_converged_solver_solves_the_dense_system(size: tuple[int, int], sigmas: tuple[float, float, float]):
    image = picture(*size, seed=3)
    target = np.random.default_rng(0).random(size) < 0.4
    settings = SolverSettings(*sigmas, tolerance=1e-12, max_iterations=5000)
    np.testing.assert_allclose(solve(image, target, settings).soft, dense_solution(image, target, settings), atol=1e-8)


def test_published_stopping_rule_is_close_to_the_exact_solution():
    image, target = picture(60, 48, seed=1), np.zeros((60, 48), np.uint8)
    target[20:50, 10:30] = 1
    result = solve(image, target)
    assert 0 < result.num_iterations <= 25
    np.testing.assert_allclose(result.soft, dense_solution(image, target, SolverSettings()), atol=0.02)


def test_every_colour_on_a_border_is_binned_like_the_float64_matrix_product():
    rng, chosen = np.random.default_rng(0), [np.repeat(np.arange(256)[:, None], 3, axis=1)]
    green, blue = np.divmod(np.arange(1 << 16), 256)
    for red in range(256):
        on_border = (299 * red + 587 * green + 114 * blue) % 16000 == 0
        rows = np.union1d(np.flatnonzero(on_border), rng.integers(0, 1 << 16, 300))
        chosen.append(np.stack([np.full(len(rows), red), green[rows], blue[rows]], axis=1))
    image = np.concatenate(chosen).astype(np.uint8)[None]
    assert image.shape[1] > 75_000
    product = image[0].astype(np.float64) @ np.array(COLOUR_MATRIX).T + np.array(COLOUR_OFFSETS)
    expected = (product / np.array([16, 8, 8])).astype(int)
    found = np.stack(colour_grid._colour_bins(image, (16, 8, 8)), -1)
    np.testing.assert_array_equal(found, expected)
    assert (image[0] == (16, 16, 16)).all(1).any()
    assert colour_grid._exact_bin(0x101010, 0, 16) == 0, "exact arithmetic would give 1"


def test_sorting_and_tables_find_the_same_vertices(monkeypatch: pytest.MonkeyPatch):
    image = picture(64, 80, seed=2)
    table = build_grid(image, 16, 16, 8)
    monkeypatch.setattr(colour_grid, "_MAX_TABLE_CELLS", 1)
    sorted_ = build_grid(image, 16, 16, 8)
    np.testing.assert_array_equal(table.vertex_of_pixel, sorted_.vertex_of_pixel)
    assert (table.blur != sorted_.blur).nnz == 0


def test_very_wide_pictures_do_not_mix_their_ends():
    # Cell 255 of the original's hash is cell 0 of the next row; here the two ends stay apart.
    image = np.zeros((2, 4200, 3), np.uint8)
    assert len(build_grid(image, 16, 16, 8).counts) == 263


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_masks_stay_what_they_are(value: int):
    image = picture(50, 40)
    refined = refine_mask(image, np.full((50, 40), value, np.uint8))
    assert refined.dtype == bool
    assert (refined == bool(value)).all()


def test_a_mask_moves_to_the_edge_of_the_picture():
    image = np.full((96, 96, 3), 30, np.uint8)
    image[24:72, 24:72] = (220, 120, 60)
    truth = image[..., 0] > 100
    mask = np.zeros((96, 96), bool)
    mask[28:76, 30:70] = True
    before = (mask & truth).sum() / (mask | truth).sum()
    refined = refine_mask(image, mask)
    assert before < 0.8
    assert (refined & truth).sum() / (refined | truth).sum() > 0.99


def test_kinds_of_targets_agree():
    image, mask = picture(30, 44), np.random.default_rng(1).random((30, 44)) < 0.5
    expected = solve(image, mask).soft
    np.testing.assert_allclose(solve(image, mask.astype(np.uint8)).soft, expected, atol=1e-12)
    np.testing.assert_allclose(solve(image, mask.astype(np.float32)).soft, expected, atol=1e-9)
    assert solve(image, np.full((30, 44), 0.25)).soft == pytest.approx(0.25, abs=1e-3)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"reference must be uint8 \(H, W, 3\), received float64"):
        solve(np.zeros((4, 4, 3)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match=r"target \(4, 5\) and reference \(4, 4\) differ"):
        solve(np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="sigma_luma must be above 0"):
        SolverSettings(sigma_luma=0)
