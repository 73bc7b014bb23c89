"""The mean-field updates of the dense CRF in PyTorch: for GPUs, where all classes of a picture fit beside each other.

The lattices are those of `permutohedral.py`, found on the CPU. There `mean_field.py` does the updates, several times
faster than this file would.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import torch
from torch import Tensor

from pseudo_labels.mean_field import not_finite
from pseudo_labels.permutohedral import LatticeGraph
from utils.errors import UserError
from utils.memory import format_bytes

_CLASSES_PER_GROUP = 32  # filtered at a time: bounds what lies on the vertices
ONE_AT_A_TIME = threading.Lock()  # pictures on the device; other threads build lattices meanwhile


@dataclass(frozen=True)
class DeviceFilter:
    """A lattice's filter over N points on a device, with V vertices and a last one that is always 0.

    Attributes:
        vertices, weights: of the corners of every point, (d + 1, N).
        points: of the corners in the order of their vertices, (N (d + 1),).
        point_weights: weights in that order, (N (d + 1), 1).
        lengths: corners at every vertex, (V + 1,).
        before, after: neighbours of every vertex along each axis, V where there is none, (d + 1, V + 1).
        gain: factor of the result.
    """

    vertices: Tensor
    weights: Tensor
    points: Tensor
    point_weights: Tensor
    lengths: Tensor
    before: Tensor
    after: Tensor
    gain: float

    @classmethod
    def of(cls, graph: LatticeGraph, device: torch.device | str) -> DeviceFilter:
        """Bring a lattice to a device and order its corners."""
        vertices = torch.from_numpy(graph.vertices).to(device, torch.int64)
        weights = torch.from_numpy(graph.weights).to(device)
        following = torch.from_numpy(graph.following).to(device, torch.int64)
        num_axes, num_vertices = following.shape
        none = torch.full((num_axes, 1), num_vertices, device=device)
        after = torch.cat([following.where(following >= 0, none), none], dim=1)
        before = torch.full_like(after, num_vertices)
        own = torch.arange(num_vertices + 1, device=device).expand_as(after)
        before = before.scatter(1, after, own)
        before[:, num_vertices] = num_vertices  # where all those without a next one were written
        order = vertices.flatten().argsort(stable=True)
        return cls(
            vertices=vertices.T.contiguous(),
            weights=weights.T.contiguous(),
            points=order // num_axes,
            point_weights=weights.flatten()[order][:, None],
            lengths=torch.bincount(vertices.flatten(), minlength=num_vertices + 1),
            before=before,
            after=after,
            gain=graph.gain,
        )

    def __call__(self, values: Tensor) -> Tensor:
        """Filter values (N, C), float32."""
        corners = values[self.points] * self.point_weights
        on_vertices = torch.segment_reduce(corners, "sum", lengths=self.lengths, axis=0, unsafe=True)
        for before, after in zip(self.before, self.after, strict=True):
            neighbours = on_vertices[before] + on_vertices[after]
            on_vertices = on_vertices.add(neighbours, alpha=0.5)
        result = torch.zeros_like(values)
        for vertices, weights in zip(self.vertices, self.weights, strict=True):
            result.addcmul_(weights[:, None], on_vertices[vertices])
        return result.mul_(self.gain)


class TorchMeanField:
    """Class probabilities of one picture on a device, and the updates of them; see `mean_field.MeanField`.

    Args:
        scores: class scores before the softmax, (C, N), floating point, on the device.
        min_probability: unary probabilities below this are raised to it.

    Raises:
        UserError: if a score is not finite.
    """

    @torch.inference_mode()
    def __init__(self, scores: Tensor, min_probability: float) -> None:
        scores = scores.float()
        if not (finite := scores.isfinite().all(dim=1)).all():
            raise not_finite(int((~finite).int().argmax()))
        self._unary = scores.T.log_softmax(dim=1).clamp_(min=math.log(min_probability))
        self._state = self._unary.softmax(dim=1)

    @torch.inference_mode()
    def update(self, place: DeviceFilter, colour: DeviceFilter, weights: tuple[float, float], times: int) -> None:
        """See `mean_field.MeanField.update`."""
        num_classes = self._unary.shape[1]
        for _ in range(times):
            energies = self._unary.clone()
            for first in range(0, num_classes, _CLASSES_PER_GROUP):
                group = slice(first, first + _CLASSES_PER_GROUP)
                values = self._state[:, group].contiguous()
                for kernel, weight in zip((place, colour), weights, strict=True):
                    energies[:, group].add_(kernel(values), alpha=weight)
            self._state = energies.softmax(dim=1)

    def probabilities(self) -> Tensor:
        """The marginals, (C, N), float32."""
        return self._state.T

    def labels(self) -> Tensor:
        """The most probable classes, (N,), int64."""
        return self._state.argmax(dim=1)


def check_device_memory(num_classes: int, height: int, width: int, device: torch.device) -> None:
    """Refuse a CRF that the free memory of a GPU cannot hold: UserError with the need, and what lowers it."""
    if device.type != "cuda":
        return
    group = min(num_classes, _CLASSES_PER_GROUP)
    # Unary term, energies, probabilities and the softmax's result; corners and three arrays over the vertices (at most
    # as many as corners) of a group; the lattices.
    need = 4 * height * width * (4 * num_classes + 4 * 6 * group + 80)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if need > free:
        raise UserError(
            f"The dense CRF of {num_classes} classes on {height}x{width} pixels needs about {format_bytes(need)} of "
            f"the GPU's memory, but {format_bytes(free)} are free. Use crf.device=cpu, or no CRF (crf=off)."
        )
