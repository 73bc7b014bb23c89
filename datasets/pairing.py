"""Pictures and labels of a benchmark belong together by their names; what is missing or left over is told at once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence, Set
from pathlib import Path

from utils.errors import DataError


def pair_listed(
    list_path: Path, image_dir: Path, label_dir: Path | None, *, ending: str = ".png", like: str = ".*"
) -> tuple[list[Path], list[Path] | None]:
    """The pictures that a split's list names, and the label of each.

    Args:
        list_path: the list, one name without ending per line.
        image_dir: folder of the pictures, `<name>.jpg`; it may hold those of other splits, too.
        label_dir: folder of the labels; None: none are wanted.
        ending: of the labels' file names.
        like: pattern of all names, where the benchmark has one. Files of other names beside the labels are none: other
            programs' converters leave theirs there.

    Returns:
        Paths of pictures and labels in the order of the list.

    Raises:
        DataError: no list, missing pictures or labels, or labels of no picture in `image_dir`.
    """
    names = read_name_list(list_path)
    image_paths = [image_dir / f"{name}.jpg" for name in names]
    require_files(image_paths, "pictures", f"They are listed in {list_path}.")
    if label_dir is None:
        return image_paths, None
    label_paths = [label_dir / f"{name}{ending}" for name in names]
    require_files(label_paths, "label files", f"Their pictures are listed in {list_path}.")
    pictures = {name.removesuffix(".jpg") + ending for name in list_relative(image_dir, ".jpg")}
    labels = {name for name in list_relative(label_dir, ending) if re.fullmatch(like, name.removesuffix(ending))}
    refuse_extra(labels, pictures, label_dir, _remedy(image_dir))
    return image_paths, label_paths


def pair_named(
    names: Sequence[str], label_dir: Path, image_dir: Path, *, what: str = "label files", ending: str = ".png"
) -> list[Path]:
    """The labels of all pictures of a split that lie in folders.

    Args:
        names: path of each picture's label below `label_dir`: `<folder>/<file>`.
        label_dir: holds folders with the split's labels and no others.
        image_dir: folder of the pictures, for messages.
        what: the labels are, for messages.
        ending: of the labels' file names.

    Returns:
        Paths in the order of the names.

    Raises:
        DataError: missing labels, or labels of no picture.
    """
    label_paths = [label_dir / name for name in names]
    require_files(label_paths, what, f"They belong into the folders of {label_dir}.")
    refuse_extra(list_relative(label_dir, ending, depth=1), set(names), label_dir, _remedy(image_dir))
    return label_paths


def find_labels(folder: Path, with_labels: bool | None, layout: str) -> Path | None:
    """The label folder if labels are wanted; `with_labels` None wants them where the folder exists.

    Raises:
        DataError: labels are wanted and there is no such folder.
    """
    if with_labels is False or (with_labels is None and not folder.is_dir()):
        return None
    return require_dir(folder, "the labels", layout)


def _remedy(image_dir: Path) -> str:
    return f"Put their pictures into {image_dir}, or take the label files away."


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
