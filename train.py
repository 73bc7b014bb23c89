"""Train a segmenter: `python train.py --config configs/zutis/custom.yaml [key=value ...]`.

One process: as above. Several GPUs: `torchrun --nproc_per_node=N train.py --config ...`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from systems import get_system
from utils.cli import Parser, existing, run_command
from utils.config import dump_settings, load_settings
from utils.log import get_logger

logger = get_logger(__name__)


def make_parser() -> Parser:
    """The arguments of this command."""
    parser = Parser("Train a segmenter without masks: retrieve, make pseudo-masks, train, evaluate.")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML settings, see configs/")
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: go on where this run stopped (default); never: start afresh; PATH: go on from that checkpoint",
    )
    parser.add_argument("--dry-run", action="store_true", help="check, build, read one batch, report; write nothing")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments, load the settings, train; returns the exit status."""
    options = make_parser().parse_intermixed_args(arguments)

    def command() -> None:
        settings = load_settings(options.config, options.overrides, task="train")
        logger.info("settings:\n%s", dump_settings(settings))
        resume = options.resume
        if resume not in ("auto", "never"):
            resume = str(existing(resume, "auto, never, or a checkpoint to go on from (--resume)"))
        get_system(settings.system).train(settings, resume=resume, dry_run=options.dry_run)

    return run_command(command, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
