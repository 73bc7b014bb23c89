"""Reference embeddings as a file: the published pickles, and our own with everything that they depend on inside.

Where they come from: ``reference_building.py``.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from networks.cosine_maps import TEMPERATURE
from pseudo_labels.cosegmentation import SeedWindow
from retrieval.prompts import load_templates
from retrieval.unpickle import read_tensor_dict
from utils.errors import DataError
from utils.files import atomic_write
from utils.log import get_logger

FORMAT = "unmasked-references-1"
SHARED = ("encoder", "dense_clip", "templates", "temperature")  # settings that references and predictions have to share
CONTEXT_CATEGORIES = ("tree", "sky", "building", "road", "person")
SHOWN = 5
logger = get_logger(__name__)


@dataclass(frozen=True)
class ReferenceSettings:
    """Everything that reference embeddings depend on; the defaults are the published ones.

    Attributes:
        encoder: the image encoder, with a digest where it is a file.
        dense_clip: the CLIP of the text attention.
        retrieval_clip: the CLIP that chose the pictures.
        templates: prompts of both CLIPs.
        num_images: pictures per category.
        image_size: side that they are brought to, in pixels.
        text_attention, context_elimination: whether positions are weighted by the name, and by what is always around.
        context_categories: what is always around, in the order in which their references are computed.
        temperature: factor of the text cosine inside the sigmoid.
        seed_window: as in ``cosegmentation.find_seeds``.
    """

    encoder: str = "DeiT-S/16-SIN"
    dense_clip: str = "RN50x16"
    retrieval_clip: str = "ViT-L/14@336px"
    templates: tuple[str, ...] = field(default_factory=load_templates)
    num_images: int = 50
    image_size: int = 224
    text_attention: bool = True
    context_elimination: bool = True
    context_categories: tuple[str, ...] = CONTEXT_CATEGORIES
    temperature: float = TEMPERATURE
    seed_window: SeedWindow = "published"

    @property
    def used_context(self) -> tuple[str, ...]:
        """The context categories that have an influence: all of them, or none."""
        return self.context_categories if self.context_elimination else ()

    def record(self) -> dict[str, Any]:
        """What has an influence, as plain data."""
        record = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        record["context_categories"] = list(self.used_context)
        return record if self.text_attention else record | {"dense_clip": None, "temperature": None}


@dataclass(frozen=True)
class References:
    """One reference embedding per category.

    Attributes:
        names: categories in the order of their labels.
        vectors: unit rows, (n, D), float32, on the CPU.
        context_names, context: the same of the context categories, (m, D).
    """

    names: tuple[str, ...]
    vectors: Tensor
    context_names: tuple[str, ...] = ()
    context: Tensor | None = None

    def by_name(self) -> dict[str, Tensor]:
        """Vectors (D,) of the context and of the categories by their names."""
        context = {} if self.context is None else dict(zip(self.context_names, self.context, strict=True))
        return context | dict(zip(self.names, self.vectors, strict=True))

    def digest(self) -> str:
        """What names and vectors are known by, wherever they were read from."""
        content = hashlib.sha256("\0".join(self.names).encode())
        content.update(self.vectors.float().contiguous().numpy().tobytes())
        return content.hexdigest()[:16]


def write_references(
    path: str | Path, references: References, settings: ReferenceSettings, *, index_dirs: Sequence[str] = ()
) -> None:
    """Write references with their names, prompts and settings, atomically.

    Args:
        path: `.safetensors` file.
        references: what ``build_references`` returned.
        settings: what it was given.
        index_dirs: folders that the pictures were retrieved from.

    Raises:
        UserError: if the file cannot be written.
    """
    context = references.vectors[:0] if references.context is None else references.context
    record = settings.record() | {"index_dirs": list(index_dirs)}
    facts = {"names": references.names, "context_names": references.context_names, "settings": record}
    metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in facts.items()}
    tensors = {"references": references.vectors.contiguous(), "context": context.contiguous()}
    with atomic_write(path) as file:
        file.write(save(tensors, metadata))


def holds_references(path: str | Path) -> bool:
    """Whether a file is one of reference embeddings: a pickle (`.pkl`), or our own format."""
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        return path.suffix == ".pkl" and path.is_file()
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (SafetensorError, OSError):
        return False


def read_references(
    path: str | Path,
    *,
    categories: Sequence[str] | None = None,
    width: int | None = None,
    settings: ReferenceSettings | None = None,
    index_dirs: Sequence[str] | None = None,
    for_prediction: bool = False,
) -> References:
    """Read references and check that they are the ones that are wanted.

    Args:
        path: our own `.safetensors` file, or a published pickle (`..._cat_to_img_feature_k50.pkl`), whose tensors may
            have lain on a GPU. Nothing in it is executed.
        categories: names of the benchmark in the order of their labels; None: those of the file, in its order.
        width: channels of the image encoder.
        settings: those of this run; a pickle does not tell how it was made, so only our own files are compared.
        index_dirs: folders that the pictures have to come from; None: any.
        for_prediction: compare only those of the settings that predictions need, too: networks and prompts.

    Returns:
        References in the order of ``categories``.

    Raises:
        DataError: if the file is missing, damaged or of another kind, or was made for other categories, another
            encoder or with other settings; says which.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"{path}: reference embeddings not found. Check the path, or leave it out to compute them from retrieved "
            "pictures."
        )
    if path.suffix == ".safetensors":
        references, record = _read_own(path)
        if settings is not None:
            wanted = settings.record() | ({} if index_dirs is None else {"index_dirs": list(index_dirs)})
            if for_prediction:  # a record has None where something had no influence
                wanted = {key: value for key, value in wanted.items() if key in SHARED and record.get(key) is not None}
            _check_settings(path, record, wanted)
    else:
        references = _read_published(path)
        logger.info("%s: %d published references; how they were made is not known", path, len(references.names))
    _check_lengths(path, references)
    if width is not None:
        check_width(references, width, path)
    return references if categories is None else in_order(references, categories, path)


def _read_published(path: Path) -> References:
    try:
        tensors = read_tensor_dict(path)
    except DataError as error:
        raise DataError(
            f"expected reference embeddings, a published pickle (.pkl) or a file of ours (.safetensors). {error}"
        ) from error
    shapes = {tuple(tensor.shape) for tensor in tensors.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        found = ", ".join(map(str, sorted(shapes)[:SHOWN])) or "nothing"
        raise DataError(f"{path}: expected one vector per category, all of one length; found shapes {found}.")
    return References(tuple(tensors), torch.stack(list(tensors.values())).float())


def _read_own(path: Path) -> tuple[References, dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DataError(
                    f"{path}: expected reference embeddings ({FORMAT}), found {metadata.get('format') or 'others'}. "
                    "Give another file."
                )
            vectors, context = file.get_tensor("references"), file.get_tensor("context")
        names, context_names, record = (json.loads(metadata[key]) for key in ("names", "context_names", "settings"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: these reference embeddings are damaged ({error}). Give a whole copy; if an earlier run computed "
            "them, delete the file and run again."
        ) from error
    if len(names) != len(vectors):
        raise DataError(f"{path}: holds {len(vectors)} vectors for {len(names)} names. Delete the file and run again.")
    return References(tuple(names), vectors, tuple(context_names), context), record


def _check_settings(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    differing = [
        f"\n  {key}: made with {_shown(found.get(key))}, now {_shown(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if differing:
        raise DataError(
            f"{path}: these reference embeddings were made with other settings:{''.join(differing)}\n"
            "Set them back, or give another file."
        )


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) > SHOWN:
        return f"{len(value)} such as {value[0]!r}"
    return repr(value)


def check_width(references: References, width: int, path: Path) -> None:
    """Refuse references (of a file ``path``) that have not the ``width`` channels of the image encoder: DataError."""
    if references.vectors.shape[1] != width:
        raise DataError(
            f"{path}: holds references of {references.vectors.shape[1]} channels, but the image encoder has {width}. "
            "They belong to another encoder: choose that one (encoder_arch), or give another file."
        )


def _check_lengths(path: Path, references: References) -> None:
    wrong = (references.vectors.norm(dim=1) - 1).abs().nan_to_num(nan=torch.inf) > 1e-2
    if wrong.any():
        name = references.names[int(wrong.byte().argmax())]
        raise DataError(f"{path}: the vector of {name!r} has no unit length. Is this a file of reference embeddings?")


def in_order(references: References, categories: Sequence[str], path: Path, *, tells_extra: bool = True) -> References:
    """The references of the categories, in their order.

    Args:
        references: of a file.
        categories: names.
        path: the file, for messages.
        tells_extra: warn if the file has more than these.

    Raises:
        DataError: if some are missing; says which.
    """
    rows = {name: row for row, name in enumerate(references.names)}
    extra = [name for name in references.names if name not in set(categories)]
    if missing := [name for name in categories if name not in rows]:
        lines = []
        for name in missing[:SHOWN]:
            near = difflib.get_close_matches(name, extra, n=1)
            lines.append(f"\n  missing: {name!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
        more = f"\n  and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        unused = f"\n  not among your categories: {_shown(extra)}" if extra else ""
        raise DataError(
            f"{path}: these reference embeddings are of other categories, {len(missing)} of {len(categories)} are not "
            f"in it:{''.join(lines)}{more}{unused}\nGive the file of this benchmark, or rename the categories."
        )
    if extra and tells_extra:
        logger.warning("%s: %d of its references are not used: %s", path, len(extra), _shown(extra))
    vectors = references.vectors[[rows[name] for name in categories]]
    return dataclasses.replace(references, names=tuple(categories), vectors=vectors)
