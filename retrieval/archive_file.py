"""The image archive as a file: JSON, category -> paths of the images retrieved for it, written, read and checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, DataError
from utils.files import read_json, write_json
from utils.log import get_logger

BACKGROUND = "background"
FEW = 3  # examples in a message
Archive = dict[str, list[Path]]
logger = get_logger(__name__)


def write_archive(path: str | Path, archive: Mapping[str, Sequence[str | Path]]) -> None:
    """Write an image archive: a JSON object, category -> list of image paths, best first.

    Args:
        path: JSON file, written atomically.
        archive: in the order of the categories, background left out.

    Raises:
        UserError: if the file cannot be written.
    """
    write_json(path, {category: [str(image) for image in images] for category, images in archive.items()})


def read_archive(
    path: str | Path,
    *,
    categories: Sequence[str],
    num_images: int | None = None,
    path_map: Mapping[str, str] | None = None,
    check_files: bool = True,
) -> Archive:
    """Read an image archive and check that it is the one that is wanted.

    Args:
        path: JSON file, `category_to_p_images`.
        categories: all category names; "background" is left out.
        num_images: at most so many images per category, the best ones; None for all.
        path_map: beginnings of stored paths -> what replaces them; the longest that fits is used. Published files carry
            the absolute paths of their authors.
        check_files: whether every image must exist.

    Returns:
        Category -> image paths, in the order of `categories`.

    Raises:
        DataError: if the file is no archive, its categories are others, a category has no image, or images are
            missing; says which, how many, and what to do.
    """
    path = Path(path)
    record = read_json(path, what="image archive (category_to_p_images_fp)")
    if not _is_archive(record):
        raise DataError(
            f"{path}: expected a JSON object of categories and lists of image paths, found something else. Give the "
            f"right file as category_to_p_images_fp, or delete this one to retrieve again."
        )
    wanted = foreground(categories)
    _check_categories(path, list(record), wanted)
    archive = {name: [Path(_mapped(image, path_map or {})) for image in record[name][:num_images]] for name in wanted}
    if empty := [name for name, images in archive.items() if not images]:
        raise DataError(
            f"{path}: no image was retrieved for {_few(empty)}. Rename or remove these categories, or add pictures to "
            f"the index and retrieve again."
        )
    if check_files:
        _check_files(path, archive, path_map or {})
    _report(path, archive, num_images)
    return archive


def foreground(categories: Sequence[str]) -> list[str]:
    """The category names that images are retrieved for: all but "background".

    Raises:
        ConfigError: if a name is empty or occurs twice, or there is none.
    """
    names = [name for name in categories if name != BACKGROUND]
    twice = sorted({name for name in names if names.count(name) > 1})
    if not names or twice or any(not name.strip() for name in names):
        found = f"{_few(twice)} more than once" if twice else "an empty name" if names else "none"
        raise ConfigError(f"categories: expected different, non-empty names besides '{BACKGROUND}', received {found}.")
    return names


def _is_archive(record: Any) -> bool:
    return isinstance(record, dict) and all(
        isinstance(images, list) and all(isinstance(image, str) for image in images) for images in record.values()
    )


def _few(names: Sequence[Any]) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:FEW])
    return shown + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _check_categories(path: Path, found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in set(found)]
    extra = [name for name in found if name not in {*wanted, BACKGROUND}]
    if not missing:
        if extra:
            logger.warning("%s: %d categories of this archive are not used: %s", path, len(extra), _few(extra))
        return
    lines = []
    for name in missing[:10]:
        near = difflib.get_close_matches(name, extra, n=1)
        lines.append(f"\n  missing: {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    if len(missing) > 10:
        lines.append(f"\n  and {len(missing) - 10} more")
    if extra:
        lines.append(f"\n  not among your categories: {_few(extra)}")
    raise DataError(
        f"{path}: this image archive was made for other categories, {len(missing)} of {len(wanted)} are not in it:"
        f"{''.join(lines)}\nRename the categories, or give another category_to_p_images_fp to retrieve again."
    )


def _mapped(image: str, path_map: Mapping[str, str]) -> str:
    fitting = [old for old in path_map if _begins_with(image, old)]
    if not fitting:
        return image
    old = max(fitting, key=len)
    rest = image[len(old) :]
    return str(Path(path_map[old]) / rest.lstrip("/")) if rest else path_map[old]


def _begins_with(image: str, prefix: str) -> bool:
    """Whether the prefix ends where a folder's name does (/data/a fits /data/a/b, not /data/ab)."""
    return image.startswith(prefix) and (prefix.endswith("/") or image[len(prefix) :][:1] in ("", "/"))


def _check_files(path: Path, archive: Archive, path_map: Mapping[str, str]) -> None:
    images = list(dict.fromkeys(image for images in archive.values() for image in images))
    missing = [image for image in images if not image.is_file()]
    if not missing:
        return
    advice = "Put them back, or delete the archive to retrieve again."
    if len(missing) == len(images) or not path_map:
        advice = f"Did the folder move? Then say so with path_map: {{{str(_common_folder(missing))!r}: NEW_FOLDER}}"
        advice += f" (now path_map is {dict(path_map)})." if path_map else "."
    raise DataError(
        f"{path}: {len(missing)} of its {len(images)} images do not exist, such as {_few(missing)}. {advice}"
    )


def _common_folder(images: Sequence[Path]) -> Path:
    parts = [image.parent.parts for image in images]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return Path(*shared) if shared else Path(".")


def _report(path: Path, archive: Archive, num_images: int | None) -> None:
    listed = [image for images in archive.values() for image in images]
    repeated = len(listed) - len(set(listed))
    logger.info(
        "%s: %d categories, %d images listed, %d of them for several categories",
        path,
        len(archive),
        len(listed),
        repeated,
    )
    short = [name for name, images in archive.items() if num_images is not None and len(images) < num_images]
    if short:
        logger.info("%s: fewer than %d images for %s", path, num_images, _few(short))
