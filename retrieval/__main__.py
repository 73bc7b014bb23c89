"""`python -m retrieval embed|convert|search|check`: the retrieval stage by hand; docs/retrieval.md shows each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from utils.cli import run_command
from utils.device import PRECISIONS, select_device
from utils.log import get_logger

logger = get_logger(__name__)
DEFAULT_CLIP = "ViT-L/14@336px"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns the exit status."""
    options = _parser().parse_args(arguments)
    return run_command(lambda: options.command(options), verbose=options.verbose)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m retrieval", description=__doc__)
    parser.add_argument("--verbose", action="store_true", help="also show internals")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    embed = commands.add_parser("embed", help="make an embedding folder from pictures")
    embed.add_argument("sources", nargs="+", help="folders, pictures, lists (.txt), webdataset shards (.tar)")
    embed.add_argument("--output", required=True, help="embedding folder; a killed run goes on where it was")
    embed.add_argument("--clip", default=DEFAULT_CLIP, help="OpenAI name, weight file or open_clip:ARCH/TAG")
    embed.add_argument("--batch-size", type=int, default=256)
    embed.add_argument("--num-workers", type=int, default=8)
    embed.add_argument("--device", default="auto")
    embed.add_argument("--precision", default="fp32", choices=PRECISIONS)
    embed.add_argument("--strict", action="store_true", help="stop at the first unreadable picture")
    embed.add_argument("--extend", action="store_true", help="append pictures that are new since the last time")
    embed.set_defaults(command=_embed)

    convert = commands.add_parser("convert", help="turn filename_to_*_img_embedding.pkl into an embedding folder")
    convert.add_argument("pickle")
    convert.add_argument("--output", default=None, help="embedding folder (default: beside the file)")
    convert.set_defaults(command=_convert)

    search = commands.add_parser("search", help="write category_to_p_images for some names")
    search.add_argument("indices", nargs="+", help="embedding folders or pickles")
    search.add_argument("--categories", required=True, help="names separated by commas")
    search.add_argument("--output", required=True, help="JSON file")
    search.add_argument("--num-images", type=int, default=500)
    search.add_argument("--clip", default=DEFAULT_CLIP, help="the CLIP that the index was made with")
    search.add_argument("--templates", default="retrieval_85", help="retrieval_85, raw_name, or a text file")
    search.add_argument("--index-dir", action="append", help="folder of the pictures, one per index")
    search.add_argument("--device", default="auto")
    search.set_defaults(command=_search)

    check = commands.add_parser("check", help="check a category_to_p_images file")
    check.add_argument("archive")
    check.add_argument("--categories", required=True, help="names separated by commas")
    check.add_argument("--path-map", action="append", default=[], metavar="OLD=NEW", help="beginning of stored paths")
    check.set_defaults(command=_check)
    return parser


def _embed(options: argparse.Namespace) -> None:
    from networks.clip import load_clip
    from retrieval.embed import embed_images

    device = select_device(options.device)
    embed_images(
        options.sources,
        options.output,
        load_clip(options.clip, device=device),
        model_name=options.clip,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        device=device,
        precision=options.precision,
        strict=options.strict,
        extend=options.extend,
    )


def _convert(options: argparse.Namespace) -> None:
    from retrieval.convert import convert_pickle

    logger.info("%s", convert_pickle(options.pickle, options.output))


def _search(options: argparse.Namespace) -> None:
    from networks.clip import load_clip
    from networks.text import encode_prompt_ensemble
    from retrieval.archive import foreground, retrieve_images, write_archive
    from retrieval.index import open_index
    from retrieval.prompts import load_templates
    from utils.errors import ConfigError

    image_dirs = options.index_dir or [None] * len(options.indices)
    if len(image_dirs) != len(options.indices):
        raise ConfigError(f"--index-dir: expected one per index ({len(options.indices)}), received {len(image_dirs)}.")
    indices = [open_index(path, image_dir=folder) for path, folder in zip(options.indices, image_dirs, strict=True)]
    names = foreground([name.strip() for name in options.categories.split(",")])
    device = select_device(options.device)
    text = encode_prompt_ensemble(load_clip(options.clip, device=device), names, load_templates(options.templates))
    write_archive(options.output, retrieve_images(names, text, indices, options.num_images, device=device))
    logger.info("%s: %d categories", options.output, len(names))


def _check(options: argparse.Namespace) -> None:
    from retrieval.archive import read_archive

    path_map = dict(entry.split("=", 1) for entry in options.path_map if "=" in entry)
    names = [name.strip() for name in options.categories.split(",")]
    archive = read_archive(options.archive, categories=names, path_map=path_map)
    logger.info("%s: %d images, all there", options.archive, sum(map(len, archive.values())))


if __name__ == "__main__":
    sys.exit(main())
