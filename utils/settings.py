"""The settings of every system: one typed model each, found by the YAML key `system`.

A setting's YAML key is its alias where it has one (the names that the published configurations use), else its name.
To add a system: write `settings_<system>.py` and add one line to `SETTINGS`.
"""

from __future__ import annotations

from typing import Any

from utils.setting_blocks import LoaderSettings, OptimiserSettings, RunSettings, SolverSettings, TrainLoaderSettings
from utils.settings_namedmask import NamedMaskSettings
from utils.settings_recipe import RecipeSettings
from utils.settings_reco import RecoSettings
from utils.settings_retrieval import RetrievalSettings
from utils.settings_selfmask import SelfMaskSettings
from utils.settings_zutis import ZutisSettings

__all__ = [
    "SETTINGS",
    "LoaderSettings",
    "NamedMaskSettings",
    "OptimiserSettings",
    "RecipeSettings",
    "RecoSettings",
    "RetrievalSettings",
    "RunSettings",
    "SelfMaskSettings",
    "SolverSettings",
    "TrainLoaderSettings",
    "ZutisSettings",
    "yaml_values",
]

SETTINGS: dict[str, type[RunSettings]] = {
    "zutis": ZutisSettings,
    "selfmask": SelfMaskSettings,
    "namedmask": NamedMaskSettings,
    "reco": RecoSettings,
}


def yaml_values(settings: RunSettings) -> dict[str, Any]:
    """All settings under their YAML keys, as plain values."""
    return settings.model_dump(mode="json", by_alias=True)
