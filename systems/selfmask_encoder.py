"""SelfMask's network at the start of a training, and weights of a finished one. Stages of the recipe: `selfmask.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from networks.checkpoints import load_strict, read_state_dict
from networks.clip import OPENAI_MODELS, load_clip
from networks.clip_encoder import ClipVitEncoder, encoder_from_visual
from networks.patch_features import create_timm
from networks.selfmask import SelfMask
from networks.vit import VisionTransformer, vit_from_state_dict
from networks.vit_from_clip import vit_from_clip
from pseudo_labels.preparation import IMAGENET_MEAN, IMAGENET_STD
from training.run_folder import RunFolder
from utils.errors import WeightsError
from utils.images import read_rgb
from utils.settings import SelfMaskSettings

_NUM_TYPICAL = 32  # pictures that stand for all when CLIP's first norm is folded away


def build_network(settings: SelfMaskSettings, image_paths: Sequence[Path]) -> SelfMask:
    """SelfMask with an encoder from DINO or CLIP weights, or a fresh one; decoder, queries and head are always fresh.

    Args:
        settings: encoder, number of queries and decoder layers. With weights, the encoder's sizes are theirs.
        image_paths: training pictures; some are looked at to start from CLIP.

    Returns:
        The network in training mode, on the CPU.

    Raises:
        WeightsError: if the encoder's weights are missing or fit neither DINO nor CLIP.
    """
    options = {"num_queries": settings.num_queries, "num_decoder_layers": settings.num_decoder_layers}
    encoder = settings.encoder
    if encoder.weights is None:
        return SelfMask(
            width=encoder.width,
            num_layers=encoder.depth,
            patch_size=encoder.patch_size,
            native_grid=encoder.table_size // encoder.patch_size,
            **options,
        )
    start = load_encoder(encoder.weights, image_paths)
    native = round((start.pos_embed.shape[1] - 1) ** 0.5)
    network = SelfMask(
        width=start.width,
        num_layers=len(start.blocks),
        patch_size=start.patch_size,
        native_grid=native,
        hidden_width=start.blocks[0].mlp.fc1.out_features,
        **options,
    )
    load_strict(network.encoder, start.state_dict(), source=str(encoder.weights))
    return network.train()


def load_encoder(weights: str, image_paths: Sequence[Path]) -> VisionTransformer:
    """The encoder that training starts from: DINO's ViT, or CLIP's image tower in DINO's form.

    Args:
        weights: a DINO file, a CLIP file in OpenAI's names, an OpenAI name, ``open_clip:ARCHITECTURE/WEIGHTS``, or
            ``timm:NAME`` for a plain vision transformer of timm (downloaded).
        image_paths: training pictures.

    Raises:
        WeightsError: if the weights are missing or of another kind.
    """
    if weights.startswith("timm:"):
        return vit_from_state_dict(create_timm(weights.removeprefix("timm:"), None).state_dict(), source=weights)
    if not weights.startswith("open_clip:") and weights not in OPENAI_MODELS:
        state = read_state_dict(weights)
        if "visual.conv1.weight" not in state:
            return vit_from_state_dict(state, source=weights)
    clip = load_clip(weights)
    encoder = encoder_from_visual(clip.visual)
    if not isinstance(encoder, ClipVitEncoder):
        raise WeightsError(f"encoder.weights: {weights} is a ResNet CLIP; SelfMask's encoder is a vision transformer")
    return vit_from_clip(
        encoder,
        _typical_pictures(image_paths, clip.image_resolution),
        clip_mean=clip.preprocess.mean,
        clip_std=clip.preprocess.std,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _typical_pictures(paths: Sequence[Path], side: int) -> Tensor:
    """Some of the training pictures as squares: (n, 3, side, side), float32 in [0, 1]."""
    chosen = paths[:: max(1, len(paths) // _NUM_TYPICAL)][:_NUM_TYPICAL]
    squares = [Image.fromarray(read_rgb(path)).resize((side, side), Image.Resampling.BILINEAR) for path in chosen]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def read_weights(weights: Path) -> tuple[dict[str, Tensor], str]:
    """State dict of a published file, a run folder (the best weights, or the final ones), or a file in one.

    Returns:
        Names and tensors, and the file they come from.

    Raises:
        WeightsError: if there are no weights.
    """
    if weights.is_dir():
        run = RunFolder(weights)
        found = [path for path in (run.best_path, run.final_model_path, run.checkpoint_path) if path.is_file()]
        if not found:
            raise WeightsError(f"{weights}: no weights in this run folder yet (best.pt, final_model.pt). Train first.")
        weights = found[0]
    return read_state_dict(weights), str(weights)
