"""Names of experiment folders, as in the ZUTIS release."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

_INDEX_NAMES = {"ImageNet2012": "imagenet", "pass": "pass"}


def architecture_name(clip_arch: str) -> str:
    """A CLIP architecture in the form that file names use: `ViT-L/14@336px` -> `vit_l_14_336px`."""
    return re.sub(r"[-/@]", "_", clip_arch).lower()


def experiment_name(
    *,
    clip_arch: str,
    index_dirs: Sequence[str | Path],
    num_images: int,
    scale_range: tuple[float, float],
    random_duplicate: bool,
    stop_gradient: bool = True,
    frozen_bn: bool = True,
    suffix: str = "",
    seed: int = 0,
    debug: bool = False,
) -> str:
    """The folder name of a ZUTIS run, for example `vit_b_16_rd_n500_imagenet_pass_sr10100_s0`.

    Args:
        clip_arch: name of the CLIP encoder.
        index_dirs: folders of the index datasets.
        num_images: retrieved pictures per category.
        scale_range: range of the scale of drawn pictures; shown in per cent, truncated.
        random_duplicate: whether samples of one category are drawn.
        stop_gradient: whether the mask loss is kept from the encoder.
        frozen_bn: whether batch norms are frozen; shown for ResNets only.
        suffix: free text.
        seed: of the run.
        debug: whether this is a trial run.

    Source: ZUTIS spec 10. ImageNet2012 and PASS folders have their published short names; any other index folder
    contributes its own name (the release refuses it).
    """
    low, high = scale_range
    parts = [
        architecture_name(clip_arch),
        "frozen_bn" if "RN" in clip_arch and frozen_bn else "",
        "" if stop_gradient else "no_sg",
        "rd" if random_duplicate else "",
        f"n{num_images}",
        *(_index_name(Path(folder)) for folder in index_dirs),
        f"sr{int(100 * low)}{int(100 * high)}",
        suffix,
        f"s{seed}",
        "debug" if debug else "",
    ]
    return "_".join(part for part in parts if part)


def _index_name(folder: Path) -> str:
    return _INDEX_NAMES.get(folder.parent.name) or re.sub(r"[^\w.]+", "_", folder.name)
