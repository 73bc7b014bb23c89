"""Processes for tests: killed ones, and several that work together as `torchrun` would start them.

They are forked from one server that has imported torch and the systems, so that each costs a fraction of a second.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["lightning.fabric", "systems.zutis", "systems.namedmask", "systems.expert_workers"])


def run_process(function: Callable[..., Any], *arguments: Any, timeout: float = 120) -> int:
    """Call a module-level function in a process of its own; returns its exit code (negative: the signal it died of)."""
    return run_ranks(function, 1, *arguments, timeout=timeout)[0]


def run_ranks(function: Callable[..., Any], num: int, *arguments: Any, timeout: float = 120) -> list[int]:
    """Call a module-level function in `num` processes that form one group; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        _CONTEXT.Process(target=_rank, args=(function, rank, num, port, timeout, arguments)) for rank in range(num)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
    stuck = [process for process in processes if process.is_alive()]
    for process in stuck:
        process.kill()
    if stuck:
        raise TimeoutError(f"{len(stuck)} of {num} processes did not end within {timeout} seconds")
    return [process.exitcode for process in processes]


def _rank(
    function: Callable[..., Any], rank: int, num: int, port: int, timeout: float, arguments: tuple[Any, ...]
) -> None:
    import torch

    faulthandler.dump_traceback_later(0.9 * timeout)  # a process that hangs says where

    torch.set_num_threads(1)
    if num > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0",
            "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
        }  # fmt: skip
    code: object = 0
    try:
        function(*arguments)
    except SystemExit as error:
        code = error.code
    except Exception:  # noqa: BLE001 - a failed rank is an exit code for the test
        traceback.print_exc()
        code = 1
    # Not before the frames of an error are gone: they hold modules that use the group until they are deleted.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    sys.exit(code)
