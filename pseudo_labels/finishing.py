"""The last steps of a pseudo-mask: solver, original size, file. Free of PyTorch: worker processes start fast."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pseudo_labels.bilateral_solver import SolverSettings, refine_mask
from pseudo_labels.preparation import resize_mask
from pseudo_labels.store import write_mask


@dataclass(frozen=True)
class FinishSettings:
    """What happens to a mask after the network."""

    use_solver: bool = True  # snap the mask to the edges of its picture
    solver: SolverSettings = field(default_factory=SolverSettings)
    levels: NDArray[np.uint8] | None = None  # (256, 3): level of the reference picture for every level of the picture


def finish_mask(
    settings: FinishSettings,
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    original_size: tuple[int, int],
    path: str | Path,
) -> int:
    """Refine a mask, bring it to the size of its image and write its file.

    Args:
        settings: see `FinishSettings`.
        image: RGB picture as the network saw it, (h, w, 3), uint8.
        mask: the network's mask, (h, w).
        original_size: (height, width) of the image.
        path: file to be written.

    Returns:
        Number of mask pixels at the size of the image.

    Raises:
        utils.errors.UserError: if the file cannot be written.
    """
    if settings.use_solver:
        mask = refine_mask(_apply_levels(image, settings.levels), mask, settings.solver)
    final = resize_mask(mask, *original_size)
    write_mask(path, final)
    return int(np.count_nonzero(final))


def _apply_levels(image: NDArray[np.uint8], levels: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if levels is None:
        return image
    return np.stack([levels[image[..., channel], channel] for channel in range(3)], axis=-1)


def end_with_parent() -> None:
    """Make a worker process end when the process that started it does, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end-with-parent", daemon=True).start()
