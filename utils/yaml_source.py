"""YAML as configuration needs it: where every value came from, duplicate keys refused, `${...}` filled in.

Plain values follow YAML 1.2 (`1e-5` is a number; `no` and `on` are words). Every string remembers the folder that a
relative path in it is relative to. Next: `utils/config.py` merges such files and validates them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from utils.errors import ConfigError

KeyPath = tuple[str | int, ...]
_REFERENCE = re.compile(r"\$\$\{|\$\{([^{}:]+)(?::-([^{}]*))?\}")
_MISSING = object()


class SourcedStr(str):
    """A string from a config file or the command line that knows what a relative path in it is relative to."""

    __slots__ = ("base_dir",)
    base_dir: Path

    def __new__(cls, text: str, base_dir: Path) -> SourcedStr:
        made = super().__new__(cls, text)
        made.base_dir = base_dir
        return made


@dataclass(frozen=True)
class Origin:
    """Where a value was written: a file and line, or the command line."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass
class Tree:
    """Nested values, the origin of each, and the problems met while reading them."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def origin(self, path: KeyPath) -> Origin | None:
        """Origin of a key, or of the closest block around it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.origins:
                return self.origins[path[:end]]
        return None


class _Loader(yaml.SafeLoader):
    """SafeLoader with the plain scalars of YAML 1.2."""


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts quotes round every string that `_Loader` would take for something else."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        "-+.0123456789",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, *, source: str, base_dir: Path, prefix: KeyPath = ()) -> tuple[Any, Tree]:
    """Turn YAML text into values and remember where each was written.

    Args:
        text: the document.
        source: file name (or "command line") for messages.
        base_dir: what relative paths in it are relative to.
        prefix: keys above the document.

    Returns:
        The value, and a `Tree` with its origins and the problems found (duplicate keys, tags). Its `values` are empty.

    Raises:
        ConfigError: if the text is not YAML; names line and column.
    """
    tree = Tree()
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_problem(source, error)) from error
    if node is None:
        return None, tree
    try:
        return _Builder(tree, source, base_dir).build(node, prefix), tree
    except RecursionError as error:
        raise ConfigError(f"{source}: a block contains itself (YAML alias). Write it out.") from error


def _yaml_problem(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f":{mark.line + 1}" if mark is not None and source != "command line" else ""
    reason = getattr(error, "problem", None) or str(error)
    column = f" at column {mark.column + 1}" if mark is not None else ""
    return f"{source}{where}: not valid YAML{column}: {reason}"


class _Builder:
    def __init__(self, tree: Tree, source: str, base_dir: Path) -> None:
        self.tree, self.source, self.base_dir = tree, source, base_dir

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.tree.origins[path] = self._origin(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _origin(self, node: yaml.Node) -> Origin:
        line = None if self.source == "command line" else node.start_mark.line + 1
        return Origin(self.source, line)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            if key in values:
                first = self.tree.origins[here]
                self.tree.problems.append(f"{self._origin(key_node)}: {dotted(here)}: given twice (first at {first})")
            values[key] = self.build(value_node, here)
            self.tree.origins[here] = self._origin(key_node)
        return values

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        tag = node.tag.rsplit(":", 1)[-1]
        if tag == "int":
            return int(node.value)
        if tag == "float":
            return float(re.sub(r"\.(inf|nan)$", r"\1", node.value.lower()))
        if tag == "bool":
            return node.value.lower() == "true"
        if tag == "null":
            return None
        if tag != "str":
            self.tree.problems.append(f"{self._origin(node)}: {dotted(path)}: the YAML tag {node.tag} is not allowed")
        return SourcedStr(node.value, self.base_dir)


def dotted(path: KeyPath) -> str:
    """`("solver", "lam")` -> "solver.lam"; list positions in brackets."""
    text = ""
    for key in path:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else str(key)
    return text


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that `parse_yaml` and `fill_references` read back to the same values."""
    return yaml.dump(_escaped(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    if isinstance(value, (str, Path)):
        return str(value).replace("${", "$${")
    return value


def fill_references(tree: Tree, defaults: Mapping[str, Any]) -> None:
    """Replace every `${name}` in a tree, in place; problems are added to `tree.problems`.

    `name` is another key (dotted), else an environment variable, else the text after `:-`. A value that is nothing but
    one reference keeps the type of what it refers to. `$${` stands for a plain `${`.

    Args:
        tree: merged values.
        defaults: values of settings that no file mentions.
    """
    filler = _Filler(tree, defaults)
    tree.values = {key: filler.fill(value, (key,)) for key, value in tree.values.items()}


class _Filler:
    def __init__(self, tree: Tree, defaults: Mapping[str, Any]) -> None:
        self.tree, self.raw, self.defaults = tree, tree.values, defaults
        self.active: list[str] = []

    def fill(self, value: Any, path: KeyPath) -> Any:
        if isinstance(value, dict):
            return {key: self.fill(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, (*path, i)) for i, item in enumerate(value)]
        if not isinstance(value, SourcedStr) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole and whole.group(1):
            return self._refer(whole, value, path)
        return self._embedded(value, path)

    def _embedded(self, value: SourcedStr, path: KeyPath) -> SourcedStr:
        base_dir = value.base_dir

        def replace(match: re.Match[str]) -> str:
            nonlocal base_dir
            if match.group(1) is None:
                return "${"
            found = self._refer(match, value, path, typed=False)
            if match.start() == 0 and isinstance(found, SourcedStr):
                base_dir = found.base_dir
            if found is None or isinstance(found, (dict, list)):
                kind = "not set" if found is None else "a block or list"
                self._problem(path, f"refers to {match.group(1)!r}, which is {kind}")
                return ""
            return str(found)

        return SourcedStr(_REFERENCE.sub(replace, value), base_dir)

    def _refer(self, match: re.Match[str], value: SourcedStr, path: KeyPath, *, typed: bool = True) -> Any:
        name, fallback = match.group(1).strip(), match.group(2)
        if name in self.active or name == dotted(path):
            chain = " -> ".join([*self.active, name])
            self._problem(path, f"refers to itself ({chain})")
            return None
        found = _look_up(self.raw, name)
        if found is not _MISSING and not (found is None and fallback is not None):
            self.active.append(name)
            try:
                return self.fill(found, tuple(name.split(".")))
            finally:
                self.active.pop()
        if name in os.environ:
            return _plain_value(os.environ[name], Path.cwd(), typed)
        if fallback is not None:
            return _plain_value(fallback, value.base_dir, typed)
        if name in self.defaults:
            return self.defaults[name]
        self._problem(path, f"refers to {name!r}, which is neither a key nor an environment variable")
        return None

    def _problem(self, path: KeyPath, text: str) -> None:
        line = f"{self.tree.origin(path) or 'config'}: {dotted(path)}: {text}"
        if line not in self.tree.problems:
            self.tree.problems.append(line)


def _plain_value(text: str, base_dir: Path, typed: bool) -> Any:
    """A word from the environment: a number or truth value if it reads as one and `typed`, else text."""
    try:
        value = parse_yaml(text, source="command line", base_dir=base_dir)[0] if typed else None
    except ConfigError:
        value = None
    return value if isinstance(value, (int, float, bool)) else SourcedStr(text, base_dir)


def _look_up(values: Any, name: str) -> Any:
    for key in name.split("."):
        if not isinstance(values, dict) or key not in values:
            return _MISSING
        values = values[key]
    return values
