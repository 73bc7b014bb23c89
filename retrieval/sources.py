"""Pictures to embed: folders, files, lists and webdataset shards, brought into one fixed order.

A picture is addressed by its file, or by its place inside a tar file, so that any of them can be read at random.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from utils.errors import DataError, UnreadableImageError
from utils.files import read_json
from utils.images import MAX_PIXELS, is_picture, list_pictures
from utils.log import get_logger

LIST_SUFFIXES = (".txt", ".lst")
_BAD_PICTURE = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, OverflowError, MemoryError)
logger = get_logger(__name__)


class Span(NamedTuple):
    """Bytes of a file inside a tar file."""

    tar: str
    offset: int
    size: int


class Source(NamedTuple):
    """One picture.

    Attributes:
        path: what the index calls it: relative to the root, or absolute; `<shard>/<member>` for one in a tar file.
        span: where its bytes lie, if inside a tar file.
        caption: where its caption lies, if it has one there.
        record: where its JSON record (with `url` and `caption`) lies, if it has one there.
    """

    path: str
    span: Span | None = None
    caption: Span | None = None
    record: Span | None = None


class SourceList(NamedTuple):
    """All pictures to embed, and the folder that their paths start from ("" where they are absolute)."""

    root: str
    pictures: list[Source]
    unreadable: list[tuple[str, str]]  # tar files that end early, with the reason

    def fingerprint(self) -> str:
        """Hash of the paths in their order."""
        digest = hashlib.sha256()
        for picture in self.pictures:
            digest.update(picture.path.encode("utf-8", "surrogateescape") + b"\n")
        return digest.hexdigest()


def list_sources(sources: Sequence[str | Path]) -> SourceList:
    """Every picture behind the given sources, in an order that depends on names only.

    Args:
        sources: folders (searched to any depth), picture files, glob patterns, text files with one path per line, and
            uncompressed tar files (webdataset shards).

    Raises:
        DataError: if a source is missing, of an unknown kind, or there is no picture at all.
    """
    root = _common_root(sources)
    pictures: list[Source] = []
    unreadable: list[tuple[str, str]] = []
    for source in map(str, sources):
        tars = _tar_files(source)
        for tar in tars:
            found, problem = _tar_members(tar)
            pictures.extend(found)
            if problem:
                unreadable.append((str(tar), problem))
        if not tars or Path(source).is_dir():
            pictures.extend(Source(_stored_path(path, root)) for path in _files(source, may_be_empty=bool(tars)))
    if not pictures:
        reasons = "".join(f" {path}: {reason}." for path, reason in unreadable)
        raise DataError(f"no pictures found in {', '.join(map(str, sources)) or '(nothing)'}.{reasons}")
    return SourceList(root, list(dict.fromkeys(pictures)), unreadable)


def _common_root(sources: Sequence[str | Path]) -> str:
    if len(sources) == 1 and Path(sources[0]).expanduser().is_dir():
        return str(Path(sources[0]).expanduser().absolute())
    return ""


def _stored_path(path: Path, root: str) -> str:
    return os.path.relpath(path.absolute(), root) if root else str(path.absolute())


def _files(source: str, *, may_be_empty: bool) -> list[Path]:
    path = Path(source).expanduser()
    if path.suffix.lower() in LIST_SUFFIXES and path.is_file():
        return _listed_files(path)
    if may_be_empty and not any(is_picture(entry) for entry in path.rglob("*")):
        return []
    return list_pictures([source])


def _listed_files(path: Path) -> list[Path]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: list of pictures cannot be read ({error}).") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def _tar_files(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.name.lower().endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise DataError(f"{path}: compressed tar files cannot be read at random. Decompress it to a .tar file first.")
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if "*" in source and source.endswith(".tar"):
        return sorted(path.parent.glob(path.name))
    if path.suffix.lower() == ".tar":
        if not path.is_file():
            raise DataError(f"{path}: no such tar file. Check the path.")
        return [path]
    return []


def _tar_members(path: Path) -> tuple[list[Source], str]:
    """The pictures of a shard, and why it could not be read to its end ("" if it could)."""
    images: dict[str, tuple[str, Span]] = {}
    sidecars: dict[tuple[str, str], Span] = {}
    problem = ""
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"cut off in {member.name}")
                span = Span(str(path.absolute()), member.offset_data, member.size)
                key, _, ending = member.name.partition(".")
                if is_picture(member.name):
                    images[key] = (member.name, span)
                elif ending.lower() in ("txt", "json"):
                    sidecars[key, ending.lower()] = span
    except (tarfile.TarError, OSError, EOFError) as error:
        problem = f"not a whole tar file ({error})"
    found = [
        Source(f"{path.stem}/{name}", span, sidecars.get((key, "txt")), sidecars.get((key, "json")))
        for key, (name, span) in images.items()
    ]
    return found, problem


def _read_span(span: Span) -> bytes:
    with open(span.tar, "rb") as file:
        file.seek(span.offset)
        return file.read(span.size)


def read_image(source: Source, root: str, resolution: int) -> Image.Image:
    """Decode a picture as the published systems do: stored orientation, its own colour mode.

    Args:
        source: the picture.
        root: folder that its path starts from.
        resolution: what its shorter side will be resized to.

    Raises:
        UnreadableImageError: if it is missing, damaged, no picture, too large, or too narrow to be resized.
    """
    where = source.path if source.span else os.path.join(root, source.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(_read_span(source.span)) if source.span else where)
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImageError(f"{where}: too large ({image.height}x{image.width} pixels)")
            image.load()
    except FileNotFoundError as error:
        raise UnreadableImageError(f"{where}: no such file") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"{where}: too large") from error
    except _BAD_PICTURE as error:
        raise UnreadableImageError(f"{where}: damaged or not a picture ({error})") from error
    shorter, longer = sorted(image.size)
    if longer / shorter * resolution**2 > MAX_PIXELS:
        raise UnreadableImageError(f"{where}: too narrow ({image.height}x{image.width} pixels)")
    return image


def read_notes(source: Source) -> dict[str, str | None]:
    """Caption and URL that a webdataset shard brings for a picture; None where it brings none."""
    notes: dict[str, str | None] = {"caption": None, "url": None}
    try:
        if source.record is not None:
            record = json.loads(_read_span(source.record))
            notes.update({key: str(record[key]) for key in notes if record.get(key) is not None})
        if source.caption is not None:
            notes["caption"] = _read_span(source.caption).decode("utf-8", "replace").strip()
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s: its caption cannot be read (%s); it is left out", source.path, error)
    return notes


def write_list(path: Path, pictures: Sequence[Source]) -> None:
    """Keep the order of the pictures beside their embeddings."""
    from utils.files import write_json

    write_json(path, [picture.path for picture in pictures], indent=False)


def read_list(path: Path) -> list[str]:
    """The paths that `write_list` kept.

    Raises:
        DataError: if the file is missing or damaged.
    """
    paths = read_json(path, what="list of embedded pictures")
    if not isinstance(paths, list):
        raise DataError(f"{path}: expected a list of picture paths. Delete the folder and embed again.")
    return paths
