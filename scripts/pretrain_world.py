"""Teach the models of the built-in world from nothing: `python -m scripts.pretrain_world [--output DIR]`.

Makes captioned pictures, trains CLIP on them, votes masks with it, trains SelfMask on those, and a MobileNetV2 on the
patch tokens of CLIP; then goes on with CLIP on pictures of the stuff world. A killed run goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from systems.shapes_backbone import pretrain_backbone
from systems.shapes_clip import STUFF_SETTINGS, WorldClipSettings, pretrain_clip
from systems.shapes_selfmask import pretrain_selfmask
from utils.cli import Parser, run_command
from utils.errors import UserError
from utils.files import RunLock, check_writable
from utils.log import get_logger

logger = get_logger("pretrain_world")
CONFIG = Path("configs/selfmask/shapes.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the arguments and teach the models; returns the exit status."""
    parser = Parser("Teach the world's CLIPs, SelfMask and MobileNetV2 from nothing (one to two hours of two cores).")
    parser.add_argument("--output", default="pretrained_world", metavar="DIR", help="default: pretrained_world")
    parser.add_argument("--num-workers", type=int, default=2, help="processes that make pictures (default: 2)")
    parser.add_argument("--num-threads", type=int, default=2, help="threads of PyTorch in training (default: 2)")
    options = parser.parse_intermixed_args(arguments)

    def command() -> None:
        if options.overrides:
            raise UserError(
                f"this command takes no settings, received {' '.join(options.overrides)}; "
                f"they are in systems/shapes_clip.py and {CONFIG}"
            )
        output_dir = Path(options.output).resolve()
        check_writable(output_dir, advice="Choose another --output.")
        torch.set_num_threads(options.num_threads)
        with RunLock(output_dir):
            workers = {"num_workers": options.num_workers}
            clip_path = pretrain_clip(output_dir, WorldClipSettings(), **workers)
            selfmask_path = pretrain_selfmask(output_dir, CONFIG, **workers, num_threads=options.num_threads)
            backbone_path = pretrain_backbone(output_dir, **workers)
            torch.set_num_threads(options.num_threads)
            stuff_path = pretrain_clip(
                output_dir, STUFF_SETTINGS, name="clip_stuff", start_path=clip_path, num_workers=options.num_workers
            )
        taught = ", ".join(str(path) for path in (clip_path, selfmask_path, backbone_path, stuff_path))
        logger.info("taught: %s; %s may be deleted", taught, output_dir / "work")

    return run_command(command, verbose=options.verbose)


if __name__ == "__main__":
    sys.exit(main())
