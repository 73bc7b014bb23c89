"""``python -m datasets.shapes FOLDER [options]``: write a shapes world."""

from __future__ import annotations

import argparse
import sys

from datasets.shapes.world import PARTS, make_world
from utils.errors import UserError
from utils.log import setup_logging


def main() -> int:
    """Read the arguments and write the world; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m datasets.shapes", description="Write the built-in world.")
    parser.add_argument("root", help="folder to write to")
    options = [(name, part.default, part.what) for name, part in PARTS.items()]
    options += [
        ("imagenet_s_categories", 50, "categories of the ImageNet-S that it is like: 50, 300 or 919"),
        ("image_size", 128, "shorter side of the pictures"),
        ("seed", 0, "number of the world"),
        ("num_workers", 2, "processes"),
    ]
    for name, default, text in options:
        words = f"{text} (default {default})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=words)
    arguments = vars(parser.parse_args())
    setup_logging("INFO")
    try:
        make_world(arguments.pop("root"), **arguments)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
