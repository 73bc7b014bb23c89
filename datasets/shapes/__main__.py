"""``python -m datasets.shapes FOLDER [options]``: write a shapes world."""

from __future__ import annotations

import argparse
import sys

from datasets.shapes.world import make_world
from utils.errors import UserError
from utils.log import setup_logging


def main() -> int:
    """Read the arguments and write the world; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m datasets.shapes", description="Write the built-in world.")
    parser.add_argument("root", help="folder to write to")
    for name, default, text in (
        ("num-imagenet", 4000, "pictures of the ImageNet2012-like index dataset"),
        ("num-pass", 1000, "pictures of the PASS-like index dataset"),
        ("num-val", 500, "pictures of the COCO2017-like validation set"),
        ("num-voc", 0, "pictures of the VOC2012-like set"),
        ("num-cityscapes", 0, "pictures of the Cityscapes-like validation set"),
        ("num-coca", 0, "pictures of the CoCA-like set"),
        ("num-imagenet-s", 0, "pictures of the ImageNet-S-like validation set"),
        ("imagenet-s-categories", 50, "categories of the ImageNet-S that it is like: 50, 300 or 919"),
        ("num-caption-shards", 0, "shards of 500 captioned pictures"),
        ("image-size", 128, "shorter side of the pictures"),
        ("seed", 0, "number of the world"),
        ("num-workers", 2, "processes"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
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
