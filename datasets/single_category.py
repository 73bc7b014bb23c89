"""One category of a benchmark against everything else: the pictures that show it, with binary labels.

Which pictures show a category is found by reading every label once, in parallel; a cache file keeps it for all
categories. Scores: `evaluation/binary.py`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from datasets.base import Benchmark
from datasets.metadata import single_category_table
from utils.errors import DataError
from utils.files import read_json, write_json
from utils.log import get_logger, progress
from utils.naming import CATEGORY_SUFFIX, category_file_name

logger = get_logger(__name__)


class CategoryNotShownError(DataError):
    """No picture of a benchmark shows a category."""


class SingleCategoryBenchmark(Benchmark):
    """The pictures of a benchmark that show one category: label 1 there, 0 elsewhere, ignored pixels stay ignored.

    Args:
        source: the whole benchmark, with labels.
        category: one of its names (or the name's form in file names).
        list_dir: folder in which the published list `<category>_<split>.json` is looked for.
        cache_dir: where the categories of all pictures are kept; None: nowhere.

    Raises:
        ConfigError: the benchmark has no such category.
        DataError: a label cannot be read.
        CategoryNotShownError: no picture shows the category.

    Source: NamedMask spec 5 (VOC category).
    """

    binary: ClassVar[bool] = True

    def __init__(
        self,
        source: Benchmark,
        category: str,
        *,
        list_dir: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        if source.label_paths is None:
            raise DataError(f"{source.name} {source.split} has no labels, so its categories cannot be told apart.")
        table = single_category_table(source.table, category)
        self.source, self.category = source, table.names[1]
        self.label = source.category_names.index(self.category)
        rows = read_published_list(source, self.category, list_dir)
        if rows is None:
            shown = find_categories(source, cache_dir)
            rows = [row for row, labels in enumerate(shown) if self.label in labels]
        if not rows:
            raise CategoryNotShownError(f"{source.name} {source.split}: no picture shows {self.category!r}.")
        super().__init__(
            name=f"{source.name}{CATEGORY_SUFFIX}",
            split=source.split,
            table=table,
            image_paths=[source.image_paths[row] for row in rows],
            label_paths=[source.label_paths[row] for row in rows],
            image_ids=[source.image_ids[row] for row in rows],
        )
        self.rows = rows

    @property
    def protocol(self) -> dict[str, str]:
        """What a score depends on; here also which pictures are scored."""
        own = super().protocol
        return {**self.source.protocol, **own, "pictures": f"those whose labels show {self.category!r}"}

    def read_image(self, path: Path) -> np.ndarray:
        """As the whole benchmark reads it."""
        return self.source.read_image(path)

    def read_label(self, path: Path, image_path: Path) -> np.ndarray:
        """1 on the category, 0 elsewhere, and the ignore index; int16, (H, W)."""
        labels = self.source.read_label(path, image_path)
        binary = (labels == self.label).astype(np.int16)
        binary[labels == self.ignore_index] = self.ignore_index
        return binary

    def fit(self, image: np.ndarray, label: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
        """As the whole benchmark does it."""
        return self.source.fit(image, label)

    def fitted_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """As of the whole benchmark."""
        return self.source.fitted_size(size)


def find_categories(benchmark: Benchmark, cache_dir: str | Path | None = None) -> list[list[int]]:
    """The labels that occur in each picture's label file.

    Args:
        benchmark: with labels.
        cache_dir: folder of the file that keeps the result; it is made anew when label files have changed.

    Returns:
        Labels in ascending order, the ignore index left out, for every picture in order.

    Raises:
        DataError: a label cannot be read.
    """
    paths = list(zip(benchmark.label_paths, benchmark.image_paths, strict=True))
    cache_path, digest = None, _digest(benchmark.label_paths)
    if cache_dir is not None:
        cache_path = Path(cache_dir) / f"{benchmark.name}_{benchmark.split}_categories.json"
        if cache_path.is_file():
            record = read_json(cache_path, what="list of categories per picture")
            if isinstance(record, dict) and record.get("digest") == digest and len(record["labels"]) == len(paths):
                return record["labels"]

    def scan(pair: tuple[Path, Path]) -> list[int]:
        labels = benchmark.read_label(*pair)
        counts = np.bincount(labels[(labels >= 0) & (labels < benchmark.num_classes)], minlength=1)
        return np.flatnonzero(counts).tolist()

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        found = pool.map(scan, paths)
        description = f"looking for categories in {benchmark.name} {benchmark.split}"
        labels = list(progress(found, total=len(paths), description=description, unit="label"))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest is not read
    if cache_path is not None:
        write_json(cache_path, {"digest": digest, "labels": labels}, indent=False)
    return labels


def read_published_list(benchmark: Benchmark, category: str, list_dir: str | Path | None) -> list[int] | None:
    """Rows of the pictures that the release's list of a category names, if there is one that fits the benchmark.

    The file `<category>_<split>.json` holds the lists `p_imgs` and `p_gts` of another machine's absolute paths; files
    are recognised by their names.
    """
    if list_dir is None:
        return None
    path = Path(list_dir) / f"{category_file_name(category)}_{benchmark.split}.json"
    if not path.is_file():
        return None
    rows = {image.name: row for row, image in enumerate(benchmark.image_paths)}
    names = _listed_names(read_json(path, what="list of a category's pictures"))
    if names is None:
        reason = "it has no equally long lists p_imgs and p_gts of the same pictures"
    else:
        unknown = [name for name in names if name not in rows]
        if not unknown:
            return sorted(rows[name] for name in names)
        reason = f"{len(unknown)} of its {len(names)} pictures are not in the split, the first is {unknown[0]}"
    logger.warning("%s does not fit and is not used: %s. The labels are read instead.", path, reason)
    return None


def _listed_names(record: Any) -> list[str] | None:
    """File names of the pictures in a published list; None if it is none."""
    if not isinstance(record, dict):
        return None
    images, labels = ([Path(str(entry)) for entry in record.get(key) or []] for key in ("p_imgs", "p_gts"))
    if not images or [path.stem for path in images] != [path.stem for path in labels]:
        return None
    return [path.name for path in images]


def _digest(paths: Sequence[Path]) -> str:
    """Changes with the names, sizes and times of files."""
    digest = hashlib.sha256()
    for path in paths:
        facts = path.stat()
        digest.update(f"{path.parent.name}/{path.name} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()
