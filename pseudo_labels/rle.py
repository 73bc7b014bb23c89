"""COCO's compressed run-length codes of masks, in NumPy, checked while they are read.

A code is the list of run lengths of the mask in column order, starting with background; from the fourth on, each is
the difference to the length two before it; and each number is written in groups of five bits as characters from "0".
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError

_FIRST_CHARACTER = 48
_MAX_GROUPS = 7  # five bits each: run lengths below 2**34


def encode(mask: NDArray[np.generic]) -> dict[str, object]:
    """Write a mask as a COCO run-length code.

    Args:
        mask: (H, W), bool or numbers; everything but 0 belongs to the mask.

    Returns:
        `{"size": [H, W], "counts": "..."}`, the code pycocotools gives.

    Raises:
        ValueError: if the mask does not have two axes.
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask has two axes, received shape {mask.shape}")
    pixels = np.asarray(mask != 0).reshape(-1, order="F")
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    borders = [0, *([0] if pixels.size and pixels[0] else []), *changes.tolist(), pixels.size]
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": _write_counts(np.diff(borders))}


def _write_counts(runs: NDArray[np.int64]) -> str:
    numbers = runs.astype(np.int64)
    numbers[3:] -= runs[1:-2]
    groups = np.zeros((len(numbers), _MAX_GROUPS), np.uint8)
    used = np.zeros((len(numbers), _MAX_GROUPS), bool)
    active = np.arange(len(numbers))
    for column in range(_MAX_GROUPS):
        bits = numbers[active] & 31
        numbers[active] >>= 5
        rest = numbers[active]
        more = np.where(bits & 16, rest != -1, rest != 0)
        groups[active, column] = (bits | (more << 5)) + _FIRST_CHARACTER
        used[active, column] = True
        active = active[more]
        if not len(active):
            break
    return groups[used].tobytes().decode("ascii")


def decode(code: object, *, source: str = "run-length code") -> NDArray[np.uint8]:
    """Read a COCO run-length code.

    Args:
        code: `{"size": [H, W], "counts": str or bytes}`.
        source: where it comes from, for error messages.

    Returns:
        The mask, (H, W), uint8, 0 or 1.

    Raises:
        utils.errors.DataError: if it is not such an object, or the runs do not fill H×W pixels exactly.
    """
    height, width, runs = _read_code(code, source)
    values = (np.arange(len(runs)) & 1).astype(np.uint8)
    return np.repeat(values, runs).reshape(width, height).T


def area(code: object, *, source: str = "run-length code") -> int:
    """Number of mask pixels of a COCO run-length code, without decoding it; raises `DataError` like `decode`."""
    return int(_read_code(code, source)[2][1::2].sum())


def _read_code(code: object, source: str) -> tuple[int, int, NDArray[np.int64]]:
    """Size and run lengths of a code, checked."""
    size = code.get("size") if isinstance(code, dict) else None
    counts = code.get("counts") if isinstance(code, dict) else None
    is_size = isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(n, int) and n >= 0 for n in size)
    if not is_size or not isinstance(counts, str | bytes):
        raise DataError(
            f'{source}: expected {{"size": [height, width], "counts": "..."}}, received {str(code)[:80]}. '
            "Delete the file and make it again."
        )
    runs = _read_counts(counts.encode("ascii", "replace") if isinstance(counts, str) else counts)
    if runs is None or (runs < 0).any() or runs.sum() != size[0] * size[1]:
        filled = "it cannot be read" if runs is None else f"its runs fill {int(runs.sum())} pixels"
        raise DataError(
            f"{source}: the run-length code should fill {size[0]}×{size[1]} pixels, but {filled}. "
            "Delete the file and make it again."
        )
    return size[0], size[1], runs


def _read_counts(text: bytes) -> NDArray[np.int64] | None:
    """Run lengths from their characters; None if the text is no such code."""
    groups = np.frombuffer(text, np.uint8).astype(np.int64) - _FIRST_CHARACTER
    if not len(groups):
        return np.zeros(0, np.int64)
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        return None
    last = np.flatnonzero((groups & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _MAX_GROUPS:
        return None
    place = np.arange(len(groups)) - np.repeat(first, lengths)
    numbers = np.add.reduceat((groups & 31) << (5 * place), first)
    numbers -= np.where(groups[last] & 16, np.int64(1) << (5 * lengths), 0)  # the top bit is the sign
    # Undo the differences: from the fourth on, a run is its number plus the run two before it.
    runs = numbers.copy()
    for start in (1, 2):
        runs[start::2] = np.cumsum(numbers[start::2])
    return runs
