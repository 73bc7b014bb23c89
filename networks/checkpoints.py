"""Every dialect of weight files meets here: authors' files, wrapped training checkpoints, CLIP archives, safetensors.

`read_state_dict` turns any of them into names and tensors without running code from the file; `load_strict` puts them
into a network or says which names do not fit and why.
"""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from networks.checkpoint_causes import likely_cause
from utils.errors import WeightsError

WRAPPERS = ("model", "state_dict", "model_state_dict", "network", "module")
PREFIXES = ("module.", "_orig_mod.")
CLIP_SCALARS = frozenset({"input_resolution", "context_length", "vocab_size"})
SHOWN = 10


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a weight file on the CPU, without running any code from it.

    Args:
        path: a bare state dict; one wrapped under a key of `WRAPPERS`; with `module.` or `_orig_mod.` before every
            name; an OpenAI CLIP TorchScript archive (its three extra scalars are dropped); or a `.safetensors` file.

    Returns:
        Names and tensors with the dtypes of the file.

    Raises:
        WeightsError: if the file is missing, unreadable, cut off, of another kind, or holds anything but plain data.
    """
    path = Path(path)
    return extract_state_dict(read_checkpoint(path), source=str(path))


def read_checkpoint(path: str | Path, *, mapped: bool = False) -> Any:
    """Read a weight file as it is, wrappers included: what `torch.load(weights_only=True)` allows, on the CPU.

    TorchScript archives and safetensors come as a dict of tensors.

    Args:
        path: the file.
        mapped: map a PyTorch file into memory, so that only the tensors that are used are read.

    Raises:
        WeightsError: as `read_state_dict`.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder, not a weight file" if path.is_dir() else "no such weight file"
        raise WeightsError(f"{path}: {what}. Check the path, or see scripts/download_weights.sh.")
    if not _first_bytes(path, 1):
        raise WeightsError(f"{path}: the file is empty. Download or make it again.")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if _is_torchscript(path):
        return _read_torchscript(path)
    return _read_pickle(path, mapped)


def extract_state_dict(checkpoint: Any, *, source: str) -> dict[str, Tensor]:
    """Take the names and tensors out of a loaded checkpoint: unwrap, strip prefixes, drop CLIP's scalars.

    Args:
        checkpoint: what `read_checkpoint` returned.
        source: the file, for messages.

    Raises:
        WeightsError: if there are no tensors under names.
    """
    state = checkpoint
    for _ in range(3):  # wrappers inside wrappers exist
        inner = next((state[key] for key in WRAPPERS if key in state), None) if isinstance(state, Mapping) else None
        if not isinstance(inner, Mapping):
            break
        state = inner
    if not isinstance(state, Mapping):
        raise WeightsError(
            f"{source}: holds {_describe(state)}, not a state dict (names and tensors). "
            f"Save `model.state_dict()` instead."
        )
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(repr(key) for key in list(state)[:SHOWN]) or "nothing"
        raise WeightsError(
            f"{source}: no tensors found; its top level holds {keys}. "
            f"Expected a state dict, or one under {', '.join(WRAPPERS)}."
        )
    tensors = _strip_prefixes(tensors)
    return {name: value for name, value in tensors.items() if name not in CLIP_SCALARS}


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove `module.` (DistributedDataParallel) and `_orig_mod.` (torch.compile) where every name carries them."""
    changed = True
    while changed:
        changed = False
        for prefix in PREFIXES:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                changed = True
    return state


def _describe(value: object) -> str:
    return f"a {type(value).__name__}"


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with `constants.pkl`, which `torch.save` never writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.rsplit("/", 1)[-1] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, EOFError):
        return False


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the published CLIP files will stay TorchScript
            return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise WeightsError(_damaged(path, "a TorchScript archive", error)) from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path, device="cpu")
    except (SafetensorError, RuntimeError, ValueError, OSError) as error:
        raise WeightsError(_damaged(path, "a safetensors file", error)) from error


def _read_pickle(path: Path, mapped: bool) -> Any:
    try:
        # The options of a training run, which DeiT and DINO keep beside their weights, are plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        if _is_unsafe(error) and _starts_like_weights(path):
            raise WeightsError(
                f"{path}: refused, because loading it would run code ({_first_line(error)}). Only names and tensors "
                f"are read. If you trust its origin, save `model.state_dict()` from it with the program that made it."
            ) from error
        raise WeightsError(_not_weights(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(_not_weights(path, error)) from error


def _is_unsafe(error: Exception) -> bool:
    text = str(error)
    return "Unsupported global" in text or "Unsupported class" in text or "Trying to" in text or "GLOBAL" in text


def _first_bytes(path: Path, number: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(number)
    except OSError as error:
        raise WeightsError(
            f"{path}: cannot be read ({error.strerror or error}). Check its permissions, or give another file."
        ) from error


def _starts_like_weights(path: Path) -> bool:
    return _first_bytes(path, 2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _not_weights(path: Path, error: Exception) -> str:
    if _starts_like_weights(path):
        return _damaged(path, "a PyTorch weight file", error)
    return (
        f"{path}: not a weight file (it starts with {_first_bytes(path, 24)!r}). "
        f"Expected a PyTorch state dict (.pt, .pth), a TorchScript archive or .safetensors."
    )


def _damaged(path: Path, kind: str, error: Exception) -> str:
    return (
        f"{path}: looks like {kind} but is cut off or damaged ({path.stat().st_size} bytes; {_first_line(error)}). "
        f"Download or make it again."
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    for line in text.splitlines():
        if "Unsupported" in line or "Trying to" in line:
            return line.strip().rstrip(".")[:160]
    return text.splitlines()[0].strip().rstrip(".")[:160] if text else type(error).__name__


def load_strict(module: nn.Module, state_dict: Mapping[str, Tensor], *, source: str, assign: bool = False) -> None:
    """Load weights into a network; every name and shape must fit.

    Args:
        module: the network; changed in place, keeps its device and dtypes.
        state_dict: names and tensors.
        source: where the weights come from, for messages.
        assign: take the tensors themselves as parameters, instead of copying them; for networks on the meta device.

    Raises:
        WeightsError: if anything is missing, unexpected or of another shape, with the first ten names of each and the
            likely cause; the network is left unchanged.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state_dict]
    unexpected = [name for name in state_dict if name not in expected]
    misshapen = [
        f"{name}: file {_shape(state_dict[name])}, network {_shape(expected[name])}"
        for name in expected
        if name in state_dict and state_dict[name].shape != expected[name].shape
    ]
    if missing or unexpected or misshapen:
        lines = [f"{source}: these weights do not fit the network ({type(module).__name__})."]
        lines += _listed("missing in the file", missing)
        lines += _listed("not known to the network", unexpected)
        lines += _listed("of another shape", misshapen)
        cause = likely_cause(state_dict, expected)
        lines.append(f"  likely cause: {cause}" if cause else "  Check that file and config belong together.")
        raise WeightsError("\n".join(lines))
    module.load_state_dict(dict(state_dict), strict=True, assign=assign)


def _listed(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = [f"    ... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"  {len(names)} {title}:", *(f"    {name}" for name in names[:SHOWN]), *more]


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
