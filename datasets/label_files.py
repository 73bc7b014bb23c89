"""Label files of benchmarks: reading them, pairing them with pictures, and checking what they hold."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence, Set
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


def require_dir(path: Path, what: str, layout: str) -> Path:
    """The folder, if it exists; DataError that says what it should hold if not."""
    if not path.is_dir():
        raise DataError(
            f"{path}: the folder with {what} does not exist. Expected layout below the dataset folder: {layout}."
        )
    return path


def require_files(paths: Sequence[Path], what: str, remedy: str) -> None:
    """DataError naming the first missing files and their number, unless all exist."""
    present: dict[Path, set[str]] = {}
    for parent in {path.parent for path in paths}:
        present[parent] = set(os.listdir(parent)) if parent.is_dir() else set()
    missing = [path for path in paths if path.name not in present[path.parent]]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"{len(missing)} of {len(paths)} {what} are missing: {shown}. {remedy}")


def read_name_list(path: Path) -> list[str]:
    """Names of a split's list, one per line, in order; blank lines are skipped.

    Raises:
        DataError: missing, unreadable or empty list, or a name twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: the list of the split's pictures does not exist. Check the dataset folder."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of the split's pictures cannot be read ({error}).") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: expected the names of the split's pictures, one per line, found none.")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise DataError(f"{path}: {twice!r} is listed more than once. Use the benchmark's own list.")
    return names


def list_relative(folder: Path, ending: str, *, depth: int = 0) -> set[str]:
    """Files of a folder, or of the folders `depth` levels below it, by their paths from it; hidden ones are left out.

    Args:
        folder: where to look; one that does not exist holds nothing.
        ending: of the files' names.
        depth: levels of folders between `folder` and the files.
    """
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        if depth == 0:
            return {entry.name for entry in entries if entry.name.endswith(ending) and not entry.name.startswith(".")}
        folders = [entry.name for entry in entries if entry.is_dir()]
    return {f"{name}/{file}" for name in folders for file in list_relative(folder / name, ending, depth=depth - 1)}


def refuse_extra(found: Set[str], expected: Set[str], folder: Path, remedy: str) -> None:
    """DataError naming the first label files that belong to no picture and their number, if there are any.

    Args:
        found: label files, by their paths below `folder`.
        expected: those that belong to pictures; more than were found is no matter here.
        folder: the labels' folder.
        remedy: what to do.
    """
    extra = sorted(found - expected)
    if extra:
        shown = ", ".join(extra[:3]) + (", ..." if len(extra) > 3 else "")
        raise DataError(f"{folder}: {len(extra)} of {len(found)} label files belong to no picture: {shown}. {remedy}")


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
