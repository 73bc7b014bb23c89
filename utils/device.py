"""Choice of device and number format, made once at the start of a command."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager

import torch

from utils.errors import ConfigError

PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def select_device(name: str = "auto") -> torch.device:
    """Turn the setting `device` into a device that exists.

    Args:
        name: "auto" (this rank's GPU if there is one, else the CPU), "cpu", "cuda" or "cuda:<number>".

    Raises:
        ConfigError: if the name is not one of these or the GPU does not exist.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cpu" or (name == "auto" and num_gpus == 0):
        return torch.device("cpu")
    if name not in ("auto", "cuda") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:<number>, received {name!r}")
    index = local_rank if name in ("auto", "cuda") else int(name[5:])
    if index >= num_gpus:
        found = f"{num_gpus} GPU(s) that PyTorch can use" if num_gpus else "no GPU that PyTorch can use"
        raise ConfigError(
            f"device: {name!r} asks for GPU {index}, but this machine has {found}. Use device=cpu or device=auto."
        )
    return torch.device("cuda", index)


def precision_dtype(precision: str) -> torch.dtype:
    """The torch dtype of "fp32", "bf16" or "fp16"; raises `ConfigError` for anything else."""
    if precision not in _DTYPES:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, received {precision!r}")
    return _DTYPES[precision]


def autocast(device: torch.device | str, precision: str = "fp32") -> AbstractContextManager[object]:
    """Context in which matrix products and convolutions run in the wanted number format.

    Args:
        device: where the tensors live.
        precision: "fp32" (no change at all), "bf16" or "fp16". fp16 needs a GPU: on the CPU bf16 takes its place.
    """
    dtype = precision_dtype(precision)
    if dtype == torch.float32:
        return contextlib.nullcontext()
    kind = torch.device(device).type
    if kind == "cpu":
        dtype = torch.bfloat16
    return torch.autocast(kind, dtype=dtype)
