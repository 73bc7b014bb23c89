"""One module per recipe, found by the YAML key `system` and imported only when it is used.

Each has `train(settings, *, resume, dry_run)`, `evaluate(settings, weights)` and `segment_pictures(weights, images, *,
categories, output_dir, settings, overrides)`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from torch import Tensor

from networks.checkpoint_causes import deeplab_backbone, recognise
from networks.checkpoints import read_state_dict
from pseudo_labels.references import holds_references
from utils.config import load_settings
from utils.errors import ConfigError, WeightsError

SYSTEMS = {name: f"systems.{name}" for name in ("zutis", "selfmask", "namedmask", "reco")}
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
    if holds_references(weights):
        return "reco"
    if weights.is_dir():
        raise WeightsError(f"{weights}: not a run folder (there is no config.yaml in it). Give a weight file instead.")
    state_dict = read_state_dict(weights)
    kind = recognise(state_dict)
    if kind == "DeepLabv3+" and deeplab_backbone(state_dict) == "resnet101" and _num_classes(state_dict) in (27, 19):
        return "reco"  # as ReCo+ is published; NamedMask has ResNet-50 and other numbers of classes
    if kind not in _KINDS:
        raise WeightsError(
            f"{weights}: these look like {kind or 'no known'} weights; expected {' or '.join(_KINDS)}. "
            f"If you know the system, give its config with --config."
        )
    return _KINDS[kind]


def _num_classes(state_dict: Mapping[str, Tensor]) -> int:
    return len(state_dict["classifier.classifier.3.weight"])
