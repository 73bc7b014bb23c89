"""The built-in demonstrations: `python -m scripts.demonstrations [SYSTEM] [--output DIR] [key=value ...]`."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli import Parser, run_command
from utils.errors import UserError
from utils.files import check_writable

DEMONSTRATIONS = ("zutis", "namedmask", "reco")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a demonstration; returns the exit status."""
    parser = Parser("Make a small world, and a segmenter for it, without a single human mask.")
    parser.add_argument("--output", default="demo", metavar="DIR", help="where everything goes (default: demo)")
    options = parser.parse_intermixed_args(arguments)
    systems = [word for word in options.overrides if "=" not in word]
    overrides = [word for word in options.overrides if "=" in word]

    def command() -> None:
        if len(systems) > 1 or not set(systems) <= set(DEMONSTRATIONS):
            raise UserError(f"there are demonstrations of: {', '.join(DEMONSTRATIONS)}; received {' '.join(systems)}")
        output_dir = Path(options.output).resolve()
        check_writable(output_dir, advice="Choose another --output.")
        os.environ["UNMASKED_DEMO"] = str(output_dir)  # ${paths.demo} of the configs
        name = systems[0] if systems else DEMONSTRATIONS[0]
        importlib.import_module(f"scripts.demonstrations.{name}").run(output_dir, overrides)

    return run_command(command, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
