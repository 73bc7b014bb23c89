"""What the two commands share: logging, exit statuses, and words that may be `key=value`.

Exit status 2: the user can mend it (message without traceback); 130: stopped with Ctrl-C; 143: with SIGTERM; 1: a bug
of ours.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.config import PRECEDENCE
from utils.distributed import is_initialised, is_main, leave_group
from utils.errors import UserError
from utils.log import get_logger, setup_logging

logger = get_logger(__name__)
HEAD_START_SECONDS = 5.0  # of rank zero
_OVERRIDE = re.compile(r"^[A-Za-z_][\w.]*=")


class Parser(argparse.ArgumentParser):
    """ArgumentParser with our help layout, precedence rules at its end, and `key=value` words anywhere."""

    def __init__(self, description: str) -> None:
        super().__init__(
            description=description, epilog=PRECEDENCE, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the config file")
        self.add_argument("--verbose", action="store_true", help="also show internals")


def run_command(command: Callable[[], None], *, verbose: bool = False) -> int:
    """Run a command with logging set up and turn its end into an exit status; ranks end together.

    Args:
        command: the work; a `UserError` from it is shown without a traceback.
        verbose: log internals too.

    Returns:
        0 when it succeeded, 2 for a problem of the user, 130 when stopped with Ctrl-C, else that of a `SystemExit`.
    """
    setup_logging(logging.DEBUG if verbose else logging.INFO)
    status, message = 0, None
    try:
        command()
    except UserError as error:
        logger.debug("where it happened:", exc_info=True)
        status, message = 2, f"error: {error}\n"
    except KeyboardInterrupt:
        status, message = 130, "stopped; the same command goes on from here\n" if is_main() else None
    except SystemExit as stop:
        status = stop.code
    except Exception:
        if not is_initialised():
            raise
        status, message = 1, traceback.format_exc()
    if message is not None:
        _tell(message)
    # Not before: the frames of an error hold networks that use the group until they are deleted.
    leave_group(wait=status == 0)
    return status


def _tell(message: str) -> None:
    """Write why a command ends. Ranks mostly end for the same reason, which is told once: torchrun ends the others as
    soon as rank zero has told it and is gone. What another rank alone has to tell comes a little later.
    """
    if not is_main():
        time.sleep(HEAD_START_SECONDS)
    sys.stderr.write(message)
    sys.stderr.flush()


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part words into (paths, overrides): `key=value` is an override unless a file of that name exists."""
    is_override = [bool(_OVERRIDE.match(word)) and not Path(word).exists() for word in words]
    paths = [word for word, override in zip(words, is_override, strict=True) if not override]
    return paths, [word for word, override in zip(words, is_override, strict=True) if override]


def existing(path: str, what: str) -> Path:
    """A path that exists; raises `UserError` with what it should be otherwise."""
    found = Path(path).expanduser()
    if not is_there(found, what):
        raise UserError(f"{path}: does not exist; expected {what}.")
    return found


def is_there(path: Path, what: str) -> bool:
    """Whether a path exists; raises `UserError` with what it should be if that cannot be told."""
    try:
        return path.exists()
    except OSError as error:  # a folder on the way that this user may not look into
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); expected {what}. Check the permissions."
        ) from error
