"""From YAML files and `key=value` words to validated settings, with every problem told at once.

Precedence: command line > the file > its `base:` files > defaults. `load_settings` is the way in; the models are in
`utils/settings.py`, the YAML reader is `utils/yaml_source.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from utils.config_problems import block_at, explain_errors, nearest
from utils.errors import ConfigError
from utils.log import get_logger
from utils.setting_blocks import RunSettings
from utils.setting_types import Block, Task
from utils.settings import SETTINGS, yaml_values
from utils.yaml_source import KeyPath, Origin, Tree, dotted, dump_yaml, fill_references, parse_yaml

logger = get_logger(__name__)
COMMAND_LINE = "command line"
PRECEDENCE = (
    "Precedence: key=value on the command line, then the YAML file, then its base files, then defaults. "
    "Values are YAML (n_iters=100, categories='[cat, dog]', nms=null); dots reach into blocks (solver.sigma_luma=8). "
    "Relative paths are relative to the file that names them, or to the current folder on the command line."
)


def load_settings(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    task: Task | None = None,
    more_problems: Sequence[str] = (),
) -> RunSettings:
    """Read, merge and validate a configuration.

    Args:
        path: YAML file, or None to use only the overrides.
        overrides: words `key=value` of the command line.
        task: "train" or "evaluate" also checks that the files which the task needs exist.
        more_problems: what is wrong with other arguments of the command, to be told in the same list.

    Returns:
        The settings model of the system that the key `system` names.

    Raises:
        ConfigError: lists every problem: where it is written, its key, what was received, what is allowed, and the
            nearest match.
    """
    tree = Tree(problems=list(more_problems))
    if path is not None:
        _merge(tree, _read_file(Path(path), ()))
    for word in overrides:
        _merge(tree, _read_override(word))
    return _validate(tree, task, source=str(path) if path is not None else COMMAND_LINE)


def settings_from_dict(values: Mapping[str, Any], *, source: str, overrides: Sequence[str] = ()) -> RunSettings:
    """Validate settings that were stored with a run, under their YAML keys, with overrides on top.

    Args:
        values: as `yaml_values` gives them.
        source: where they come from, for messages.
        overrides: words `key=value`.

    Raises:
        ConfigError: as `load_settings`.
    """
    text = dump_yaml(values)
    parsed, tree = parse_yaml(text, source=source, base_dir=Path.cwd())
    tree.values = parsed or {}
    tree.origins = {key: Origin(source) for key in tree.origins}
    for word in overrides:
        _merge(tree, _read_override(word))
    return _validate(tree, None, source=source)


def dump_settings(settings: RunSettings) -> str:
    """The settings as YAML that `load_settings` reads back to the same settings."""
    return dump_yaml(yaml_values(settings))


def _read_file(path: Path, chain: tuple[Path, ...]) -> Tree:
    """One file with its bases below it."""
    path = Path(path)
    shown = str(path)
    resolved = path.resolve()
    if resolved in chain:
        raise ConfigError(f"{shown}: base files go in a circle ({' -> '.join(str(p) for p in (*chain, resolved))})")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{shown}: no such config file{_near_file(path)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown}: cannot be read as a config file ({error})") from error
    values, own = parse_yaml(text, source=shown, base_dir=resolved.parent)
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{shown}: expected lines `key: value`, received a {type(values).__name__}")
    own.values = values or {}
    bases = own.values.pop("base", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    tree = Tree()
    for i, base in enumerate(bases):
        if not isinstance(base, str):
            tree.problems.append(f"{own.origin(('base', i))}: base: expected a file name, received {base!r}")
            continue
        _merge(tree, _read_base(base, own, path, (*chain, resolved)))
    _merge(tree, own)
    return tree


def _read_base(base: str, own: Tree, path: Path, chain: tuple[Path, ...]) -> Tree:
    target = path.parent / base
    if not target.is_file():
        problem = f"{own.origin(('base',))}: base: {target} does not exist{_near_file(target)}"
        return Tree(problems=[problem])
    return _read_file(target, chain)


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    match = nearest(path.name, names)
    return f" (did you mean {path.parent / match}?)" if match else ""


def _read_override(word: str) -> Tree:
    """One `key=value` of the command line as a tree."""
    key, separator, text = word.partition("=")
    keys = tuple(key.strip().split("."))
    if not separator or not all(keys):
        return Tree(problems=[f"{COMMAND_LINE}: {word!r}: expected key=value"])
    try:
        value, tree = parse_yaml(text, source=COMMAND_LINE, base_dir=Path.cwd(), prefix=keys)
    except ConfigError as error:
        return Tree(problems=[f"{error} (in {word!r}; text with brackets, colons or quotes needs quotes around it)"])
    tree.origins.setdefault(keys, Origin(COMMAND_LINE))
    for part in reversed(keys):
        value = {part: value}
    tree.values = value
    return tree


def _merge(below: Tree, above: Tree) -> None:
    """Lay one tree over another, in place: blocks are merged, everything else is replaced."""
    _merge_values(below, above, below.values, above.values, ())
    below.origins.update(above.origins)
    below.problems.extend(above.problems)


def _merge_values(below: Tree, above: Tree, low: dict[str, Any], high: dict[str, Any], path: KeyPath) -> None:
    for key, value in high.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(low.get(key), dict):
            _merge_values(below, above, low[key], value, here)
            continue
        low[key] = value
        for old in [origin for origin in below.origins if origin[: len(here)] == here]:
            del below.origins[old]


def _validate(tree: Tree, task: Task | None, *, source: str) -> RunSettings:
    model = _find_model(tree, source)
    values = tree.values
    if model is not None:
        fill_references(tree, {key: value for key, value in _defaults(model).items() if value is not None})
        values = _drop_ineffective(tree, tree.values, model)
        values = _rename_synonyms(tree, values, model)
    problems = list(tree.problems)
    settings = None
    if model is not None:
        settings, more = _build(model, values, tree, task, source)
        problems += more
    if problems or settings is None:
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''} in the settings:"
        raise ConfigError("\n".join([count, *(f"  {problem}" for problem in problems)]))
    return settings


def _find_model(tree: Tree, source: str) -> type[RunSettings] | None:
    allowed = ", ".join(SETTINGS)
    name = tree.values.get("system")
    if name is None:
        tree.problems.append(f"{source}: system: not set; expected one of {allowed}")
        return None
    if name not in SETTINGS:
        match = nearest(str(name), list(SETTINGS))
        hint = f" (did you mean {match!r}?)" if match else ""
        origin = tree.origin(("system",)) or source
        tree.problems.append(f"{origin}: system: received {name!r}, expected one of {allowed}{hint}")
        return None
    return SETTINGS[name]


def _defaults(model: type[RunSettings]) -> dict[str, Any]:
    return {
        info.alias or name: info.get_default(call_default_factory=True)
        for name, info in model.model_fields.items()
        if not info.is_required()
    }


def _drop_ineffective(tree: Tree, values: dict[str, Any], model: type[Block], path: KeyPath = ()) -> dict[str, Any]:
    """The values of a block (`path` leads to it) without those that have no effect, which are told."""
    kept = {}
    for key, value in values.items():
        here = (*path, key)
        if key in model.ineffective:
            logger.warning("%s: %s: this key of the published files has no effect", tree.origin(here), dotted(here))
            continue
        block = block_at(model, (key,)) if isinstance(value, dict) else None
        kept[key] = value if block is None else _drop_ineffective(tree, value, block, here)
    return kept


def _rename_synonyms(tree: Tree, values: dict[str, Any], model: type[RunSettings]) -> dict[str, Any]:
    """Values under our keys; where a setting is given under two names, the one that was written last counts."""
    renamed = dict(values)
    written = {path: number for number, path in enumerate(tree.origins)}  # merging puts later values behind
    for key, target in model.synonyms(values).items():
        if key not in renamed:
            continue
        value, path, origin = renamed.pop(key), tuple(target.split(".")), tree.origin((key,))
        other = tree.origins.get(path)
        if other is not None and origin is not None and other.source == origin.source:
            tree.problems.append(f"{origin}: {key}: the same setting as {target!r}, which is also given; keep one")
        elif other is None or written[path] < written[(key,)]:
            _put(renamed, path, value)
            if origin is not None:
                tree.origins[path] = origin
    return renamed


def _put(values: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set a value inside blocks, which are copied and made where they lack; what is no block is left for validation."""
    *blocks, last = path
    for block in blocks:
        inner = values.get(block, {})
        if not isinstance(inner, dict):
            return
        values[block] = values = dict(inner)
    values[last] = value


def _build(
    model: type[RunSettings], values: dict[str, Any], tree: Tree, task: Task | None, source: str
) -> tuple[RunSettings | None, list[str]]:
    """The settings and the problems of their values, alone and together."""
    python_only = {name for name, key in model.yaml_names().items() if name != key} & set(values)
    problems: list[str] = []
    for name in sorted(python_only):
        key = model.yaml_names()[name]
        problems.append(f"{tree.origin((name,))}: {name}: not a setting (did you mean {key!r}?)")
    values = {key: value for key, value in values.items() if key not in python_only}
    try:
        settings = model.model_validate(values)
        wrong: set[str] = set()
    except ValidationError as error:
        problems += explain_errors(error, model, tree, source)
        wrong = {str(item["loc"][0]) for item in error.errors(include_url=False) if item["loc"]}
        settings = _without(model, values, wrong)
    if settings is not None:
        for problem in settings.check(task):
            if not wrong & {key.split(".")[0] for key in problem.keys}:
                path: KeyPath = tuple(problem.keys[0].split("."))
                problems.append(f"{tree.origin(path) or source}: {dotted(path)}: {problem.text}")
    return settings, problems


def _without(model: type[RunSettings], values: dict[str, Any], wrong: set[str]) -> RunSettings | None:
    """Settings without the wrong values, so that the checks of the others can still be made."""
    try:
        return model.model_validate({key: value for key, value in values.items() if key not in wrong})
    except ValidationError:
        return None
