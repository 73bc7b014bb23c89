"""One module per recipe, found by the YAML key `system` and imported only when it is used.

Each has `train(settings, *, resume, dry_run)`, `evaluate(settings, weights)` and `segment_pictures(weights, images, *,
categories, output_dir, settings, overrides)`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

from networks.checkpoint_causes import recognise
from networks.checkpoints import read_state_dict
from utils.config import load_settings
from utils.errors import ConfigError, WeightsError

SYSTEMS = {"zutis": "systems.zutis", "selfmask": "systems.selfmask", "namedmask": "systems.namedmask"}
_KINDS = {"ZUTIS": "zutis", "SelfMask": "selfmask", "DeepLabv3+": "namedmask"}


def get_system(name: str) -> ModuleType:
    """The module of a system.

    Raises:
        ConfigError: if there is no such system; names those there are.
    """
    if name not in SYSTEMS:
        raise ConfigError(f"system: received {name!r}, expected one of {', '.join(SYSTEMS)}")
    return importlib.import_module(SYSTEMS[name])


def find_system(weights: str | Path) -> str:
    """Name of the system that a run folder or weight file belongs to.

    Args:
        weights: a run folder, a file inside one, or a weight file on its own (told by the names of its tensors).

    Raises:
        WeightsError: if it cannot be told.
    """
    weights = Path(weights)
    config = (weights if weights.is_dir() else weights.parent) / "config.yaml"
    if config.is_file():
        return load_settings(config).system
    if weights.is_dir():
        raise WeightsError(f"{weights}: not a run folder (there is no config.yaml in it). Give a weight file instead.")
    kind = recognise(read_state_dict(weights))
    if kind not in _KINDS:
        raise WeightsError(
            f"{weights}: these look like {kind or 'no known'} weights; expected {' or '.join(_KINDS)}. "
            f"If you know the system, give its config with --config."
        )
    return _KINDS[kind]
