"""The bilateral solver, against the plain way that sorts float hashes, multiplies sparse matrices and labels regions.

The plain way follows the original's steps, with those whose results SelfMask throws away: hole filling, component
labelling and counting the pixels of every region. Both ways are checked to give the same mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

from benchmarks.harness import Context, Measurement, benchmark
from pseudo_labels.bilateral_solver import SolverSettings, solve
from pseudo_labels.colour_grid import COLOUR_MATRIX, COLOUR_OFFSETS

HEIGHT, WIDTH = 512, 682


@benchmark("bilateral")
def measure(context: Context) -> Iterator[Measurement]:
    """Time and memory of one solution at the size of a 3:4 photograph."""
    image, target = make_picture(HEIGHT, WIDTH)
    result, plain_soft = solve(image, target), plain_solver(image, target)[0]
    if np.abs(result.soft - plain_soft).max() > 1e-9:
        raise RuntimeError("the two ways of solving disagree")
    ours, plain = context.time_pair(lambda: solve(image, target), lambda: plain_solver(image, target))
    yield Measurement(
        name="bilateral",
        workload=f"{HEIGHT}x{WIDTH}, {result.num_vertices} vertices",
        seconds=ours.seconds,
        spread=ours.spread,
        plain_seconds=plain.seconds,
        limit="conjugate gradients and blur: their sparse products alone",
        limit_seconds=_sparse_product_seconds(context, result.num_vertices),
        peak_mib=context.peak_memory(lambda: solve(image, target)),
        plain_peak_mib=context.peak_memory(lambda: plain_solver(image, target)),
    )


def _sparse_product_seconds(context: Context, num_vertices: int) -> float:
    """Time of the 37 products with a matrix of this many rows and about six entries in each."""
    near = sparse.diags_array([1.0] * 6, offsets=[-40, -2, -1, 0, 1, 2], shape=(num_vertices, num_vertices)).tocsr()
    vector = np.ones(num_vertices)
    return 37 * context.time(lambda: near @ vector).seconds


def make_picture(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A picture with detail at many scales and noise, RGB uint8 (H, W, 3), and a rough mask of its object (H, W)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for cells in (4, 8, 16, 48, 160):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        image += np.asarray(noise.resize((width, height), Image.Resampling.BILINEAR)) / (1 + cells / 32)
    image += rng.normal(0, 5, image.shape)
    image = (image - image.min()) / (image.max() - image.min()) * 255
    rows, columns = np.mgrid[:height, :width]
    inside = ((rows - height / 2) / (height / 3)) ** 2 + ((columns - width / 2) / (width / 4)) ** 2 < 1
    image[inside] = 0.6 * image[inside] + (100, 40, 10)
    coarse = inside[:: max(1, height // 64), :: max(1, width // 64)]
    mask = Image.fromarray(np.roll(coarse, 1, axis=1)).resize((width, height), Image.Resampling.NEAREST)
    return np.clip(image, 0, 255).astype(np.uint8), np.asarray(mask)


def plain_solver(image: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Soft mask (H, W) and the map of the second largest region, step by step as the specification words them."""
    settings = SolverSettings()
    height, width = target.shape
    splat, blurs = _plain_grid(image, settings)
    num_vertices, num_pixels = splat.shape

    def blur(values: np.ndarray) -> np.ndarray:
        result = 2 * len(blurs) * values
        for matrix in blurs:
            result = result + matrix.dot(values)
        return result

    mass, scale = splat.dot(np.ones(num_pixels)), np.ones(num_vertices)
    for _ in range(settings.bistochastic_iterations):
        scale = np.sqrt(scale * mass / blur(scale))
    diagonal_n, diagonal_m = sparse.diags_array(scale), sparse.diags_array(scale * blur(scale))
    blur_matrix = sum(blurs, 2 * len(blurs) * sparse.eye_array(num_vertices))
    confidence = np.full(num_pixels, settings.confidence)
    weight = splat.dot(confidence)
    smooth = diagonal_m - diagonal_n.dot(blur_matrix.dot(diagonal_n))
    matrix = settings.smoothness * smooth + sparse.diags_array(weight)
    right_side = splat.dot(target.reshape(-1) * confidence)
    jacobi = sparse.diags_array(1 / np.maximum(matrix.diagonal(), settings.diagonal_floor))
    values, _ = cg(
        *(matrix, right_side),
        x0=right_side / weight,
        M=jacobi,
        rtol=settings.tolerance,
        maxiter=settings.max_iterations,
    )
    soft = splat.T.dot(values).reshape(height, width)
    return soft, _plain_second_region(soft)


def _plain_grid(image: np.ndarray, settings: SolverSettings) -> tuple[sparse.csr_matrix, list[sparse.csr_matrix]]:
    """Splat matrix and one neighbour matrix per axis, vertices found by sorting floating-point hashes."""
    height, width = image.shape[:2]
    colours = image.reshape(-1, 3).astype(np.float64) @ np.array(COLOUR_MATRIX).T + np.array(COLOUR_OFFSETS)
    rows, columns = np.mgrid[:height, :width]
    place = np.stack([columns.reshape(-1), rows.reshape(-1)], axis=1) / settings.sigma_spatial
    colours /= np.array([settings.sigma_luma, settings.sigma_chroma, settings.sigma_chroma])
    coordinates = np.concatenate([place, colours], axis=1).astype(int)
    powers = 255.0 ** np.arange(5)
    hashes = coordinates @ powers
    unique, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    num_pixels, num_vertices = height * width, len(unique)
    splat = sparse.csr_matrix((np.ones(num_pixels), (inverse, np.arange(num_pixels))), shape=(num_vertices, num_pixels))
    blurs = []
    for axis in range(5):
        total = sparse.csr_matrix((num_vertices, num_vertices))
        for step in (-1, 1):
            moved = coordinates[first].copy()
            moved[:, axis] += step
            wanted = moved @ powers
            found = np.clip(np.searchsorted(unique, wanted), 0, num_vertices - 1)
            exists = np.flatnonzero(unique[found] == wanted)
            entries = (np.ones(len(exists)), (exists, found[exists]))
            total = total + sparse.csr_matrix(entries, shape=(num_vertices, num_vertices))
        blurs.append(total)
    return splat, blurs


def _plain_second_region(soft: np.ndarray) -> np.ndarray:
    """The work whose result SelfMask does not use: fill holes, label, count every region, keep the second largest."""
    labels, num_labels = ndimage.label(ndimage.binary_fill_holes(soft > 0.5))
    sizes = [int((labels == label).sum()) for label in range(num_labels + 1)]
    if len(sizes) < 2:
        return np.ones_like(labels, dtype=bool)
    return labels == np.argsort(sizes)[-2]
