"""The fast bilateral solver: snaps a mask to the edges of its picture.

Pixels are grouped into vertices of a coarse grid over position and colour; the mask is smoothed on that small graph and
read back. The grid lives in `colour_grid.py`; this file holds the linear system and its solution. NumPy and SciPy only,
so worker processes start quickly.

Source: Barron & Poole, "The Fast Bilateral Solver", ECCV 2016, with the constants of the SelfMask release.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from pseudo_labels.colour_grid import ColourGrid, build_grid


@dataclass(frozen=True)
class SolverSettings:
    """Constants of the bilateral solver; the defaults are those of the published pseudo-masks."""

    sigma_spatial: float = 16  # pixels per grid cell
    sigma_luma: float = 16  # luma levels (of 256) per grid cell
    sigma_chroma: float = 8  # chroma levels (of 256) per grid cell
    smoothness: float = 256  # weight of smoothness against fidelity to the mask
    confidence: float = 0.999  # weight of every pixel of the mask
    tolerance: float = 1e-5  # the residual, relative to the right-hand side, at which the solver stops
    max_iterations: int = 25  # conjugate-gradient steps at most
    diagonal_floor: float = 1e-5  # smallest value of the preconditioner's diagonal
    bistochastic_iterations: int = 10  # normalisation steps of the blur

    def __post_init__(self) -> None:
        for name in ("sigma_spatial", "sigma_luma", "sigma_chroma", "smoothness", "confidence", "diagonal_floor"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, received {getattr(self, name)!r}")


@dataclass(frozen=True)
class SolverResult:
    """What the solver found.

    Attributes:
        soft: smoothed mask, (H, W), float64, about 0 to 1.
        num_vertices: number V of occupied grid vertices.
        diagonal_n: diagonal of the bistochastisation matrix D_n, (V,), vertices in ascending order of the
            original's hash.
        diagonal_m: diagonal of D_m, (V,), same order.
        num_iterations: conjugate-gradient steps that were taken.
    """

    soft: NDArray[np.float64]
    num_vertices: int
    diagonal_n: NDArray[np.float64]
    diagonal_m: NDArray[np.float64]
    num_iterations: int


def solve(
    reference: NDArray[np.uint8], target: NDArray[np.generic], settings: SolverSettings | None = None
) -> SolverResult:
    """Smooth a mask along the colours of its picture.

    Args:
        reference: RGB picture, (H, W, 3), uint8.
        target: mask of the same size, (H, W), bool or numbers in [0, 1].
        settings: constants; the published ones if None.

    Returns:
        The soft mask with the size of the grid and its two diagonals.

    Raises:
        ValueError: if the shapes or the type of the picture are not as above.
    """
    settings = settings or SolverSettings()
    if reference.ndim != 3 or reference.shape[2] != 3 or reference.dtype != np.uint8 or not reference.size:
        raise ValueError(f"reference must be uint8 (H, W, 3), received {reference.dtype} {reference.shape}")
    if target.shape != reference.shape[:2]:
        raise ValueError(f"target {target.shape} and reference {reference.shape[:2]} differ in size")
    grid = build_grid(reference, settings.sigma_spatial, settings.sigma_luma, settings.sigma_chroma)
    diagonal_n, diagonal_m = _bistochastise(grid, settings.bistochastic_iterations)
    vertex_confidence = settings.confidence * grid.counts
    right_side = settings.confidence * _splat(grid, target)
    matrix = _system(grid, diagonal_n, diagonal_m, vertex_confidence, settings.smoothness)
    values, num_iterations = _conjugate_gradients(matrix, right_side, right_side / vertex_confidence, settings)
    soft = values[grid.vertex_of_pixel].reshape(target.shape)
    order = grid.vertex_of_hash
    return SolverResult(soft, len(order), diagonal_n[order], diagonal_m[order], num_iterations)


def refine_mask(
    reference: NDArray[np.uint8], mask: NDArray[np.generic], settings: SolverSettings | None = None
) -> NDArray[np.bool_]:
    """Snap a mask (H, W) to the edges of its RGB picture (H, W, 3), uint8: where the solver's output is above 0.5.

    Raises:
        ValueError: as `solve`.
    """
    return solve(reference, mask, settings).soft > 0.5


def _splat(grid: ColourGrid, target: NDArray[np.generic]) -> NDArray[np.float64]:
    """Sum the target over the pixels of every vertex, (V,)."""
    flat = target.reshape(-1)
    if flat.dtype == bool or (flat.dtype.kind in "ui" and flat.max() <= 1):
        return np.bincount(grid.vertex_of_pixel[flat.astype(bool)], minlength=len(grid.counts)).astype(np.float64)
    return np.bincount(grid.vertex_of_pixel, weights=flat.astype(np.float64), minlength=len(grid.counts))


def _bistochastise(grid: ColourGrid, num_iterations: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Find the diagonals that make the blur (nearly) bistochastic: D_n and D_m, both (V,)."""
    mass = grid.counts.astype(np.float64)
    scale = np.ones_like(mass)
    for _ in range(num_iterations):
        scale = np.sqrt(scale * mass / (grid.blur @ scale))
    return scale, scale * (grid.blur @ scale)


def _system(
    grid: ColourGrid,
    diagonal_n: NDArray[np.float64],
    diagonal_m: NDArray[np.float64],
    confidence: NDArray[np.float64],
    smoothness: float,
) -> sparse.csr_array:
    """A = λ (D_m − D_n B D_n) + diag(confidence), with the sparsity of the blur B."""
    blur = grid.blur
    rows = np.repeat(diagonal_n, np.diff(blur.indptr))
    data = rows * diagonal_n[blur.indices] * blur.data * -smoothness
    data[blur.indptr[:-1]] += smoothness * diagonal_m + confidence
    return sparse.csr_array((data, blur.indices, blur.indptr), shape=blur.shape)


def _conjugate_gradients(
    matrix: sparse.csr_array, right_side: NDArray[np.float64], start: NDArray[np.float64], settings: SolverSettings
) -> tuple[NDArray[np.float64], int]:
    """Solve the system with a Jacobi preconditioner; stops when ‖b − Ay‖ ≤ tolerance·‖b‖. Returns y and the steps."""
    solution = start.copy()
    residual = right_side - matrix @ solution
    inverse_diagonal = 1.0 / np.maximum(matrix.diagonal(), settings.diagonal_floor)
    limit = settings.tolerance**2 * _dot(right_side, right_side)
    direction, previous = np.zeros_like(residual), 1.0
    scratch = np.empty_like(residual)
    for step in range(settings.max_iterations):
        if _dot(residual, residual) <= limit:
            return solution, step
        preconditioned = np.multiply(inverse_diagonal, residual, out=scratch)
        product = _dot(residual, preconditioned)
        direction *= product / previous
        direction += preconditioned
        image = matrix @ direction
        length = product / _dot(direction, image)
        solution += np.multiply(direction, length, out=scratch)
        residual -= np.multiply(image, length, out=scratch)
        previous = product
    return solution, settings.max_iterations


def _dot(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Scalar product; not by BLAS, which would start threads in every worker process."""
    return float(np.einsum("i,i->", left, right))
