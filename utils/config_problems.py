"""Words for what is wrong with settings: pydantic's error records become lines that a user can act on."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from utils.setting_types import ChoiceError, Switchable
from utils.yaml_source import KeyPath, Tree, dotted

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a block `key: value`",
    "model_type": "a block `key: value`",
    "model_attributes_type": "a block `key: value`",
    "path_type": "a path",
    "is_instance_of": "a path",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_LONG = 80


def nearest(name: str, allowed: Sequence[str]) -> str | None:
    """The allowed name that looks most like a given one, or None if nothing is close."""
    lower = {candidate.lower(): candidate for candidate in allowed}
    matches = difflib.get_close_matches(name.lower(), list(lower), n=1, cutoff=0.6)
    return lower[matches[0]] if matches else None


def explain_errors(error: ValidationError, model: type[BaseModel], tree: Tree, source: str) -> list[str]:
    """One line per wrong setting: where it is written, its key, what was received, what is allowed.

    Args:
        error: what pydantic found.
        model: the settings model.
        tree: the values with their origins.
        source: the config file, for settings that no file mentions.
    """
    lines = []
    for item in error.errors(include_url=False):
        path = _real_path(item["loc"], tree)
        origin = tree.origin(path) or source
        lines.append(f"{origin}: {dotted(path)}: {_explain(item, path, model)}")
    return list(dict.fromkeys(lines))


def _real_path(location: tuple[int | str, ...], tree: Tree) -> KeyPath:
    """The part of pydantic's location that is a key of the config (unions and validators add their own parts)."""
    path: list[int | str] = []
    value: Any = tree.values
    for part in location:
        if _has(value, part):
            value = value[part]
        elif isinstance(value, (dict, list)) and part == location[-1]:
            return (*path, part)
        else:
            break
        path.append(part)
    return tuple(path) or tuple(location)


def _has(value: Any, part: int | str) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _explain(item: Any, path: KeyPath, model: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path, model)
    if kind == "missing":
        return "not set, but needed"
    received = f"received {_shown(item['input'])}"
    if kind == "literal_error":
        allowed = _literal_values(context["expected"]) + (["off"] if _can_be_off(path, model) else [])
        return f"{received}, expected one of {', '.join(allowed)}{_hint(item['input'], allowed)}"
    if isinstance(context.get("error"), ChoiceError):
        choice = context["error"]
        return f"received {choice.received!r}, {choice}{_hint(choice.received, choice.allowed)}"
    if kind == "value_error":
        return str(context["error"])
    if kind in _EXPECTED:
        hint = "; put it in quotes to make it text" if kind == "string_type" and _is_scalar(item["input"]) else ""
        if kind.startswith("model_") and _can_be_off(path, model):
            return f"{received}, expected off, or {_EXPECTED[kind]} (left out: on){_hint(item['input'], ['off'])}"
        return f"{received}, expected {_EXPECTED[kind]}{hint}"
    if kind == "string_pattern_mismatch":
        return f"{received}, expected {_pattern_words(context['pattern'])}"
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{received}, expected {words} {context[name]}"
    message = str(item["msg"]).replace("Input should be ", "").replace("Tuple should", "should")
    return f"{received}, expected {message}"


def _pattern_words(pattern: str) -> str:
    return "auto, cpu, cuda or cuda:<number>" if pattern.startswith("^(auto|cpu") else f"text like {pattern}"


def _unknown_key(path: KeyPath, model: type[BaseModel]) -> str:
    """An unknown setting, with the nearest one of the block it is in (its Python name counts as well)."""
    owner = block_at(model, path[:-1])
    where = f" of {dotted(path[:-1])!r}" if len(path) > 1 else ""
    if owner is None:
        return f"not a setting{where}"
    keys = {name: info.alias or name for name, info in owner.model_fields.items()}
    candidates = {**keys, **{key: key for key in keys.values()}}
    match = nearest(str(path[-1]), list(candidates))
    if match:
        return f"not a setting{where} (did you mean {candidates[match]!r}?)"
    return f"not a setting{where}; it has {', '.join(keys.values())}"


def block_at(model: type[BaseModel] | None, path: KeyPath) -> type[BaseModel] | None:
    """The model of the block that a key path leads to, from the model of the whole; None if it leads to no block."""
    for part in path:
        if isinstance(part, int):
            continue
        if model is None:
            return None
        info = next((i for name, i in model.model_fields.items() if part in (name, i.alias)), None)
        model = _block_in(info.annotation) if info is not None else None
    return model


def _block_in(annotation: Any) -> type[BaseModel] | None:
    """The settings block inside an annotation such as `Block | None` or `list[Block]`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for part in typing.get_args(annotation):
        found = _block_in(part)
        if found is not None:
            return found
    return None


def _can_be_off(path: KeyPath, model: type[BaseModel]) -> bool:
    """Whether a setting takes `off`."""
    owner = block_at(model, path[:-1])
    fields = {} if owner is None else owner.model_fields
    return any(Switchable in info.metadata for name, info in fields.items() if path[-1] in (name, info.alias))


def _literal_values(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _hint(received: Any, allowed: Sequence[str]) -> str:
    match = nearest(str(received), allowed) if isinstance(received, str) else None
    return f" (did you mean {match!r}?)" if match else ""


def _is_scalar(value: Any) -> bool:
    return isinstance(value, (int, float, bool))


def _shown(value: Any) -> str:
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(str(value)) if isinstance(value, str) else repr(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 3]}..."
