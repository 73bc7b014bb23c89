"""Names of ReCo's files and folders, as in the release."""

from __future__ import annotations

import re
from pathlib import Path


def encoder_name(encoder_arch: str) -> str:
    """An encoder, a name or a weight file, as names of files have it: `DeiT-S/16-SIN` -> `deit_s_16_sin`."""
    encoder = Path(encoder_arch).stem if Path(encoder_arch).is_file() else encoder_arch
    return re.sub(r"[-/:\s]", "_", encoder).lower()


def reference_name(
    *,
    encoder_arch: str,
    imagenet_split: str = "train",
    context_elimination: bool = True,
    text_attention: bool = True,
    suffix: str = "",
) -> str:
    """What reference embeddings are called after, for example `deit_s_16_sin_in_train_ce_ta`.

    Args:
        encoder_arch: name of the image encoder, or its weight file.
        imagenet_split: split of the pictures that were searched.
        context_elimination, text_attention: how positions are weighted.
        suffix: free text.

    Source: ReCo spec 5.4.
    """
    parts = [
        encoder_name(encoder_arch),
        f"in_{imagenet_split}",
        "ce" if context_elimination else "",
        "ta" if text_attention else "",
        suffix,
    ]
    return "_".join(part for part in parts if part)


def reference_file_name(name: str, num_images: int, ending: str = ".pkl") -> str:
    """File of reference embeddings in the folder of a data set, by `reference_name` and pictures per category."""
    return f"{name}_cat_to_img_feature_k{num_images}{ending}"


def reco_folder(*, dataset: str, split: str, name: str, num_images: int, dense_clip_inference: bool) -> Path:
    """Folder of ReCo's results below dir_ckpt, for example `cityscapes/val/reco/deit_s_16_sin_in_train_ce_ta_dc/k050`.

    Args:
        dataset: name of the benchmark.
        split: of the benchmark.
        name: as `reference_name` gives it.
        num_images: pictures per category.
        dense_clip_inference: whether dense CLIP sharpens the predictions.

    Source: ReCo spec 10.
    """
    return Path(dataset, split, "reco", name + ("_dc" if dense_clip_inference else ""), f"k{num_images:03d}")


def embedding_file_name(clip_arch: str, split: str) -> str:
    """Archive of image embeddings, `filename_to_ViT_L_14_336px_train_img_embedding.pkl`; the case is kept."""
    return f"filename_to_{re.sub(r'[-/@]', '_', clip_arch)}_{split}_img_embedding.pkl"
