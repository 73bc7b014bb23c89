"""Text embeddings are made once: a cache of them beside the downloaded weights.

A cache that cannot be written or read costs time alone: embeddings are made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from utils.download import cache_dir
from utils.errors import UserError
from utils.files import atomic_write
from utils.log import get_logger

logger = get_logger(__name__)
_TOLD: set[Path] = set()  # folders that could not be written


def cached_text(source: str, *details: str, make: Callable[[], Tensor]) -> Tensor:
    """Embeddings from the cache, or made and put there.

    Args:
        source: the CLIP, a name or a file; a changed file gives other embeddings.
        details: everything else that they depend on: precision, prompts, names in order.
        make: makes them, any shape, on any device.

    Returns:
        As made, on the CPU.
    """
    path = cache_dir() / "text_embeddings" / f"{_cache_key(source, *details)}.safetensors"
    text = _read(path)
    if text is None:
        text = make().cpu().contiguous()
        _keep(path, text)
    return text


def _read(path: Path) -> Tensor | None:
    """The embeddings of a file; None if there are none, or none that can be read."""
    try:
        return load_file(path)["text_embeddings"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (SafetensorError, OSError, KeyError) as error:
        logger.warning("%s: these text embeddings cannot be read (%s) and are made again", path, error)
        return None


def _keep(path: Path, text: Tensor) -> None:
    """Write embeddings; a folder that cannot be written is told once in the process."""
    try:
        with atomic_write(path) as file:
            file.write(save({"text_embeddings": text}))
    except UserError as error:
        if path.parent not in _TOLD:
            _TOLD.add(path.parent)
            advice = "set UNMASKED_CACHE to a folder that can be written to keep them"
            logger.warning("text embeddings are made anew every time; %s. %s", advice, error)


def _cache_key(source: str, *details: str) -> str:
    parts = [source, *details]
    if Path(source).is_file():
        stat = Path(source).stat()
        parts += [str(Path(source).resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
