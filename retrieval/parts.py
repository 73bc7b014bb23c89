"""The numbered parts of an embedding folder: how they are named, written whole, and known to be complete.

The layout is that of clip-retrieval, `img_emb/img_emb_NNNN.npy` beside `metadata/metadata_NNNN.parquet`, plus
`index.json` (what the folder holds) and `parts/part_NNNN.json`, which is written last and so marks a complete part.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from utils.errors import DataError
from utils.files import atomic_write, read_json, write_json

FORMAT = "unmasked-embeddings-1"
MANIFEST_NAME = "index.json"
ROWS_PER_GROUP = 8192  # of a parquet file: a few rows are read without the others


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an embedding folder holds, fixed when it is begun.

    Attributes:
        source: hash of the list of pictures, or what identifies the converted file.
        model: name of the CLIP, or "" where it is not known.
        part_size: pictures per part, unreadable ones included.
        num_images: pictures in all parts together, unreadable ones included; -1 while it is not known.
        image_dir: folder that relative image paths start from, or "".
    """

    source: str
    model: str
    part_size: int
    num_images: int
    image_dir: str = ""

    @property
    def num_parts(self) -> int:
        """Number of parts that make the folder complete."""
        return -(-self.num_images // self.part_size)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder, or None for a folder of another program.

    Raises:
        DataError: if the file is damaged or of another version.
    """
    path = folder / MANIFEST_NAME
    if not path.exists():
        return None
    record = read_json(path, what="description of an embedding folder")
    fields = [field.name for field in dataclasses.fields(Manifest)]
    if not isinstance(record, dict) or record.get("format") != FORMAT or not record.keys() >= set(fields):
        raise DataError(
            f"{path}: expected the description of an embedding folder ({FORMAT}), found something else. "
            f"Choose another folder, or delete this one and embed again."
        )
    return Manifest(**{name: record[name] for name in fields})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest atomically."""
    write_json(folder / MANIFEST_NAME, {"format": FORMAT, **dataclasses.asdict(manifest)})


def embeddings_path(folder: Path, number: int) -> Path:
    """File of a part's embeddings."""
    return folder / "img_emb" / f"img_emb_{number:04d}.npy"


def metadata_path(folder: Path, number: int) -> Path:
    """File of a part's image paths and captions."""
    return folder / "metadata" / f"metadata_{number:04d}.parquet"


def marker_path(folder: Path, number: int) -> Path:
    """File that says that a part is complete."""
    return folder / "parts" / f"part_{number:04d}.json"


def is_complete(folder: Path, number: int) -> bool:
    """Whether a part was written to its end."""
    paths = (marker_path(folder, number), embeddings_path(folder, number), metadata_path(folder, number))
    return all(path.exists() for path in paths)


def write_part(
    folder: Path,
    number: int,
    embeddings: NDArray[Any],
    columns: Mapping[str, Sequence[str | None]],
    *,
    num_images: int,
    unreadable: Sequence[tuple[str, str]] = (),
) -> None:
    """Write one part; it counts as complete only when all of it is on the disk.

    Args:
        folder: the embedding folder.
        number: of the part, from 0.
        embeddings: (n, D) float16 or float32.
        columns: columns of the metadata, n entries each, `image_path` among them.
        num_images: pictures that the part stands for, unreadable ones included.
        unreadable: (path, reason) of the pictures that have no embedding.

    Raises:
        UserError: if the disk is full or the folder cannot be written.
    """
    with atomic_write(embeddings_path(folder, number)) as file:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, np.lib.format.header_data_from_array_1_0(embeddings))
        file.write(buffer.getvalue())
        file.write(np.ascontiguousarray(embeddings).data)
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    with atomic_write(metadata_path(folder, number)) as file:
        pq.write_table(table, file, row_group_size=ROWS_PER_GROUP)
    facts = {"num_rows": len(embeddings), "num_images": num_images, "unreadable": [list(pair) for pair in unreadable]}
    write_json(marker_path(folder, number), facts)


def remove_part(folder: Path, number: int) -> None:
    """Forget a part, its marker first."""
    for path in (marker_path(folder, number), embeddings_path(folder, number), metadata_path(folder, number)):
        path.unlink(missing_ok=True)


def read_unreadable(folder: Path, num_parts: int) -> list[tuple[str, str]]:
    """(path, reason) of every picture without an embedding, over all complete parts."""
    found = []
    for number in range(num_parts):
        record = read_json(marker_path(folder, number), what="marker of a complete part")
        found.extend((path, reason) for path, reason in record["unreadable"])
    return found


def narrowest_exact(embeddings: NDArray[np.float32]) -> NDArray[Any]:
    """The same numbers as float16 if all of them fit exactly (the published files do), else unchanged.

    Args:
        embeddings: (n, D) float32.
    """
    import torch  # numpy converts to float16 about ten times slower

    values = torch.from_numpy(embeddings)
    half = values.half()
    return half.numpy() if torch.equal(half.float(), values) else embeddings
