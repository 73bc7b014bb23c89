"""ReCo's label maps of a whole split as PNGs, which ReCo+ learns from: resumed file by file, shared out over ranks.

One folder per kind of label (`dt`, `dt_crf`), below it the names of the release. A record beside them tells how they
were made, so that labels of two kinds never mix.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets.base import Benchmark
from datasets.label_files import read_index_png
from evaluation.evaluate import EvaluationResult, protocol_of
from evaluation.prediction_stream import Predict, Prediction, Refiner, predict_pictures
from evaluation.semantic import SemanticResult, SemanticScores
from pseudo_labels.label_maps import LabelWriter, is_complete
from utils.distributed import all_gather_objects, on_main, patient_group, shard
from utils.errors import DataError
from utils.files import read_json, write_json, write_text
from utils.loader import load_batches
from utils.log import get_logger, progress
from utils.settings_reco import CRF_FOLDER, PLAIN_FOLDER

logger = get_logger(__name__)
RECORD, REFUSED = "pseudo_labels.json", "refused_pictures.txt"
SHOWN = 5


@dataclass(frozen=True)
class LabelFolder:
    """Where the label PNGs of a split lie.

    Attributes:
        path: holds one folder per kind, the record, and the list of refused pictures.
        pictures: reader of the pictures, which also knows the names of the PNGs.
        kinds: the folders, some of "dt" and "dt_crf".
    """

    path: Path
    pictures: Benchmark
    kinds: Sequence[str]

    def file(self, kind: str, picture: Path) -> Path:
        """The PNG of a picture."""
        return self.pictures.export_path(self.path / kind, picture)

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of the pictures that lack a PNG of some kind."""
        paths = self.pictures.image_paths
        return [i for i in indices if not all(is_complete(self.file(kind, paths[i])) for kind in self.kinds)]

    def refused(self) -> list[Path]:
        """Pictures that could not be read."""
        try:
            lines = (self.path / REFUSED).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [Path(line.split("\t")[0]) for line in lines]

    def is_finished(self, num_pictures: int | None = None) -> bool:
        """Whether every one of the first pictures has its PNGs, or was refused; the same on all ranks."""
        indices = range(len(self.pictures) if num_pictures is None else min(num_pictures, len(self.pictures)))
        refused = {path for path in self.refused() if not self._changed_since(path)}
        done = all(self.pictures.image_paths[i] in refused for i in self.missing(indices))
        return all(all_gather_objects(done))  # together: another rank may be writing the last ones

    def _changed_since(self, picture: Path) -> bool:
        """Whether a refused picture was written, or made readable, after it was refused."""
        try:
            return picture.stat().st_ctime_ns > (self.path / REFUSED).stat().st_mtime_ns
        except OSError:
            return False

    def check_record(self, facts: Mapping[str, Any]) -> None:
        """Refuse a folder whose labels were made otherwise; note down how they are made in a new one.

        A folder that has no labels with a CRF yet (no block `crf` in its record) may get some.

        Raises:
            DataError: says what differs.
        """

        def check() -> None:
            path = self.path / RECORD
            if not path.is_file():
                write_json(path, facts)
                return
            stored = read_json(path, what="record of how label PNGs were made")
            is_first_crf = "crf" in facts and "crf" not in stored
            record = _flat({**stored, "crf": facts["crf"]} if is_first_crf else stored)
            differing = [
                f"\n  {key}: made with {_shown(record.get(key))}, now {_shown(value)}"
                for key, value in _flat(facts).items()
                if record.get(key) != value
            ]
            if differing:
                raise DataError(
                    f"{self.path}: the label PNGs in this folder were made with other settings:{''.join(differing)}\n"
                    "Set them back, give the run another name or suffix, or delete the folder to make them again."
                )
            if is_first_crf:
                write_json(path, {**stored, "crf": facts["crf"]})

        on_main(check)


def _flat(facts: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Facts without blocks: `{"crf": {"iterations": 10}}` -> `{"crf.iterations": 10}`."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return flat


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def write_pseudo_labels(
    folder: LabelFolder,
    predict: Predict,
    refiner: Refiner | None,
    *,
    device: torch.device,
    batch_size: int,
    num_workers: int,
    num_pictures: int | None = None,
    skips_unreadable: bool = False,
) -> None:
    """Write the label PNGs that are missing; every rank takes its share.

    Args:
        folder: where they go.
        predict: picture to labels.
        refiner: for "dt_crf"; not used where that is not among the kinds.
        device: where predictions are made.
        batch_size: pictures of equal size at a time.
        num_workers: loader processes per rank.
        num_pictures: only those of the first pictures; None: of all.
        skips_unreadable: list pictures that cannot be read in `refused_pictures.txt` and go on.

    Raises:
        UnreadableImageError: a picture that cannot be read, unless they are skipped.
        UserError: a file that cannot be written.
    """
    start, group = time.monotonic(), patient_group()
    total = len(folder.pictures) if num_pictures is None else min(num_pictures, len(folder.pictures))
    own = shard(range(total))
    todo = folder.missing(own)
    existing = len(own) - len(todo)
    logger.info("pseudo-labels: %d pictures, %d skipped because they have PNGs: %s", total, existing, folder.path)
    refused: list[tuple[str, str]] = []
    pairs = predict_pictures(
        _as_bytes(predict) if PLAIN_FOLDER in folder.kinds else predict,
        folder.pictures,
        todo,
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        refiner=refiner if CRF_FOLDER in folder.kinds else None,
        refuse=(lambda path, reason: refused.append((str(path), reason))) if skips_unreadable else None,
        description="pseudo-labels",
    )
    with LabelWriter() as writer, torch.inference_mode():
        for picture, prediction in pairs:
            for kind in folder.kinds:
                path = folder.file(kind, Path(picture.path))
                if not is_complete(path):  # the file of one kind may have been written before the run was killed
                    labels = prediction.refined if kind == CRF_FOLDER else prediction.labels
                    writer.write(path, labels.to(torch.uint8).numpy())
    gathered = all_gather_objects(refused, group)
    # Others wait: what is refused is read from the file.
    on_main(lambda: _report_refused([entry for part in gathered for entry in part], folder.path / REFUSED))
    logger.info("pseudo-labels: done in %.0f s", time.monotonic() - start)


def _as_bytes(predict: Predict) -> Predict:
    """Plain labels as bytes on the CPU: from an accelerator one copy per batch, not one per picture."""

    def run(images: torch.Tensor, size: tuple[int, int]) -> list[Prediction]:
        predictions = predict(images, size)
        labels = torch.stack([prediction.labels for prediction in predictions]).to(torch.uint8).cpu()  # (B, H, W)
        return [replace(prediction, labels=label) for prediction, label in zip(predictions, labels, strict=True)]

    return run


def _report_refused(refused: Sequence[tuple[str, str]], path: Path) -> None:
    """Say which pictures have no labels, and list them in a file."""
    for _, reason in refused[:SHOWN]:
        logger.warning("no labels: %s", reason)
    if refused:
        write_text(path, "".join(f"{picture}\t{reason}\n" for picture, reason in refused))
        logger.warning("%d pictures without labels: %s", len(refused), path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def score_pseudo_labels(
    folder: LabelFolder, *, protocol: Mapping[str, Any], num_workers: int, num_pictures: int | None = None
) -> EvaluationResult:
    """Compare label PNGs with the labels of their benchmark; nobody learns from these scores.

    Args:
        folder: complete, of a benchmark with labels.
        protocol: how the labels were made (entries of `evaluation.protocol.Protocol`).
        num_workers: loader processes per rank.
        num_pictures: score only the first so many.
    """
    start, benchmark = time.perf_counter(), folder.pictures
    total = len(benchmark) if num_pictures is None else min(num_pictures, len(benchmark))
    scores = {kind: SemanticScores(benchmark.num_classes) for kind in folder.kinds}
    batches = [[i] for i in shard(range(total))]
    loaded = load_batches(_LabelPairs(folder), batches, collate=_first, num_workers=num_workers)
    for truth, *predicted in progress(loaded, total=len(batches), description="scoring labels", unit="image"):
        for counts, labels in zip(scores.values(), predicted, strict=True):
            counts.update(truth, labels)
    results: dict[str, SemanticResult] = {}
    for kind, counts in scores.items():
        counts.synchronise()
        results[kind] = counts.compute()
    return EvaluationResult(
        semantic=results.get(PLAIN_FOLDER),
        coco=None,
        coco_class_agnostic=None,
        records=[],
        protocol=protocol_of(benchmark, num_images=total, **protocol),
        seconds=time.perf_counter() - start,
        refined=results.get(CRF_FOLDER),
        refiner="crf" if CRF_FOLDER in results else "",
    )


@dataclass(frozen=True)
class _LabelPairs:
    """A map-style dataset: index -> (true labels, predicted labels of every kind), each (H, W)."""

    folder: LabelFolder

    def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
        benchmark, picture = self.folder.pictures, self.folder.pictures.image_paths[index]
        label = benchmark.read_label(benchmark.label_paths[index], picture)
        blank = np.zeros((*label.shape, 3), np.uint8)  # where labels end up does not depend on the picture's pixels
        maps = [benchmark.fit(blank, label)[1]]
        maps += [read_index_png(self.folder.file(kind, picture)) for kind in self.folder.kinds]
        if len({labels.shape for labels in maps}) > 1:
            raise DataError(f"{picture}: its label PNGs have other sizes than its label: {[m.shape for m in maps]}.")
        return tuple(torch.from_numpy(np.ascontiguousarray(labels)) for labels in maps)


def _first(items: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    return items[0]
