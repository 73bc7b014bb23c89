"""Label files of benchmarks: reading them, and checking what they hold. Finding them: `pairing.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.metadata import UNKNOWN_LABEL, CategoryTable
from utils.errors import DataError, UnreadableImageError


def read_label_png(path: Path) -> np.ndarray:
    """Stored values of a label PNG: grey or palette indices (H, W), or colours (H, W, 3); uint8 or wider.

    Raises:
        UnreadableImageError: missing or damaged; names the file.
    """
    try:
        with Image.open(path) as image:
            return np.array(image)
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{path}: this label file does not exist. Check the dataset folder.") from error
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UnreadableImageError(
            f"{path}: this label file is cut off or damaged ({error}). Make or download it again."
        ) from error


def read_index_png(path: Path, remedy: str = "Download the labels again.") -> np.ndarray:
    """Stored values of a label PNG with one channel, (H, W).

    Args:
        path: the file.
        remedy: what to do about a file with several channels.

    Raises:
        UnreadableImageError: missing or damaged.
        DataError: several channels.
    """
    values = read_label_png(path)
    if values.ndim != 2:
        raise DataError(
            f"{path}: expected a label PNG with one channel (category ids), got {values.shape[2]} channels. {remedy}"
        )
    return values


def relabel(values: np.ndarray, table: CategoryTable, path: Path) -> np.ndarray:
    """Labels of a label file's stored values, by the table's map.

    Args:
        values: as stored, whole numbers -1 ... 255 (-1 and 255 are the same byte), (H, W).
        table: the benchmark's, with a `label_map`.
        path: the label file, for messages.

    Returns:
        int16, (H, W).

    Raises:
        DataError: the file holds values that the benchmark does not have.
    """
    labels = table.label_map[values.astype(np.uint8)]
    if values.dtype.itemsize > 1:
        labels = np.where((values >= -1) & (values <= 255), labels, np.int16(UNKNOWN_LABEL))
    if labels.min(initial=0) == UNKNOWN_LABEL:
        wrong = np.unique(values[labels == UNKNOWN_LABEL])
        known = np.flatnonzero(table.label_map != UNKNOWN_LABEL)
        raise DataError(
            f"{path}: the label file holds {_first(wrong)} in {np.count_nonzero(labels == UNKNOWN_LABEL)} pixels; "
            f"expected {_ranges(known)}. Use the benchmark's own label files."
        )
    return labels


def check_labels(labels: np.ndarray, path: Path, num_classes: int, ignore_index: int, hint: str = "") -> None:
    """DataError if a label map holds anything but 0 ... `num_classes` - 1 and the ignore index."""
    wrong = labels[(labels < 0) | ((labels >= num_classes) & (labels != ignore_index))]
    if wrong.size:
        raise DataError(
            f"{path}: the label file holds {_first(np.unique(wrong))} in {wrong.size} pixels; expected 0 to "
            f"{num_classes - 1}, or {ignore_index} for pixels that are not scored.{' ' + hint if hint else ''}"
        )


def _first(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5].tolist())) + (", ..." if values.size > 5 else "")


def _ranges(values: np.ndarray) -> str:
    """Ascending numbers as text: `0 to 18, 255`."""
    runs = np.split(values, np.flatnonzero(np.diff(values) > 1) + 1)
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
