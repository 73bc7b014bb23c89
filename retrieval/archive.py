"""The retrieval stage: which index images belong to each category, kept as an image archive.

`retrieve_archive` is the whole stage, as systems call it: embeddings, search, file. The file itself is read and checked
by `retrieval/archive_file.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from networks.clip import ClipModel
from networks.text import encode_prompt_ensemble
from retrieval.archive_file import Archive, foreground, read_archive, write_archive
from retrieval.embed import embed_images
from retrieval.index import EmbeddingIndex, open_index
from retrieval.prompts import load_templates, templates_digest
from retrieval.search import search
from utils.distributed import all_gather_objects, barrier, is_main, on_main
from utils.errors import ConfigError, DataError, UserError
from utils.files import read_json, write_json
from utils.log import get_logger

__all__ = ["Archive", "foreground", "read_archive", "retrieve_archive", "retrieve_images", "write_archive"]
logger = get_logger(__name__)


def retrieve_images(
    categories: Sequence[str],
    text: NDArray[np.float32] | Tensor,
    indices: Sequence[EmbeddingIndex],
    num_images: int,
    *,
    block_size: int | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, list[str]]:
    """Paths of the most similar images of each category.

    Args:
        categories: names; "background" is left out.
        text: (K, D) float32, one row per remaining name.
        indices: searched together.
        num_images: images per category; all images if there are fewer.
        block_size, device: as in `search`.

    Returns:
        Category -> paths, most similar first, in the order of the names.

    Source: ZUTIS, section 3.1 (image archives); the published search sorts all similarities, unstably.
    """
    names = foreground(categories)
    if len(names) != len(text):
        raise ValueError(f"{len(names)} categories but {len(text)} text embeddings")
    found = search(text, indices, num_images, block_size=block_size, device=device)
    rows, places = np.unique(found.rows, return_inverse=True)
    paths = paths_of(indices, rows)
    places = places.reshape(found.rows.shape)
    return {name: [paths[place] for place in places[number]] for number, name in enumerate(names)}


def paths_of(indices: Sequence[EmbeddingIndex], rows: NDArray[np.int64]) -> list[str]:
    """Image paths of ascending rows that count through all indices."""
    starts = np.cumsum([0, *map(len, indices)])
    borders = np.searchsorted(rows, starts)
    paths: list[str] = []
    for index, start, low, high in zip(indices, starts, borders[:-1], borders[1:], strict=False):
        paths += index.paths((rows[low:high] - start).tolist())
    return paths


def retrieve_archive(
    categories: Sequence[str],
    *,
    index_dirs: Sequence[str | Path],
    embedding_paths: Sequence[str | Path] = (),
    clip: Callable[[], ClipModel],
    model_name: str,
    num_images: int,
    archive_path: str | Path,
    templates: str | Sequence[str] = "retrieval_85",
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    batch_size: int = 256,
    num_workers: int = 8,
    strict: bool = False,
    path_map: Mapping[str, str] | None = None,
    layout: str = "auto",
    same_index: bool = False,
    extend: bool = False,
) -> Archive:
    """The retrieval stage: use the image archive if there is one, else embed what is not embedded, search, write it.

    Args:
        categories: all category names; "background" is left out.
        index_dirs: folders of unlabelled pictures.
        embedding_paths: one per folder: a published pickle, a folder of embeddings, or where to make one. By default
            folders beside the archive.
        clip: gives the retrieval CLIP; called only if something has to be computed.
        model_name: its name, kept with what it makes.
        num_images: images per category.
        archive_path: JSON file, `category_to_p_images`.
        templates: prompts, as in `retrieval.prompts.load_templates`.
        device, precision, batch_size, num_workers, strict: as in `embed_images`.
        path_map: as in `read_archive`.
        layout: as in `retrieval.index.image_path_for`.
        same_index: the archive is this run's own: refuse it if it was retrieved from other folders than `index_dirs`,
            and retrieve for names that are not in it yet.
        extend: as in `embed_images`.

    Returns:
        Category -> existing image paths, in the order of the categories.

    Raises:
        UserError: whatever is wrong with pictures, embeddings or the archive; also if the archive was made with other
            settings than these.
    """
    archive_path, names, templates = Path(archive_path), foreground(categories), load_templates(templates)
    check = partial(_check_meta, archive_path, model_name, templates, num_images)
    known, names_to_find, num_kept = _known_and_new(archive_path, names, index_dirs if same_index else (), check)
    num_pictures = None
    if names_to_find:
        model = _Once(clip)
        options = {"device": device, "precision": precision, "batch_size": batch_size, "num_workers": num_workers}
        options |= {"clip": model, "model_name": model_name, "strict": strict, "extend": extend}
        indices = _open_indices(index_dirs, embedding_paths, archive_path, layout, options)
        with torch.inference_mode():
            text = encode_prompt_ensemble(model().to(device), names_to_find, templates)
        num_pictures = sum(map(len, indices))
        logger.info("searching %d images for %d categories", num_pictures, len(names_to_find))
        num_kept = max(num_kept, num_images)  # as many as of the names that are known
        archive = known | retrieve_images(names_to_find, text, indices, num_kept, device=device)
        if is_main():
            _write_meta(archive_path, model_name, templates, num_kept, index_dirs, len(archive))
            write_archive(archive_path, archive)
        barrier()
    found = read_archive(archive_path, categories=names, num_images=num_images, path_map=path_map)
    _warn_if_alike(found, num_pictures)
    return found


def _warn_if_alike(archive: Archive, num_pictures: int | None) -> None:
    """Say when categories hardly differ in their pictures; `num_pictures`: of the index, where that was searched.

    Half is where it turns: a picture is more likely to be listed for another category than not, or a category is shown
    more of the index than is kept from it.
    """
    counts = Counter(path for paths in archive.values() for path in set(paths))
    num_shared, largest = sum(count > 1 for count in counts.values()), max(map(len, archive.values()), default=0)
    if 2 * num_shared > len(counts):
        reason = f"{num_shared} of the {len(counts)} retrieved pictures are listed for several categories"
    elif num_pictures is not None and 2 * largest > num_pictures:
        reason = f"a category gets {largest} of the {num_pictures} pictures of the index"
    else:
        return
    logger.warning(
        "%s, so that retrieval hardly tells what shows a category. Lower n_images, or give an index with more pictures",
        reason,
    )


def _known_and_new(
    path: Path,
    names: Sequence[str],
    own_index: Sequence[str | Path],
    check: Callable[[Sequence[str | Path]], int],
) -> tuple[dict[str, list[str]], list[str], int]:
    """What an archive holds, the names to retrieve for (all if there is none yet, new ones if it may grow), and how
    many images it has of each name.

    Args:
        path: of the archive.
        names: that are wanted.
        own_index: folders that it has to come from, where it is the run's own and may grow; else empty.
        check: of its record, given `own_index`; tells how many images it has of each name.
    """
    if not all_gather_objects(path.is_file())[0]:
        return {}, list(names), 0
    found: list[tuple[dict[str, list[str]] | None, int]] = []
    on_main(lambda: found.append((_stored_archive(path) if own_index else None, check(own_index))))
    known, num_kept = all_gather_objects(found)[0][0]
    return ({}, [], num_kept) if known is None else (known, [name for name in names if name not in known], num_kept)


def _open_indices(
    index_dirs: Sequence[str | Path],
    embedding_paths: Sequence[str | Path],
    archive_path: Path,
    layout: str,
    embedding: Mapping[str, Any],
) -> list[EmbeddingIndex]:
    """The embeddings of all index folders; those that are missing are made with the options of `_embed_if_needed`."""
    if not index_dirs:
        raise ConfigError(
            "dir_train_dataset: expected at least one folder of pictures to retrieve from (there is no image "
            f"archive at {archive_path} yet)."
        )
    paths = _embedding_folders(index_dirs, embedding_paths, archive_path)
    for image_dir, path in zip(index_dirs, paths, strict=True):
        _embed_if_needed(image_dir, path, **embedding)
    return [_open_once(path, image_dir, layout) for path, image_dir in zip(paths, index_dirs, strict=True)]


def _stored_archive(path: Path) -> dict[str, list[str]] | None:
    """An archive that may grow, as it is stored; None if it is not known how it was made, or it is no archive."""
    record = read_json(path, what="image archive")
    return record if isinstance(record, dict) and _meta_path(path).exists() else None


class _Once:
    """Calls a function at its first use only."""

    def __init__(self, make: Callable[[], ClipModel]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> ClipModel:
        if self._made is None:
            self._made = self._make()
        return self._made


def _embedding_folders(
    index_dirs: Sequence[str | Path], embedding_paths: Sequence[str | Path], archive_path: Path
) -> list[Path]:
    if embedding_paths and len(embedding_paths) != len(index_dirs):
        raise ConfigError(
            f"p_filename_to_image_embedding: expected one path per folder in dir_train_dataset ({len(index_dirs)}), "
            f"received {len(embedding_paths)}."
        )
    if embedding_paths:
        return [Path(path) for path in embedding_paths]
    names = [f"embeddings_{number}_{Path(image_dir).name}" for number, image_dir in enumerate(index_dirs)]
    return [archive_path.parent / name for name in names]


def folders_to_embed(
    index_dirs: Sequence[str | Path], embedding_paths: Sequence[str | Path], archive_path: str | Path
) -> list[Path]:
    """Index folders whose pictures `retrieve_archive` embeds itself, or has embedded; arguments as there."""
    paths = _embedding_folders(index_dirs, embedding_paths, Path(archive_path))
    return [Path(folder) for folder, path in zip(index_dirs, paths, strict=True) if not _is_given(path)]


def _is_given(path: Path) -> bool:
    """Whether embeddings are a file, or a folder that another program made."""
    return path.is_file() or ((path / "img_emb").is_dir() and not (path / "index.json").exists())


def _embed_if_needed(
    image_dir: str | Path,
    path: Path,
    clip: _Once,
    model_name: str,
    device: torch.device | str,
    precision: str,
    batch_size: int,
    num_workers: int,
    strict: bool,
    extend: bool,
) -> None:
    if _is_given(path):
        return
    if path.suffix in (".pkl", ".pickle"):
        raise DataError(
            f"{path}: embedding file not found. Download it (scripts/download_weights.sh), or give a folder instead, "
            f"which is then made from {image_dir}."
        )
    embed_images(
        [image_dir],
        path,
        clip(),
        model_name=model_name,
        batch_size=batch_size,
        num_workers=num_workers,
        device=device,
        precision=precision,
        strict=strict,
        extend=extend,
    )


def _open_once(path: Path, image_dir: str | Path, layout: str) -> EmbeddingIndex:
    """Open on the main rank first: a pickle is converted by one process."""
    image_dir = Path(image_dir).expanduser().absolute()  # archives hold absolute paths
    if is_main():
        open_index(path, image_dir=image_dir, layout=layout)
    barrier()
    return open_index(path, image_dir=image_dir, layout=layout)


def _meta_path(archive_path: Path) -> Path:
    return archive_path.with_name(archive_path.name.removesuffix(".json") + ".meta.json")


def _protocol(model_name: str, templates: Sequence[str]) -> dict[str, Any]:
    return {"model": model_name, "templates": f"{len(templates)} templates, {templates_digest(templates)}"}


def _write_meta(
    archive_path: Path,
    model_name: str,
    templates: Sequence[str],
    num_images: int,
    index_dirs: Sequence[str | Path],
    num_categories: int,
) -> None:
    facts = {"num_images": num_images, "index_dirs": folder_names(index_dirs), "num_categories": num_categories}
    write_json(_meta_path(archive_path), _protocol(model_name, templates) | facts)


def folder_names(folders: Sequence[str | Path]) -> list[str]:
    """Index folders as records of how something was made name them: absolute."""
    return [str(Path(folder).expanduser().absolute()) for folder in folders]


def _check_meta(
    archive_path: Path, model_name: str, templates: Sequence[str], num_images: int, index_dirs: Sequence[str | Path]
) -> int:
    """Refuse an archive of ours that was made in another way; files of other origin say nothing about it.

    Returns:
        Images per category that it was made with; 0 if that is not known.
    """
    path = _meta_path(archive_path)
    if not path.exists():
        logger.info("%s: used as it is; how it was made is not known", archive_path)
        return 0
    record = read_json(path, what="record of how an image archive was made")
    wanted = _protocol(model_name, templates) | ({"index_dirs": folder_names(index_dirs)} if index_dirs else {})
    record["index_dirs"] = folder_names(record.get("index_dirs", ()))
    differing = [
        f"{key}: made with {record.get(key)!r}, now {value!r}"
        for key, value in wanted.items()
        if record.get(key) != value
    ]
    if record.get("num_images", 0) < num_images:
        differing.append(f"n_images: made with {record.get('num_images')}, now {num_images}")
    if differing:
        raise UserError(
            f"{archive_path}: this image archive was made with other settings ({'; '.join(differing)}). Set them back, "
            f"give another category_to_p_images_fp, or delete the file to retrieve again."
        )
    return record["num_images"]
