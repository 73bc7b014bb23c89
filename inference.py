"""Use a segmenter: score it on a benchmark, or segment your own pictures.

Benchmark: `python inference.py --config FILE --weights FILE [key=value ...]`
Pictures:  `python inference.py --weights RUN_OR_FILE --images PATH... [--categories a,b,c] [--output DIR]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from systems import find_system, get_system
from utils.cli import Parser, existing, is_there, run_command, split_overrides
from utils.config import dump_settings, load_settings
from utils.errors import UserError
from utils.files import check_writable
from utils.log import get_logger

logger = get_logger(__name__)


def make_parser() -> Parser:
    """The arguments of this command."""
    parser = Parser("Score a segmenter on a benchmark (--config), or segment your own pictures (--images).")
    parser.add_argument("--config", metavar="FILE", help="YAML settings with the benchmark, see configs/")
    parser.add_argument("--weights", required=True, metavar="RUN_OR_FILE", help="run folder or weight file")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="folders, files or patterns of pictures")
    parser.add_argument("--categories", metavar="a,b,c", help="names to find; default: those of the run")
    parser.add_argument(
        "--output", metavar="DIR", help="folder for masks, overlays, their legend and COCO JSON (with --images)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, evaluate or segment; returns the exit status."""
    options = make_parser().parse_intermixed_args(arguments)
    command = evaluate if options.images is None else segment
    return run_command(lambda: command(options), verbose=options.verbose)


def evaluate(options: argparse.Namespace) -> None:
    """Benchmark: scores with their protocol."""
    if options.config is None:
        raise UserError("expected --config FILE (score on a benchmark) or --images PATH... (segment pictures)")
    for name in ("categories", "output"):
        if getattr(options, name) is not None:
            raise UserError(f"--{name} belongs to --images; for a benchmark set {name}=... in the config instead")
    weights = Path(options.weights).expanduser()
    there = is_there(weights, "a run folder or a weight file (--weights)")
    lacking = [] if there else [f"--weights: {weights} does not exist; expected a run folder or weight file"]
    settings = load_settings(options.config, options.overrides, task="evaluate", more_problems=lacking)
    logger.info("settings:\n%s", dump_settings(settings))
    get_system(settings.system).evaluate(settings, weights)


def segment(options: argparse.Namespace) -> None:
    """Pictures: label PNGs, overlays, COCO JSON and a table."""
    images, late_overrides = split_overrides(options.images)
    overrides = [*options.overrides, *late_overrides]
    weights = existing(options.weights, "a run folder or a weight file (--weights)")
    settings = load_settings(options.config, overrides) if options.config is not None else None
    output_dir = Path(options.output or "segmented").expanduser()
    check_writable(output_dir, advice="Choose another --output.")  # before a network is loaded
    get_system(settings.system if settings else find_system(weights)).segment_pictures(
        weights,
        images,
        categories=_names(options.categories),
        output_dir=output_dir,
        settings=settings,
        overrides=overrides,
    )


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
