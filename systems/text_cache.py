"""Text embeddings are made once: a cache of them beside the downloaded weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

from utils.download import cache_dir
from utils.files import atomic_write


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
    if path.is_file():
        return load_file(path)["text_embeddings"]
    text = make().cpu().contiguous()
    with atomic_write(path) as file:
        file.write(save({"text_embeddings": text}))
    return text


def _cache_key(source: str, *details: str) -> str:
    parts = [source, *details]
    if Path(source).is_file():
        stat = Path(source).stat()
        parts += [str(Path(source).resolve()), str(stat.st_size), str(stat.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
