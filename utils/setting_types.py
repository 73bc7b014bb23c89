"""Building blocks of typed settings: paths, lists that may be one value, and the checks they share.

`utils/settings.py` composes them into one model per system.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from utils.download_table import FILES
from utils.yaml_source import SourcedStr

Task = Literal["train", "evaluate"]


@dataclass(frozen=True)
class Problem:
    """What is wrong with some settings together: the YAML keys that take part, the first of which is blamed."""

    keys: tuple[str, ...]
    text: str


def resolve_path(value: Any) -> Any:
    """A path setting as an absolute path: relative to the file that names it, else to the current folder."""
    if not isinstance(value, (str, Path)):
        return value
    text = os.path.expanduser(str(value))
    if not text.strip():
        raise ValueError("expected a path, received an empty text")
    base_dir = value.base_dir if isinstance(value, SourcedStr) else Path.cwd()
    return Path(os.path.normpath(base_dir / text))


def _path_or_name(value: Any) -> Any:
    """Make values like `weights/clip.pt` absolute where they are paths, and leave names alone."""
    if isinstance(value, SourcedStr) and ":" not in value:
        path = resolve_path(value)
        if value.startswith((".", "~", "/")) or path.is_file():
            return str(path)
    return value


def _as_list(value: Any) -> Any:
    if value is None:
        return []
    return [value] if isinstance(value, (str, Path)) else value


def _as_names(value: Any) -> Any:
    """`a, b` given as one text (command line) is a list of two names."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",")]
    return value


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _off(value: Any) -> Any:
    return None if value is False or value in ("off", "none") else value


AnyPath = Annotated[Path, BeforeValidator(resolve_path, json_schema_input_type=str)]
PathList = Annotated[list[AnyPath], BeforeValidator(_as_list)]
PathOrName = Annotated[str, BeforeValidator(_path_or_name)]
NameList = Annotated[list[str], BeforeValidator(_as_names)]
TextList = Annotated[list[str], BeforeValidator(_as_list)]
Switchable = BeforeValidator(_off)
PositiveInt = Annotated[int, Field(ge=1)]
CountInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
ScaleRange = Annotated[tuple[Fraction, Fraction], BeforeValidator(_as_tuple)]


class Block(BaseModel):
    """Base of every group of settings: unknown keys and loose types are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, populate_by_name=True, validate_default=True, allow_inf_nan=False
    )
    ineffective: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def synonyms(cls, values: Mapping[str, Any]) -> Mapping[str, str]:
        """Other keys that are understood -> ours (dotted into blocks); `values` are those of the whole config."""
        del values
        return {}

    @classmethod
    def yaml_names(cls) -> dict[str, str]:
        """Python name -> YAML key of every setting of this block."""
        return {name: info.alias or name for name, info in cls.model_fields.items()}


def duplicates(names: Sequence[str]) -> list[str]:
    """Names that occur more than once when letter case and outer blanks do not count, in order."""
    seen: set[str] = set()
    again: dict[str, None] = {}
    for name in names:
        key = name.strip().casefold()
        if key in seen:
            again[name.strip()] = None
        seen.add(key)
    return list(again)


def check_names(names: list[str]) -> list[str]:
    """Category names without outer blanks.

    Raises:
        ValueError: if there are none, or some are empty or given twice (letter case does not count).
    """
    if not names:
        raise ValueError("expected at least one category name, received an empty list")
    empty = [str(i + 1) for i, name in enumerate(names) if not name.strip()]
    if empty:
        raise ValueError(f"expected names, but number {', '.join(empty)} of {len(names)} is empty")
    twice = duplicates(names)
    if twice:
        raise ValueError(f"expected each name once, but given more than once: {', '.join(map(repr, twice))}")
    return [name.strip() for name in names]


class ChoiceError(ValueError):
    """A name that is not in a fixed list; knows the list, so that the nearest match can be told."""

    def __init__(self, received: str, allowed: tuple[str, ...], text: str) -> None:
        super().__init__(text)
        self.received, self.allowed = received, allowed


def listing(names: Sequence[str]) -> str:
    """Names with commas between them."""
    return ", ".join(names)


def one_of(name: str, allowed: tuple[str, ...], *, prefix: str | None = None) -> str:
    """The name, if it is allowed or starts with the prefix; raises `ChoiceError` otherwise."""
    if name in allowed or (prefix and name.startswith(prefix) and len(name) > len(prefix)):
        return name
    more = f", {prefix}<name>" if prefix else ""
    raise ChoiceError(name, allowed, f"expected one of {listing(allowed)}{more}")


def check_order(scale_range: tuple[float, float]) -> tuple[float, float]:
    """The range, if its ends are in order; raises ValueError otherwise."""
    if scale_range[0] > scale_range[1]:
        raise ValueError("expected [smallest, largest] with 0 < smallest <= largest <= 1")
    return scale_range


def check_prompts(prompts: list[str]) -> list[str]:
    """Prompts, if they are one name of a template list, or templates with {}; raises ValueError otherwise."""
    if not prompts:
        raise ValueError("expected at least one prompt template")
    is_named = len(prompts) == 1 and prompts[0].isidentifier()
    wrong = [prompt for prompt in prompts if "{}" not in prompt]
    if wrong and not is_named:
        raise ValueError(f"expected templates with {{}} where the name goes; without it: {wrong[0]!r}")
    return prompts


def needs_dir(key: str, path: Path | None, purpose: str) -> list[Problem]:
    """A problem if a folder is not set or does not exist."""
    if path is None:
        return [Problem((key,), f"not set; expected the folder of {purpose}")]
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        return [Problem((key,), f"{path} {what}; expected the folder of {purpose}")]
    return []


def needs_file(key: str, path: Path | None, instead: str = "") -> list[Problem]:
    """A problem if a file is set but does not exist; `instead`: what else may be done, at the end of the sentence."""
    if path is None or path.is_file():
        return []
    what = "is a folder" if path.is_dir() else "does not exist"
    hint = f" (bash scripts/download_weights.sh {path.name})" if path.name in FILES else ""
    return [Problem((key,), f"{path} {what}; expected a file{hint}{instead}")]
