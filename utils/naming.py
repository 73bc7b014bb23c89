"""Names of experiment folders and of categories in file names, as in the releases."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

CATEGORY_SUFFIX = "_category"  # of the benchmarks that score one category of another benchmark
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
    parts = [
        architecture_name(clip_arch),
        "frozen_bn" if "RN" in clip_arch and frozen_bn else "",
        "" if stop_gradient else "no_sg",
        "rd" if random_duplicate else "",
        f"n{num_images}",
        *(_index_name(Path(folder)) for folder in index_dirs),
        _scale_name(scale_range),
        suffix,
        f"s{seed}",
        "debug" if debug else "",
    ]
    return "_".join(part for part in parts if part)


def category_file_name(category: str) -> str:
    """A category in the form that file names use: `tv/monitor` -> `tv_monitor`.

    As in the releases; characters that other file systems refuse, and dots at the end, become `_` as well.
    """
    return re.sub(r'[ /\\:*?"<>|\x00-\x1f]|\.(?=\.*$)', "_", category)


def category_file_name_with_digest(category: str) -> str:
    """The form for a category whose file name another one has: `wall/brick` -> `wall_brick_<8 hexadecimal digits>`."""
    return f"{category_file_name(category)}_{hashlib.sha256(category.encode()).hexdigest()[:8]}"


def category_file_names(categories: Iterable[str]) -> dict[str, str]:
    """A file name of its own for each of several categories, also where files are told apart regardless of case.

    Args:
        categories: all that share a folder, in any order.

    Returns:
        category -> `category_file_name`. Where several have the same, the one that is most like it keeps it
        (`wall_brick` before `wall brick` before `wall/brick`) and the others get a digest of their name behind it.
    """
    names = {category: category_file_name(category) for category in dict.fromkeys(categories)}
    count = Counter(name.casefold() for name in names.values())

    def unlikeness(category: str) -> tuple[bool, bool, str]:
        name = names[category]
        return category != name, category.replace(" ", "_") != name, category

    keeps: set[str] = set()
    for category in sorted((one for one, name in names.items() if count[name.casefold()] > 1), key=unlikeness):
        plain = names[category]
        if plain.casefold() in keeps:
            names[category] = category_file_name_with_digest(category)
        keeps.add(plain.casefold())
    return names


def namedmask_experiment_name(
    *,
    segmenter_name: str,
    num_images: int,
    scale_range: tuple[float, float],
    max_num_masks: int = 1,
    num_categories: int | None = None,
    category: str | None = None,
    cluster_id: int | None = None,
    use_expert_masks: bool = False,
    suffix: str = "",
    seed: int = 0,
    debug: bool = False,
) -> str:
    """The folder name of a NamedMask run, for example `deeplabv3plus_resnet50_n500_cp2_sr10100_ex_s0`.

    Args:
        segmenter_name: name of the network.
        num_images: retrieved pictures per category.
        scale_range: range of the scale of drawn pictures; shown in per cent, truncated.
        max_num_masks: objects per training sample at most; shown from 2 on.
        num_categories: of ImageNet-S (background not counted); None for other benchmarks.
        category: the category of an expert.
        cluster_id: the number of an expert for a group of categories.
        use_expert_masks: whether the segmenter learns from experts' masks.
        suffix: free text.
        seed: of the run.
        debug: whether this is a trial run.

    Source: NamedMask spec 4. The release writes a category or a cluster, never both; so does this.
    """
    expert = f"cid{cluster_id}" if cluster_id is not None else category_file_name(category or "")
    parts = [
        segmenter_name,
        f"n{num_images}",
        f"cp{max_num_masks}" if max_num_masks > 1 else "",
        _scale_name(scale_range),
        f"in_s{num_categories}" if num_categories is not None else "",
        expert,
        "ex" if use_expert_masks else "",
        suffix,
        f"s{seed}",
        "debug" if debug else "",
    ]
    return "_".join(part for part in parts if part)


def _scale_name(scale_range: tuple[float, float]) -> str:
    low, high = scale_range
    return f"sr{int(100 * low)}{int(100 * high)}"


def _index_name(folder: Path) -> str:
    return _INDEX_NAMES.get(folder.parent.name) or re.sub(r"[^\w.]+", "_", folder.name)
