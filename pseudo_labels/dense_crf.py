"""The dense CRF: makes class scores follow the edges of their picture.

Neighbouring pixels are drawn to one label ("place"), and so are pixels of like colour at some distance ("colour"). Ten
mean-field updates give the marginals. Three recipes use it: ReCo and ReCo+ with the defaults and the picture of
`crf_image`, MaskDistill with the defaults and the plain picture in BGR. `crf_pool.py` does many pictures at once,
`crf_memory.py` knows how many the memory holds, `docs/dense_crf.md` tells what it costs.

Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge Potentials", NeurIPS 2011,
with the results of the published library: same lattice, same normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pseudo_labels.crf_memory import check_memory

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pseudo_labels.mean_field import MeanField
    from pseudo_labels.mean_field_torch import DeviceFilter, TorchMeanField
    from pseudo_labels.permutohedral import Lattice


@dataclass(frozen=True)
class DenseCrfSettings:
    """Constants of the dense CRF; the defaults are those of ReCo, ReCo+ and MaskDistill."""

    gaussian_sxy: float = 1  # pixels: reach of the place term
    gaussian_weight: float = 3
    bilateral_sxy: float = 67  # pixels: reach of the colour term
    bilateral_srgb: float = 3  # levels (of 256): colours farther apart do not attract each other
    bilateral_weight: float = 4
    iterations: int = 10
    min_probability: float = 1e-5  # unary probabilities below this are raised to it

    def __post_init__(self) -> None:
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, received {getattr(self, name)!r}")
        for name in ("gaussian_weight", "bilateral_weight", "iterations"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be below 0, received {getattr(self, name)!r}")
        if not 0 < self.min_probability < 1:
            raise ValueError(f"min_probability must lie between 0 and 1, received {self.min_probability!r}")


def dense_crf(
    image: NDArray[np.uint8], scores: ArrayLike, settings: DenseCrfSettings | None = None
) -> NDArray[np.float32]:
    """Marginals of the dense CRF.

    Args:
        image: picture, (H, W, 3), uint8. The published results are for BGR: with another order of the channels a few
            labels differ, because the lattice is not symmetric in its axes.
        scores: logits, log-probabilities or any scores whose softmax over the classes gives the unary probabilities,
            (C, H, W). On the CPU, float32 and contiguous, or a copy is made; or a tensor on a GPU, which then does the
            updates.
        settings: constants; the published ones if None.

    Returns:
        Probabilities (C, H, W), float32; exactly 0 below 1e-26 of a pixel's largest.

    Raises:
        ValueError: if the shapes or the type of the picture are not as above.
        UserError: if a score is not finite, or the memory does not suffice.
    """
    if is_on_gpu(scores):
        return infer_on_device(image, scores, settings).probabilities().cpu().numpy().reshape(scores.shape)
    scores = _check_input(image, scores)
    check_memory(len(scores), image.shape[:2], marginals=True)
    return _infer(image, scores, settings).probabilities().reshape(scores.shape)


def dense_crf_labels(
    image: NDArray[np.uint8],
    scores: ArrayLike,
    settings: DenseCrfSettings | None = None,
    *,
    ask_for_memory: bool = True,
) -> NDArray[np.int64]:
    """The most probable class of every pixel: the arg-max of `dense_crf`, without making its output.

    Args:
        image: as `dense_crf`.
        scores: as `dense_crf`.
        settings: as `dense_crf`.
        ask_for_memory: call `check_memory` first; False if that has been done.

    Returns:
        (H, W), int64; the first of equally probable classes.

    Raises:
        ValueError: as `dense_crf`.
        UserError: as `dense_crf`.
    """
    if is_on_gpu(scores):
        return infer_on_device(image, scores, settings).labels().cpu().numpy().reshape(image.shape[:2])
    scores = _check_input(image, scores)
    if ask_for_memory:
        check_memory(len(scores), image.shape[:2])
    return _infer(image, scores, settings).labels().reshape(image.shape[:2])


def crf_image(normalised: Tensor) -> NDArray[np.uint8]:
    """The picture that ReCo and ReCo+ give the CRF.

    Kept for released weights: un-normalised and truncated, so a level can come back one too low; BGR.

    Args:
        normalised: ImageNet-normalised RGB picture, (3, H, W), float32, on the CPU (other devices round differently).

    Returns:
        BGR picture, (H, W, 3), uint8.
    """
    from pseudo_labels.network_input import rebuild_reference

    return np.ascontiguousarray(rebuild_reference(normalised)[..., ::-1])


def is_on_gpu(scores: ArrayLike) -> bool:
    """Whether scores are a tensor that does not lie on the CPU."""
    return getattr(getattr(scores, "device", None), "type", "cpu") != "cpu"


def infer_on_device(image: NDArray[np.uint8], scores: Tensor, settings: DenseCrfSettings | None) -> TorchMeanField:
    """All updates of one picture where its scores (C, H, W) lie; lattices are built on the CPU, in this thread.

    Raises:
        ValueError: as `dense_crf`.
        UserError: as `dense_crf`.
    """
    from pseudo_labels.mean_field_torch import ONE_AT_A_TIME, DeviceFilter, TorchMeanField, check_device_memory
    from pseudo_labels.permutohedral import build_graph

    _check_shapes(image, tuple(scores.shape))
    settings = settings or DenseCrfSettings()
    graph = build_graph(_colour_points(image, settings))
    weights = (settings.gaussian_weight, settings.bilateral_weight)
    with ONE_AT_A_TIME:
        check_device_memory(*scores.shape, scores.device)
        field = TorchMeanField(scores.flatten(1), settings.min_probability)
        place = _place_filter(*image.shape[:2], settings.gaussian_sxy, scores.device)
        field.update(place, DeviceFilter.of(graph, scores.device), weights, settings.iterations)
    return field


def _check_input(image: NDArray[np.uint8], scores: ArrayLike) -> NDArray[np.float32]:
    """The scores as the compiled loops want them."""
    scores = np.ascontiguousarray(scores, np.float32)
    _check_shapes(image, scores.shape)
    return scores


def _check_shapes(image: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"image must be uint8 (H, W, 3), received {image.dtype} {image.shape}")
    if len(shape) != 3 or shape[1:] != image.shape[:2] or not shape[0]:
        raise ValueError(f"scores must be (C, {image.shape[0]}, {image.shape[1]}), received {shape}")


def _infer(image: NDArray[np.uint8], scores: NDArray[np.float32], settings: DenseCrfSettings | None) -> MeanField:
    """All updates of one picture."""
    from pseudo_labels.mean_field import MeanField  # numba takes a second to import

    settings = settings or DenseCrfSettings()
    place, colour = place_lattice(*image.shape[:2], settings.gaussian_sxy), colour_lattice(image, settings)
    field = MeanField(scores.reshape(len(scores), -1), settings.min_probability)
    field.update(place, colour, (settings.gaussian_weight, settings.bilateral_weight), settings.iterations)
    return field


@lru_cache(maxsize=4)
def place_lattice(height: int, width: int, sxy: float) -> Lattice:
    """The filter of the place term over H·W pixels; the same for all pictures of one size, so the last few are kept."""
    from pseudo_labels.permutohedral import build_lattice

    return build_lattice(_place_points(height, width, sxy))


@lru_cache(maxsize=4)
def _place_filter(height: int, width: int, sxy: float, device: torch.device) -> DeviceFilter:
    """`place_lattice` on a device."""
    from pseudo_labels.mean_field_torch import DeviceFilter
    from pseudo_labels.permutohedral import build_graph

    return DeviceFilter.of(build_graph(_place_points(height, width, sxy)), device)


def colour_lattice(image: NDArray[np.uint8], settings: DenseCrfSettings) -> Lattice:
    """The filter of the colour term over the pixels of a picture (H, W, 3), uint8."""
    from pseudo_labels.permutohedral import build_lattice

    return build_lattice(_colour_points(image, settings))


def _place_points(height: int, width: int, sxy: float) -> NDArray[np.float32]:
    """Pixels as points of the place term, (2, H·W)."""
    return _places(height, width) / np.float32(sxy)


def _colour_points(image: NDArray[np.uint8], settings: DenseCrfSettings) -> NDArray[np.float32]:
    """Pixels as points of the colour term, (5, H·W)."""
    places = _places(*image.shape[:2]) / np.float32(settings.bilateral_sxy)
    colours = np.moveaxis(image, 2, 0).reshape(3, -1).astype(np.float32) / np.float32(settings.bilateral_srgb)
    return np.concatenate([places, colours])


def _places(height: int, width: int) -> NDArray[np.float32]:
    """Column and row of every pixel, (2, H·W)."""
    return np.indices((height, width), np.float32)[::-1].reshape(2, -1)
