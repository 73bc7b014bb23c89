"""The pseudo-mask stage: images in, one mask file per image out, resumable and shared out over ranks.

Pictures are read and resized in loader processes, the network runs on the device in batches of equal padded size, and
solver, original size and file are left to a pool of processes (`finishing_pool.py`), so that no part waits for another.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from pseudo_labels.batching import batch_by_size
from pseudo_labels.bilateral_solver import SolverSettings
from pseudo_labels.finishing import FinishSettings
from pseudo_labels.finishing_pool import FinishingPool
from pseudo_labels.mask_predictors import MaskPredictor
from pseudo_labels.network_input import reference_levels
from pseudo_labels.picture_stream import MaskJob, Picture, list_jobs, stream_pictures
from pseudo_labels.preview import MaskPreview
from pseudo_labels.store import is_complete
from utils import distributed
from utils.errors import UnreadableImageError
from utils.files import write_text
from utils.log import format_seconds, get_logger, progress

logger = get_logger(__name__)
_BATCHES_HELD_BACK = 8
_MAX_REFUSALS_LOGGED = 10


@dataclass(frozen=True)
class Refusal:
    """An image without a mask, and why."""

    image_path: Path
    reason: str


@dataclass(frozen=True)
class StageReport:
    """What the stage did, over all ranks that share a process group.

    Attributes:
        made: masks written in this run.
        skipped: masks that were there already.
        empty: masks of this run without a single pixel (counted in `made`).
        refused: images that could not be read or did not fit the memory.
        seconds: duration of this run.
    """

    made: int
    skipped: int
    empty: int
    refused: tuple[Refusal, ...]
    seconds: float

    def summary(self) -> str:
        """One line for people."""
        rate = f" ({self.made / self.seconds:.3g} images/s)" if self.made and self.seconds > 0 else ""
        return (
            f"pseudo-masks: {self.made} made in {format_seconds(self.seconds)}{rate}, {self.empty} of them empty, "
            f"{self.skipped} skipped because they exist, {len(self.refused)} images refused"
        )


def make_pseudo_masks(
    image_paths: Sequence[str | Path],
    mask_paths: Sequence[str | Path],
    predictor: MaskPredictor,
    *,
    shorter_side: int | None = 512,
    use_solver: bool = True,
    solver: SolverSettings | None = None,
    batch_size: int = 8,
    num_workers: int = 4,
    num_finishers: int | None = None,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    refused_path: str | Path | None = None,
    preview_path: str | Path | None = None,
    num_preview: int = 8,
    stop_at_bad_image: bool = False,
) -> StageReport:
    """Make the pseudo-mask of every image that has none yet.

    Args:
        image_paths: images of any size and format.
        mask_paths: file of each image's mask (see `pseudo_labels.store.pseudo_mask_path`). A file that holds a whole
            mask is left alone, a damaged one is made again.
        predictor: finds the object; its network is put on `device` and into evaluation mode.
        shorter_side: length in pixels to which the shorter side of every picture is brought; None: as it is.
        use_solver: snap masks to the edges of their pictures with the bilateral solver.
        solver: constants of the solver; the published ones if None.
        batch_size: pictures of equal padded size that share a batch; halved whenever the device's memory is too small.
        num_workers: processes that read and resize pictures; 0 does everything in this process.
        num_finishers: processes that refine and write masks; as many as `num_workers` if None.
        device: where the network runs.
        precision: "fp32" (as published), "bf16" or "fp16".
        refused_path: text file for images without a mask, one `path<tab>reason` per line; absent if there are none.
        preview_path: PNG with the first few masks drawn over their pictures, written as soon as these are there.
        num_preview: masks in the preview.
        stop_at_bad_image: raise at the first image that cannot be read instead of going on without it.

    Returns:
        Counts, refused images and duration. Ranks take every world_size-th image.

    Raises:
        utils.errors.UnreadableImageError: with `stop_at_bad_image`.
        utils.errors.DataError: if two images share one mask file.
        utils.errors.UserError: if a mask cannot be written (full disk, permissions).
    """
    start = time.monotonic()
    jobs = list_jobs(image_paths, mask_paths)
    own_jobs = distributed.shard(jobs)
    todo = [job for job in own_jobs if not is_complete(job.mask_path)]
    skipped = len(own_jobs) - len(todo)
    _log_start(len(own_jobs), skipped, device, batch_size, todo)
    finish = FinishSettings(use_solver, solver or SolverSettings(), reference_levels())
    preview = MaskPreview(preview_path if distributed.is_main() else None, min(num_preview, len(todo)))
    predictor.network.to(device).eval()
    run = _Run(predictor, torch.device(device), precision, batch_size, todo, preview, stop_at_bad_image)
    if todo:
        pool = FinishingPool(finish, num_workers if num_finishers is None else num_finishers, run.note_done)
        with pool:
            run.run(stream_pictures(todo, shorter_side, num_workers, run.device.type == "cuda"), pool)
        preview.write()
    report = StageReport(run.made, skipped, run.empty, tuple(run.refused), time.monotonic() - start)
    report = _merge(distributed.all_gather_objects(report))
    _report_refusals(report.refused, refused_path)
    logger.info("%s", report.summary())
    return report


@dataclass
class _Run:
    """One rank's pass over its pictures: what the network does, and what has been counted so far."""

    predictor: MaskPredictor
    device: torch.device
    precision: str
    batch_size: int
    jobs: Sequence[MaskJob]
    preview: MaskPreview
    stop_at_bad_image: bool
    made: int = 0
    empty: int = 0
    refused: list[Refusal] = field(default_factory=list)

    def run(self, pictures: Iterator[Picture], pool: FinishingPool) -> None:
        """Bring all pictures through the network and hand their masks to the pool."""
        pictures = progress(pictures, total=len(self.jobs), description="pseudo-masks", unit="image")
        batches = batch_by_size(
            self._readable(pictures),
            lambda picture: self.predictor.batch_key(tuple(picture.image.shape[:2])),
            lambda: self.batch_size,
            _BATCHES_HELD_BACK * self.batch_size,
        )
        previous: list[tuple[Picture, Tensor]] = []
        for batch in batches:
            # The device works on this batch while the masks of the one before are fetched and handed on.
            current = self._predict(batch)
            self._hand_on(previous, pool)
            previous = current
        self._hand_on(previous, pool)

    def note_done(self, number: int, num_pixels: int) -> None:
        """Count a written mask."""
        self.made += 1
        self.empty += num_pixels == 0
        self.preview.add(self.jobs[number])

    def _readable(self, pictures: Iterator[Picture]) -> Iterator[Picture]:
        for picture in pictures:
            if not picture.error:
                yield picture
            elif self.stop_at_bad_image:
                raise UnreadableImageError(picture.error)
            else:
                self._refuse(picture, picture.error)

    def _refuse(self, picture: Picture, reason: str) -> None:
        self.refused.append(Refusal(self.jobs[picture.number].image_path, reason))

    def _hand_on(self, predicted: list[tuple[Picture, Tensor]], pool: FinishingPool) -> None:
        for picture, mask in predicted:
            path = self.jobs[picture.number].mask_path
            pool.submit(picture.number, picture.image.numpy(), mask.cpu().numpy(), picture.original_size, path)

    def _predict(self, batch: list[Picture]) -> list[tuple[Picture, Tensor]]:
        """Masks of a batch, in parts that fit the device's memory; a picture that fits nowhere is refused."""
        done: list[tuple[Picture, Tensor]] = []
        waiting = batch
        while waiting:
            part = waiting[: self.batch_size]
            masks = self._try_predict([picture.image for picture in part], self.device)
            if masks is None and len(part) > 1:
                self._halve_batch(len(part))
                continue
            masks = masks if masks is not None else self._predict_alone(part[0])
            done += zip(part, masks, strict=False)
            waiting = waiting[len(part) :]
        return done

    def _try_predict(self, images: list[Tensor], device: torch.device) -> list[Tensor] | None:
        """Masks of a batch, or None if the memory of the device is too small."""
        try:
            return self.predictor.predict(images, device, self.precision)
        except torch.OutOfMemoryError:
            pass  # handled by the caller, after the tensors that the traceback holds are free
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return None

    def _halve_batch(self, failed_size: int) -> None:
        self.batch_size = max(1, failed_size // 2)
        logger.warning(
            "out of memory with %d pictures in a batch: going on with %d. Set batch_size=%d to avoid this.",
            *(failed_size, self.batch_size, self.batch_size),
        )

    def _predict_alone(self, picture: Picture) -> list[Tensor]:
        """Mask of one picture that does not fit the device, made on the CPU; none if it does not fit there either."""
        name = self.jobs[picture.number].image_path
        if self.device.type != "cpu":
            logger.warning("%s: too large for the memory of %s, made on the CPU instead", name, self.device)
            self.predictor.network.to("cpu")
            masks = self._try_predict([picture.image], torch.device("cpu"))
            self.predictor.network.to(self.device)
            if masks is not None:
                return masks
        height, width = picture.image.shape[:2]
        self._refuse(
            picture, f"{name}: too large for the memory at {height}×{width} pixels; use a smaller shorter side"
        )
        return []


def _log_start(num: int, skipped: int, device: torch.device | str, batch_size: int, todo: Sequence[MaskJob]) -> None:
    where = f", below {todo[0].mask_path.parent}" if todo else ""
    logger.info(
        "pseudo-masks: %d images, %d skipped because their mask exists, %d to make on %s in batches of %d%s",
        *(num, skipped, len(todo), device, batch_size, where),
    )


def _merge(reports: list[StageReport]) -> StageReport:
    return StageReport(
        made=sum(report.made for report in reports),
        skipped=sum(report.skipped for report in reports),
        empty=sum(report.empty for report in reports),
        refused=tuple(refusal for report in reports for refusal in report.refused),
        seconds=max(report.seconds for report in reports),
    )


def _report_refusals(refused: Sequence[Refusal], path: str | Path | None) -> None:
    """Say which images have no mask, and list all of them in a file."""
    for refusal in refused[:_MAX_REFUSALS_LOGGED]:
        logger.warning("no pseudo-mask: %s", refusal.reason)
    if len(refused) > _MAX_REFUSALS_LOGGED:
        logger.warning("... and %d more images without a pseudo-mask", len(refused) - _MAX_REFUSALS_LOGGED)
    if path is None or not distributed.is_main():
        return
    if refused:
        write_text(path, "".join(f"{refusal.image_path}\t{refusal.reason}\n" for refusal in refused))
        logger.warning("all %d refused images: %s", len(refused), path)
    else:
        Path(path).unlink(missing_ok=True)
