"""Prompt templates: sentences with `{}` in the place of the category name.

Retrieval averages over an ensemble of them; the segmenter itself uses bare names (`networks/text.py`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

from utils.errors import ConfigError, DataError
from utils.files import read_json

ENSEMBLE = "retrieval_85"
_DATA = Path(__file__).with_name("prompt_templates.json")


@functools.cache
def _named_templates() -> dict[str, tuple[str, ...]]:
    record = read_json(_DATA, what="prompt templates")
    return {name: tuple(value) for name, value in record.items() if isinstance(value, list) and name != "notes"}


def load_templates(source: str | Path | Sequence[str] = ENSEMBLE) -> tuple[str, ...]:
    """The templates that a setting names.

    Args:
        source: "retrieval_85" (the published ensemble), "raw_name" (the name alone), one template, the path of a text
            file with one template per line (blank lines and lines that begin with # are skipped), or a list of
            templates; a list with a single entry may also be any of the former.

    Returns:
        At least one template; each holds `{}`.

    Raises:
        ConfigError: if a template has no `{}`, or there is none; says which.
        DataError: if a named file is missing or unreadable.
    """
    if not isinstance(source, (str, Path)):
        source = list(source)
        if len(source) != 1:
            return _checked(source, "prompts")
        source = source[0]
    name = str(source)
    if name in _named_templates():
        return _named_templates()[name]
    if "{" in name and not Path(name).exists():
        return _checked([name], "prompts")
    return _checked(_read_lines(Path(name)), name)


def templates_digest(templates: Sequence[str]) -> str:
    """What templates are known by in records of how something was made."""
    return hashlib.sha256("\n".join(templates).encode()).hexdigest()[:16]


def _read_lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        known = ", ".join(_named_templates())
        raise DataError(
            f"{path}: no such prompt file. Expected one of {known}, a text file with one template per line, or "
            f"templates such as 'a photo of a {{}}.'"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: prompt file cannot be read ({error}).") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _checked(templates: Sequence[str], where: str) -> tuple[str, ...]:
    if not templates:
        raise ConfigError(f"{where}: expected prompt templates, found none.")
    for number, template in enumerate(templates, start=1):
        if not isinstance(template, str) or "{}" not in template:
            raise ConfigError(
                f"{where}: template {number} has no {{}} in the place of the category name: {template!r}. "
                f"Write for example 'a photo of a {{}}.'"
            )
    return tuple(templates)
