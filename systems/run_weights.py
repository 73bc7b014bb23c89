"""Run folders as weights: which file of a run is used, and what its checkpoint knows besides tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from networks.checkpoints import read_checkpoint
from training.run_folder import RunFolder
from utils.config_problems import nearest
from utils.errors import ConfigError, WeightsError


def folder_of(weights: Path) -> RunFolder:
    """The run folder that weights lie in (which need not be one)."""
    return RunFolder(weights if weights.is_dir() else weights.parent)


def weight_file(weights: Path) -> Path:
    """The file itself, or of a run folder the best weights, else the final ones, else the checkpoint.

    Raises:
        WeightsError: a folder without any.
    """
    if not weights.is_dir():
        return weights
    if files := _weights_in(weights):
        return files[0]
    raise WeightsError(
        f"{weights}: no weights in this folder (expected best.pt, final_model.pt or checkpoint.pt). "
        "Give the folder of a training run that has reached a checkpoint, or a weight file."
    )


def has_weights(folder: Path) -> bool:
    """Whether a run folder has weights, those of a checkpoint at least."""
    return bool(_weights_in(folder))


def _weights_in(folder: Path) -> list[Path]:
    """Files with weights, the best first."""
    run = RunFolder(folder)
    return [path for path in (run.best_path, run.final_model_path, run.checkpoint_path) if path.is_file()]


def stored_state(run: RunFolder) -> dict[str, Any]:
    """What a run's checkpoint knows besides weights, `category_names` among it; empty for a file on its own."""
    if not (run.config_path.is_file() and run.checkpoint_path.is_file()):
        return {}
    content = read_checkpoint(run.checkpoint_path, mapped=True)  # most of it is the optimiser's
    extra = content.get("extra", {})
    return {**extra, "category_names": list(content["category_names"])} if content.get("category_names") else extra


def check_names_to_find(categories: Sequence[str]) -> list[str]:
    """Names given for pictures, without outer blanks.

    Raises:
        ConfigError: an empty name, or one given twice.
    """
    cleaned = [name.strip() for name in categories]
    if not all(cleaned):
        raise ConfigError(f"--categories: expected names with commas between them, but one is empty: {categories}")
    twice = sorted({name for name in cleaned if cleaned.count(name) > 1})
    if twice:
        raise ConfigError(f"--categories: given more than once: {', '.join(map(repr, twice))}")
    return cleaned


def with_nearest(unknown: Sequence[str], known: Sequence[str]) -> str:
    """Names that are not known, each with the known one that looks most like it: "'Sky' (did you mean 'sky'?)"."""
    hints = {name: nearest(name, known) for name in unknown}
    return ", ".join(f"{name!r} (did you mean {hint!r}?)" if hint else repr(name) for name, hint in hints.items())
