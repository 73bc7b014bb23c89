"""The dense CRF, against the published C++ library where it is installed, else against the specification in NumPy.

The library is `pydensecrf2` of the package index (it needs a C++ compiler); nothing else in this project uses it. Both
ways are checked to give the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.bilateral import make_picture
from benchmarks.harness import Context, Measurement, benchmark
from pseudo_labels.dense_crf import DenseCrfSettings, colour_lattice, dense_crf_labels, place_lattice

SIZE, CLASS_COUNTS, NUMPY_SIZE = 320, (27, 171), 80
SETTINGS = DenseCrfSettings()


@benchmark("dense_crf")
def measure(context: Context) -> Iterator[Measurement]:
    """Time and memory of the labels of one picture, with the classes of Cityscapes and of COCO-Stuff."""
    for num_classes in CLASS_COUNTS:
        yield _measure_one(context, num_classes)


def _measure_one(context: Context, num_classes: int) -> Measurement:
    size, plain_labels, plain_name = find_plain_way()
    image, scores = make_picture(SIZE, SIZE)[0], make_scores(num_classes, SIZE)
    plain_image, plain_scores = make_picture(size, size)[0], make_scores(num_classes, size)
    disagreement = (dense_crf_labels(plain_image, plain_scores) != plain_labels(plain_image, plain_scores)).mean()
    if disagreement > 0.005:
        raise RuntimeError(f"the two ways disagree on {disagreement:.1%} of the labels")
    own_scores = scores if context.device.type == "cpu" else torch.from_numpy(scores).to(context.device)
    ours, plain = context.time_pair(
        lambda: dense_crf_labels(image, own_scores), lambda: plain_labels(plain_image, plain_scores), plain_repeats=2
    )
    return Measurement(
        name="dense_crf",
        workload=f"{SIZE}x{SIZE}, {num_classes} classes, {colour_lattice(image, SETTINGS).num_vertices} vertices",
        seconds=ours.seconds,
        spread=ours.spread,
        plain_seconds=plain.seconds * SIZE**2 / size**2,
        limit="copying the class values that each update reads and writes",
        limit_seconds=context.limits.copy_seconds(value_traffic(image, num_classes) // 2),
        peak_mib=context.peak_memory(lambda: dense_crf_labels(image, own_scores)),
        plain_peak_mib=context.peak_memory(lambda: plain_labels(plain_image, plain_scores)),
        note=f"plain: {plain_name}",
    )


def value_traffic(image: np.ndarray, num_classes: int) -> int:
    """Bytes of class values that must be read or written, if nothing stays in the cache between two steps."""
    pixels = image.shape[0] * image.shape[1]
    place = place_lattice(*image.shape[:2], SETTINGS.gaussian_sxy).num_vertices
    colour = colour_lattice(image, SETTINGS).num_vertices
    # Pixels: read to splat; unary term read and sum written when slicing; softmax reads and writes. Vertices: cleared,
    # read and written by the splat and by each pass of the blur (one per axis; two for colours), read by the slice.
    rows = 5 * pixels + (1 + 2 + 2 * 3 + 1) * place + (1 + 2 + 2 * 2 + 1) * colour
    return SETTINGS.iterations * 4 * num_classes * rows


def make_scores(num_classes: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth scores in (0, 1) as ReCo makes them: two maps of unequal fineness, resized and multiplied, (C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    fine, coarse = (
        torch.sigmoid(strength * torch.randn(1, num_classes, cells, cells, generator=generator))
        for strength, cells in ((1, max(1, size // 16)), (2, max(1, size // 32)))
    )
    fine, coarse = (F.interpolate(maps, size=(size, size), mode="bilinear")[0] for maps in (fine, coarse))
    return (fine * coarse).numpy()


def find_plain_way() -> tuple[int, Callable[[np.ndarray, np.ndarray], np.ndarray], str]:
    """Side of the picture to be timed, the function (image, scores) -> labels, and its name."""
    try:
        import pydensecrf.densecrf
    except ImportError:
        return NUMPY_SIZE, lambda *picture: plain_crf(*picture).argmax(0), f"NumPy at {NUMPY_SIZE}x{NUMPY_SIZE}, scaled"

    def label(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
        num_classes, height, width = scores.shape
        crf = pydensecrf.densecrf.DenseCRF2D(width, height, num_classes)
        crf.setUnaryEnergy(plain_unary(scores).reshape(num_classes, -1))
        crf.addPairwiseGaussian(sxy=SETTINGS.gaussian_sxy, compat=SETTINGS.gaussian_weight)
        crf.addPairwiseBilateral(
            sxy=SETTINGS.bilateral_sxy, srgb=SETTINGS.bilateral_srgb, rgbim=image, compat=SETTINGS.bilateral_weight
        )
        return np.asarray(crf.inference(SETTINGS.iterations)).argmax(0).reshape(height, width)

    return SIZE, label, "pydensecrf2 (C++)"


def plain_unary(scores: np.ndarray, min_probability: float = SETTINGS.min_probability) -> np.ndarray:
    """Unary energies -ln clip(softmax), float32, of the same shape."""
    return -torch.log(torch.softmax(torch.from_numpy(scores), dim=0).clamp(min_probability, 1)).numpy()


def plain_crf(image: np.ndarray, scores: np.ndarray, settings: DenseCrfSettings = SETTINGS) -> np.ndarray:
    """Marginals (C, H, W), step by step as the specification words them."""
    num_classes, height, width = scores.shape
    rows, columns = (axis.reshape(-1).astype(np.float32) for axis in np.mgrid[:height, :width])
    colours = image.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_srgb)
    place = np.stack([columns, rows], axis=1)
    kernels = [
        (settings.gaussian_weight, _PlainFilter(place / np.float32(settings.gaussian_sxy))),
        (
            settings.bilateral_weight,
            _PlainFilter(np.concatenate([place / np.float32(settings.bilateral_sxy), colours], axis=1)),
        ),
    ]
    unary = plain_unary(scores, settings.min_probability).reshape(num_classes, -1).T
    probabilities = _plain_softmax(-unary)
    for _ in range(settings.iterations):
        messages = sum(np.float32(weight) * kernel.apply(probabilities) for weight, kernel in kernels)
        probabilities = _plain_softmax(messages - unary)
    return probabilities.T.reshape(scores.shape)


def _plain_softmax(values: np.ndarray) -> np.ndarray:
    exponentials = np.exp(values - values.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class _PlainFilter:
    """A normalised permutohedral filter over points (N, d), float32."""

    def __init__(self, features: np.ndarray) -> None:
        num_points, num_dims = features.shape
        if num_points % 4:
            features = np.concatenate([features, np.zeros((1, num_dims), np.float32)])
        keys, weights = _plain_corners(features)
        unique, vertices = np.unique(keys.reshape(-1, num_dims), axis=0, return_inverse=True)
        self._num_vertices, self._scale = len(unique), np.float32(1 / (1 + 2.0**-num_dims))
        self._vertices = vertices.reshape(keys.shape[:2])[:num_points]
        self._weights = weights[:num_points]
        self._neighbours = [self._find_neighbours(unique, axis) for axis in range(num_dims + 1)]
        self._norm = np.float32(1)
        self._norm = 1 / np.sqrt(self.apply(np.ones((num_points, 1), np.float32)) + np.float32(1e-20))

    def _find_neighbours(self, unique: np.ndarray, axis: int) -> list[np.ndarray]:
        """Numbers of the vertices one step before and after each along an axis; `num_vertices` for none."""
        number = {tuple(key): i for i, key in enumerate(unique.tolist())}
        step = np.ones(unique.shape[1], np.int64)
        step[axis : axis + 1] = -unique.shape[1]
        return [
            np.array([number.get(tuple(key), len(unique)) for key in (unique + sign * step).tolist()])
            for sign in (-1, 1)
        ]

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Filter values (N, C)."""
        values = values * self._norm
        vertex_values = np.zeros((self._num_vertices + 1, values.shape[1]), np.float32)
        for corner in range(self._vertices.shape[1]):
            np.add.at(vertex_values, self._vertices[:, corner], self._weights[:, corner, None] * values)
        for before, after in self._neighbours:
            vertex_values[:-1] += np.float32(0.5) * (vertex_values[before] + vertex_values[after])
        slices = self._weights[:, :, None] * vertex_values[self._vertices]
        return slices.sum(axis=1) * self._scale * self._norm


def _plain_corners(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keys (N, d + 1, d) of the corners around every point, and their barycentric weights (N, d + 1)."""
    num_points, num_dims = features.shape
    corners, points = num_dims + 1, np.arange(num_points)
    elevated, total = np.zeros((num_points, corners), np.float32), np.zeros(num_points, np.float32)
    spread = np.float32(math.sqrt(2 / 3) * corners)
    for j in range(num_dims, 0, -1):
        scaled = features[:, j - 1] * np.float32(1 / math.sqrt(j * (j + 1)) * float(spread))
        elevated[:, j] = total - np.float32(j) * scaled
        total = total + scaled
    elevated[:, 0] = total
    rounded = np.rint(elevated * np.float32(1 / corners))
    rest = elevated - rounded * np.float32(corners)
    ranks = np.zeros((num_points, corners), np.int64)
    for i in range(corners):
        for j in range(i + 1, corners):
            is_less = rest[:, i] < rest[:, j]
            ranks[:, i] += is_less
            ranks[:, j] += ~is_less
    ranks += rounded.sum(axis=1).astype(np.int64)[:, None]
    shift = np.where(ranks < 0, corners, np.where(ranks > num_dims, -corners, 0))
    ranks, origins = ranks + shift, rounded * np.float32(corners) + shift.astype(np.float32)
    barycentric = np.zeros((num_points, corners + 1), np.float32)
    fractions = (elevated - origins) / np.float32(corners)
    for i in range(corners):
        np.add.at(barycentric, (points, num_dims - ranks[:, i]), fractions[:, i])
        np.add.at(barycentric, (points, num_dims - ranks[:, i] + 1), -fractions[:, i])
    barycentric[:, 0] += 1 + barycentric[:, corners]
    steps = np.stack([np.where(ranks <= num_dims - m, m, m - corners) for m in range(corners)], axis=1)
    return (origins[:, None] + steps)[:, :, :num_dims].astype(np.int64), barycentric[:, :corners]
