"""Retrieval: exact search in a memory-mapped index, and reading the published pickle, against the plain way.

The plain way follows the original's steps: unpickle the dictionary, stack it, multiply, sort all similarities of each
category, and look the best up in an array of all names that is built again for every category. It is measured on a part
of the index and scaled by the number of images (sorting alone would grow a little faster).
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Context, Measurement, benchmark
from retrieval.archive import retrieve_images
from retrieval.convert import convert_pickle
from retrieval.index import EmbeddingFolder, open_index
from retrieval.parts import write_part
from retrieval.unpickle import TensorFile

NUM_CATEGORIES, DIM, NUM_IMAGES = 80, 768, 500
ROWS_PER_PART, NUM_PARTS = 62_500, 16  # one million images, 1.5 GB
PLAIN_ROWS = 16_000


@benchmark("retrieval")
def measure(context: Context) -> Iterator[Measurement]:
    """80 names in a million embeddings, and the conversion of a pickle."""
    with tempfile.TemporaryDirectory(prefix="unmasked-retrieval-") as folder:
        yield _measure_search(context, Path(folder))
        yield _measure_reading(context, Path(folder))


def _measure_search(context: Context, folder: Path) -> Measurement:
    text = _unit_rows(context, NUM_CATEGORIES).numpy()
    names = [f"category {number}" for number in range(NUM_CATEGORIES)]
    base = _unit_rows(context, ROWS_PER_PART).half()
    pickle_path = _write_pickle(folder, base[:PLAIN_ROWS].float())
    whole, quarter = (_write_index(folder / str(parts), base, parts) for parts in (NUM_PARTS, NUM_PARTS // 4))

    def ours(index: EmbeddingFolder) -> dict[str, list[str]]:
        return retrieve_images(names, text, [index], NUM_IMAGES, device=context.device)

    def plain() -> dict[str, list[str]]:
        return plain_retrieval(pickle_path, torch.from_numpy(text), names)

    _check_equal(plain(), pickle_path, text, names)
    timing, plain_timing = context.time_pair(lambda: ours(whole), plain, plain_repeats=2)
    scale = len(whole) / PLAIN_ROWS
    peaks = [context.peak_memory(lambda index=index: ours(index), anonymous_only=True) for index in (quarter, whole)]
    return Measurement(
        name="retrieval",
        workload=f"{NUM_CATEGORIES} names x {len(whole)} images x {DIM}, best {NUM_IMAGES}",
        seconds=timing.seconds,
        spread=timing.spread,
        plain_seconds=plain_timing.seconds * scale,
        limit="matrix products alone, at the best block size",
        limit_seconds=_product_seconds(context, len(whole)),
        peak_mib=peaks[1],
        plain_peak_mib=context.peak_memory(plain) * scale,
        note=(
            f"plain way measured on {PLAIN_ROWS} images and scaled; memory beyond the mapped index "
            f"{peaks[0]:.0f} MiB for {len(quarter)} images, {peaks[1]:.0f} MiB for {len(whole)}; "
            f"{len(whole) / timing.seconds / 1e6:.2f} million images/s"
        ),
    )


def _measure_reading(context: Context, folder: Path) -> Measurement:
    path = folder / "embeddings.pkl"
    number = iter(range(10**6))

    def ours() -> None:
        convert_pickle(path, folder / f"converted{next(number)}")

    def plain() -> Tensor:
        return torch.stack(list(pickle.loads(path.read_bytes()).values()))

    timing, plain_timing = context.time_pair(ours, plain)
    reading = context.time(lambda: sum(1 for _ in TensorFile(path).iterate()))
    return Measurement(
        name="retrieval reading",
        workload=f"pickle of {PLAIN_ROWS} tensors of {DIM} -> embedding folder",
        seconds=timing.seconds,
        spread=timing.spread,
        plain_seconds=plain_timing.seconds,
        limit="copying the file's bytes in memory",
        limit_seconds=context.limits.copy_seconds(path.stat().st_size) if context.device.type == "cpu" else None,
        peak_mib=context.peak_memory(ours, anonymous_only=True),
        plain_peak_mib=context.peak_memory(plain, anonymous_only=True),
        note=f"{1e6 * reading.seconds / PLAIN_ROWS:.1f} us per entry without writing",
    )


def _unit_rows(context: Context, count: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(count, DIM, generator=context.generator()), dim=1)


def _write_pickle(folder: Path, rows: Tensor) -> Path:
    path = folder / "embeddings.pkl"
    entries = {f"n{number % 1000:08d}_{number}.JPEG": row.clone() for number, row in enumerate(rows)}
    path.write_bytes(pickle.dumps(entries))
    return path


def _write_index(folder: Path, base: Tensor, num_parts: int) -> EmbeddingFolder:
    """Parts of different rows: the same numbers, in other columns."""
    for part in range(num_parts):
        rows = base.roll(7 * part, dims=1).numpy()
        names = [f"n{part:08d}/n{part:08d}_{number}.JPEG" for number in range(len(rows))]
        write_part(folder, part, rows, {"image_path": names}, num_images=len(rows))
    return EmbeddingFolder(folder, image_dir="/index")


def _product_seconds(context: Context, num_rows: int) -> float:
    """Time of the matrix products of a search, at the fastest of several block sizes."""
    sizes = (512, 1024, 2048, 4096, 16384)
    return min(context.limits.matmul_seconds(NUM_CATEGORIES, DIM, size) / size for size in sizes) * num_rows


def plain_retrieval(path: Path, text: Tensor, names: list[str]) -> dict[str, list[str]]:
    """Category -> names of the best images, step by step as the specification words them."""
    with open(path, "rb") as file:
        name_to_embedding = pickle.load(file)
    file_names = list(name_to_embedding)
    embeddings = torch.stack([name_to_embedding[name] for name in file_names])
    similarities = text @ embeddings.T
    found = {}
    for row, name in zip(similarities, names, strict=True):
        order = row.argsort(descending=True).tolist()
        paths = np.array([f"/index/{file_name}" for file_name in file_names])
        found[name] = paths[order[:NUM_IMAGES]].tolist()
    return found


def _check_equal(expected: dict[str, list[str]], path: Path, text: np.ndarray, names: list[str]) -> None:
    index = open_index(path, image_dir="/index", layout="flat")
    found = retrieve_images(names, text, [index], NUM_IMAGES)
    same = [set(found[name]) == set(expected[name]) for name in names]
    if np.mean(same) < 0.95:  # near ties may fall either way where the plain way rounds differently
        raise RuntimeError("the two ways of retrieving disagree")
