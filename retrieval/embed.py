"""Image embeddings of any heap of pictures, written as an embedding folder, part by part.

Workers decode ahead of the network, parts are written behind it, ranks share the parts, and complete parts are never
made again. `retrieval/sources.py` finds the pictures, `retrieval/index.py` reads what is written here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from networks.clip import ClipModel, ClipPreprocessing
from retrieval.parts import (
    Manifest,
    is_complete,
    read_manifest,
    read_unreadable,
    remove_part,
    write_manifest,
    write_part,
)
from retrieval.sources import SourceList, list_sources, read_image, read_list, read_notes, write_list
from utils.device import autocast, precision_dtype
from utils.distributed import all_gather_objects, barrier, is_initialised, is_main, shard
from utils.errors import DataError, UnreadableImageError, UserError
from utils.files import RunLock, write_text
from utils.loader import load_batches
from utils.log import get_logger, progress

PART_SIZE = 4096
LIST_NAME = "pictures.json"
UNREADABLE_NAME = "unreadable.txt"
logger = get_logger(__name__)


class EmbedReport(NamedTuple):
    """What a call of `embed_images` found and did.

    Attributes:
        num_embedded: pictures with an embedding in the folder, now.
        num_unreadable: pictures without one; `unreadable.txt` in the folder names them.
        num_parts_made: parts that this call made.
        num_parts_kept: parts that were complete before.
    """

    num_embedded: int
    num_unreadable: int
    num_parts_made: int
    num_parts_kept: int


def embed_images(
    sources: Sequence[str | Path],
    output_dir: str | Path,
    clip: ClipModel,
    *,
    model_name: str = "",
    batch_size: int = 256,
    num_workers: int = 8,
    part_size: int = PART_SIZE,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    strict: bool = False,
    extend: bool = False,
    dtype: torch.dtype = torch.float16,
) -> EmbedReport:
    """Embed all pictures of some folders, lists or webdataset shards; go on where an earlier call was stopped.

    Args:
        sources: as in `retrieval.sources.list_sources`.
        output_dir: embedding folder.
        clip: image tower and its preprocessing.
        model_name: name of the CLIP, kept with the embeddings so that they are not mixed with another's.
        batch_size: pictures per forward pass. A batch never spans two parts, so a part does not depend on where an
            earlier call was stopped.
        num_workers: processes that decode and preprocess.
        part_size: pictures per part file: what a killed run loses at most.
        device: where the network runs.
        precision: "fp32", "bf16" or "fp16".
        strict: stop at the first unreadable picture instead of listing it in `unreadable.txt`.
        extend: when pictures were added since the folder was begun, append them; without it that is an error.
        dtype: of the numbers in the folder. float16 halves its size and changes cosines by less than 0.0005;
            float32 keeps what the network gave.

    Returns:
        Counts over all ranks' parts.

    Raises:
        UserError: if there is no picture or none is readable, if the folder belongs to another CLIP or to other
            pictures, if another process uses it, if the disk is full, or (with `strict`) if a picture is unreadable.

    Source: ZUTIS release, CLIP features of the index images (normalised, kept as float16); part files and their names
    as clip-retrieval writes them.
    """
    folder = Path(output_dir)
    precision_dtype(precision)
    found = list_sources(sources)
    if strict and found.unreadable:
        raise DataError("{}: {}".format(*found.unreadable[0]))
    with RunLock(folder) if is_main() else nullcontext():
        if is_main():
            found = _begin(folder, found, Manifest("", model_name, part_size, 0), extend=extend)
        found = all_gather_objects(found if is_main() else None)[0] or found
        num_parts = -(-len(found.pictures) // part_size)
        todo = all_gather_objects([part for part in range(num_parts) if not is_complete(folder, part)])[0]
        logger.info("%s: %d pictures, %d of %d parts to do", folder, len(found.pictures), len(todo), num_parts)
        job = _Job(found, clip.preprocess, part_size, batch_size, strict, dtype)
        mine = list(shard(todo)) if is_initialised() else todo
        _make_parts(folder, job, mine, clip.to(device).eval(), num_workers, precision)
        barrier()
        report = _finish(folder, found, num_parts, len(todo))
        barrier()
    return report


def _begin(folder: Path, found: SourceList, wanted: Manifest, *, extend: bool) -> SourceList:
    """Compare with what the folder was begun for, and fix the order of the pictures."""
    wanted = replace(wanted, source=found.fingerprint(), num_images=len(found.pictures), image_dir=found.root)
    old = read_manifest(folder)
    if old is not None:
        if (old.model, old.part_size) != (wanted.model, wanted.part_size):
            raise UserError(
                f"{folder}: begun with the CLIP {old.model or '(unnamed)'!r} and {old.part_size} pictures per part, "
                f"now {wanted.model or '(unnamed)'!r} and {wanted.part_size}. Use the same settings, or another folder."
            )
        if (old.source, old.image_dir) == (wanted.source, wanted.image_dir):
            return found
        found = _extended(folder, old, found, extend=extend)
        wanted = replace(wanted, source=found.fingerprint(), num_images=len(found.pictures))
    write_list(folder / LIST_NAME, found.pictures)
    write_manifest(folder, wanted)
    return found


def _extended(folder: Path, old: Manifest, found: SourceList, *, extend: bool) -> SourceList:
    """The old pictures in their old order, then the new ones."""
    known = read_list(folder / LIST_NAME)
    by_path = {picture.path: picture for picture in found.pictures}
    gone = [path for path in known if path not in by_path]
    added = [picture for picture in found.pictures if picture.path not in set(known)]
    if not extend or gone or old.image_dir != found.root:
        what = f"{len(added)} new pictures and {len(gone)} that are gone" + (f", such as {gone[0]}" if gone else "")
        advice = "Use another folder or delete this one" + (
            "" if gone else ", or allow it to be extended (embedding.extend=true, or --extend)"
        )
        raise UserError(
            f"{folder}: was begun for other pictures ({len(known)} of {old.image_dir or 'several places'}; now there "
            f"are {what}). {advice}."
        )
    if len(known) % old.part_size:
        remove_part(folder, old.num_parts - 1)  # was not full, will be
    logger.info("%s: %d pictures are added to %d", folder, len(added), len(known))
    return found._replace(pictures=[by_path[path] for path in known] + added)


@dataclass(frozen=True)
class _Job:
    """A map-style dataset: picture number -> pixels, or why there are none."""

    found: SourceList
    preprocess: ClipPreprocessing
    part_size: int
    batch_size: int
    strict: bool
    dtype: torch.dtype

    def __getitem__(self, number: int) -> tuple[int, Tensor | None, str]:
        source = self.found.pictures[number]
        try:
            return number, self.preprocess(read_image(source, self.found.root, self.preprocess.resolution)), ""
        except UnreadableImageError as error:
            if self.strict:
                raise
            return number, None, str(error)

    def batches(self, parts: Sequence[int]) -> Iterator[list[int]]:
        """Picture numbers batch by batch; the last one of a part may be short."""
        for part in parts:
            stop = min((part + 1) * self.part_size, len(self.found.pictures))
            for first in range(part * self.part_size, stop, self.batch_size):
                yield list(range(first, min(first + self.batch_size, stop)))


class _Batch(NamedTuple):
    numbers: list[int]  # of the readable pictures
    pixels: Tensor | None  # (B, 3, R, R)
    unreadable: list[tuple[int, str]]
    size: int


def _collate(samples: list[tuple[int, Tensor | None, str]]) -> _Batch:
    good = [(number, pixels) for number, pixels, _ in samples if pixels is not None]
    bad = [(number, reason) for number, pixels, reason in samples if pixels is None]
    pixels = torch.stack([pixels for _, pixels in good]) if good else None
    return _Batch([number for number, _ in good], pixels, bad, len(samples))


def _make_parts(
    folder: Path, job: _Job, parts: Sequence[int], clip: ClipModel, num_workers: int, precision: str
) -> None:
    batches = list(job.batches(parts))
    loaded = load_batches(
        job, batches, collate=_collate, num_workers=num_workers, pin_memory=clip.device.type == "cuda"
    )
    waiting: list[Future[None]] = []
    rows: list[Tensor] = []
    numbers: list[int] = []
    bad: list[tuple[int, str]] = []
    with ThreadPoolExecutor(1) as writer:
        for batch, wanted in zip(_with_progress(loaded, job, batches), batches, strict=True):
            if batch.pixels is not None:
                rows.append(_embed(clip, batch.pixels, precision, job.dtype))
            numbers += batch.numbers
            bad += batch.unreadable
            part, last = wanted[0] // job.part_size, wanted[-1] + 1
            if last % job.part_size == 0 or last == len(job.found.pictures):
                rows = rows or [torch.empty(0, clip.embed_dim, dtype=job.dtype)]
                waiting.append(writer.submit(_write, folder, part, job.found, rows, numbers, bad))
                rows, numbers, bad = [], [], []
            while waiting and (waiting[0].done() or len(waiting) > 2):
                waiting.pop(0).result()
        for future in waiting:
            future.result()


def _with_progress(loaded: Iterator[_Batch], job: _Job, batches: Sequence[Sequence[int]]) -> Iterator[_Batch]:
    pictures = progress(range(sum(map(len, batches))), description="embedding", unit="picture")
    for batch in loaded:
        for _ in range(batch.size):
            next(pictures, None)
        yield batch
    for _ in pictures:
        pass


@torch.inference_mode()
def _embed(clip: ClipModel, pixels: Tensor, precision: str, dtype: torch.dtype) -> Tensor:
    """(B, 3, R, R) -> unit rows (B, D), still on the device so that nothing waits for it."""
    with autocast(clip.device, precision):
        features = clip.encode_image(pixels.to(clip.device, non_blocking=True)).float()
    return torch.nn.functional.normalize(features, dim=1).to(dtype)


def _write(
    folder: Path,
    part: int,
    found: SourceList,
    rows: list[Tensor],
    numbers: list[int],
    bad: list[tuple[int, str]],
) -> None:
    embeddings = torch.cat([row.cpu() for row in rows])
    if not torch.isfinite(embeddings).all():
        raise UserError(
            f"{folder}: the CLIP gave embeddings that are not finite (part {part}). Use precision=fp32, or check its "
            f"weights."
        )
    sources = [found.pictures[number] for number in numbers]
    columns: dict[str, list[str | None]] = {"image_path": [source.path for source in sources]}
    if any(source.caption or source.record for source in sources):
        notes = [read_notes(source) for source in sources]
        columns.update({key: [note[key] for note in notes] for key in ("caption", "url")})
    unreadable = [(found.pictures[number].path, reason) for number, reason in bad]
    write_part(folder, part, embeddings.numpy(), columns, num_images=len(numbers) + len(bad), unreadable=unreadable)


def _finish(folder: Path, found: SourceList, num_parts: int, num_made: int) -> EmbedReport:
    unreadable = read_unreadable(folder, num_parts)
    num_embedded = len(found.pictures) - len(unreadable)
    if is_main():
        lines = [f"{path}\t{reason}\n" for path, reason in [*found.unreadable, *unreadable]]
        write_text(folder / UNREADABLE_NAME, "".join(lines))
    if num_embedded == 0:
        path, reason = unreadable[0]
        raise DataError(
            f"{os.path.join(found.root, path) if found.root else path}: none of the {len(unreadable)} pictures is "
            f"readable, this one because: {reason}. See {folder / UNREADABLE_NAME}."
        )
    if unreadable or found.unreadable:
        count = len(unreadable) + len(found.unreadable)
        logger.warning("%d unreadable pictures or shards were left out: %s", count, folder / UNREADABLE_NAME)
    logger.info("%s: %d embeddings", folder, num_embedded)
    return EmbedReport(num_embedded, len(unreadable), num_made, num_parts - num_made)
