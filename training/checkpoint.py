"""Full-state checkpoints: everything an interrupted run needs to go on to the same losses.

A checkpoint holds only tensors and plain Python values, so it loads with `weights_only=True`. Data loader workers have
no state: a sample depends on its position alone (see `samplers.py`).
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from training.run_folder import RunFolder, plain
from utils.errors import ConfigError, UserError, WeightsError
from utils.files import atomic_write

VERSION = 1
_REQUIRED = ("version", "iteration", "model", "optimizer", "random_states", "settings", "running", "best")


def random_state() -> dict[str, Any]:
    """The random states of this process (Python, numpy, torch, its GPU) as tensors and plain values."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Put the random states of this process back to what `random_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


class _RememberingFile:
    """Passes writes on and remembers why one failed: torch.save hides the reason of a full disk."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def save_atomically(path: str | Path, content: object) -> None:
    """Write tensors and plain values with torch.save so that the file appears only when it is whole.

    Raises:
        UserError: if the disk is full or the folder cannot be written; an older file of that name stays as it was.
    """
    with atomic_write(path) as file:
        target = _RememberingFile(file)
        try:
            torch.save(content, target)
        except RuntimeError as error:
            if target.error is not None:
                raise target.error from error
            raise


def save_weights(path: str | Path, model: nn.Module) -> None:
    """Write a bare state dict with the module's own names, on the CPU, contiguous; errors as `save_atomically`."""
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_atomically(path, weights)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a full-state checkpoint onto the CPU.

    Raises:
        UserError: if the file is missing.
        WeightsError: if it is damaged, not safe to load, of another version, or not a full checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no checkpoint to go on from. Use --resume never to start anew, or name another file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path}: the checkpoint cannot be read ({reason}). It is damaged or was not written by this project: "
            f"remove it, or use --resume never to start anew."
        ) from error
    missing = [name for name in _REQUIRED if not isinstance(content, dict) or name not in content]
    if missing:
        raise WeightsError(
            f"{path}: this is not a full checkpoint (no {', '.join(missing)}). Weights alone cannot be resumed: give "
            f"them as initial weights, and --resume the checkpoint.pt of a run folder."
        )
    if content["version"] != VERSION:
        raise WeightsError(
            f"{path}: checkpoint version {content['version']}, but this program reads version {VERSION}. "
            f"Go on with the program that wrote it, or use --resume never."
        )
    return content


def find_checkpoint(run: RunFolder, resume: str | Path) -> Path | None:
    """Turn the setting `resume` into a file.

    Args:
        run: the run folder.
        resume: "auto" (this run's checkpoint if there is one), "never", or the path of a checkpoint or a run folder.

    Returns:
        The checkpoint's path, or None to start from the beginning.

    Raises:
        UserError: if a named checkpoint does not exist.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return run.checkpoint_path if run.checkpoint_path.exists() else None
    path = Path(resume)
    path = RunFolder(path).checkpoint_path if path.is_dir() else path
    if not path.is_file():
        raise UserError(
            f"--resume {resume}: expected auto, never, a checkpoint or a run folder; {path} does not exist."
        )
    return path


def check_settings(stored: Mapping[str, Any], present: Mapping[str, Any], path: str | Path) -> None:
    """Refuse to go on with a run under settings that would change its outcome.

    Args:
        stored: settings kept in the checkpoint.
        present: the same settings of this start.
        path: the checkpoint, for the message.

    Raises:
        ConfigError: naming every setting that differs, with both values.
    """
    before, now = _flatten(plain(stored)), _flatten(plain(present))
    differing = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if differing:
        lines = [
            f"  {name}: {_show(before, name)} in the checkpoint, {_show(now, name)} now" for name in differing[:20]
        ]
        if len(differing) > 20:
            lines.append(f"  and {len(differing) - 20} more")
        raise ConfigError(
            f"{path}: the checkpoint was made with other settings:\n" + "\n".join(lines) + "\n"
            "Use the settings of the checkpoint to go on, or another run folder (or --resume never) to start anew."
        )


def check_model(stored: Mapping[str, torch.Tensor], model: nn.Module, path: str | Path) -> None:
    """Refuse a checkpoint of another network.

    Raises:
        WeightsError: naming the first ten entries that are missing, unexpected or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in stored.items()}
    problems = [
        f"{name}: shape {found[name]}, the network has {wanted[name]}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    problems += [f"{name}: missing in the checkpoint" for name in wanted if name not in found]
    problems += [f"{name}: not part of the network" for name in found if name not in wanted]
    if problems:
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise WeightsError(
            f"{path}: the checkpoint is of another network than the settings build:\n  "
            + "\n  ".join(problems[:10])
            + more
            + "\nUse the settings it was made with, or another run folder (or --resume never) to start anew."
        )


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _show(settings: Mapping[str, Any], name: str) -> str:
    if name not in settings:
        return "absent"
    text = repr(settings[name])
    return text if len(text) <= 80 else text[:77] + "..."
