"""Image encoders of ReCo: every published one, and any ViT, ResNet or timm model, behind one small class.

``load_encoder`` takes a published name, a timm name, a CLIP or a weight file. What the encoder's features are used for:
``pseudo_labels/cosegmentation.py`` and ``reco_prediction.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from networks.checkpoints import load_strict, read_state_dict
from networks.clip_dimensions import OPENAI_MODELS
from networks.colours import FromImagenet
from networks.patch_features import ClipPatchFeatures, ResNetFeatures, TimmFeatures, VitPatchFeatures, create_timm
from networks.vit import VisionTransformer, pad_to_multiple, vit_from_state_dict
from utils.download import fetch, is_here
from utils.errors import UserError, WeightsError
from utils.normalisation import IMAGENET_MEAN, IMAGENET_STD

DEIT_SIN = "DeiT-S/16-SIN"
_DEIT_SIN_FILE = "deit_s_sin_dist.pth"
_DEIT_SIN_SIZES = {"width": 384, "num_layers": 12, "patch_size": 16, "native_grid": 14, "distilled": True}
_TIMM_NAMES = {
    "dino_small": "vit_small_patch16_224.dino",
    "dino_base": "vit_base_patch16_224.dino",
    "supervised": "resnet50.tv_in1k",
}
_FILES_ONLY = ("mocov2", "swav")
ENCODERS = (DEIT_SIN, *_TIMM_NAMES, *_FILES_ONLY)
_HEADS = ("head.", "head_dist.")


class PatchEncoder(nn.Module):
    """A backbone that turns ImageNet-normalised pictures of any size into a grid of features.

    Args:
        body: maps pictures to (B, D, h, w); tells ``stride``, ``width`` and, as a rule, the colours it wants.
        fit: what happens to rows and columns that fill no whole patch. "drop": never seen; "pad": zeros are added right
            and bottom; "keep": the body takes any size.

    Attributes:
        patch_size: pixels P between neighbouring features.
        width: channels D.
        min_size: sides shorter than this leave no feature.
    """

    def __init__(self, body: nn.Module, *, fit: Literal["drop", "pad", "keep"] = "pad") -> None:
        super().__init__()
        self.body, self.fit = body, fit
        self.patch_size, self.width = int(body.stride), int(body.width)
        self.min_size = getattr(body, "min_size", self.patch_size if fit == "drop" else 1)
        mean, std = getattr(body, "mean", IMAGENET_MEAN), getattr(body, "std", IMAGENET_STD)
        self.to_own_colours = FromImagenet(mean, std)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W).

        Returns:
            (B, D, h, w), float32, not normalised; h = ⌊H / P⌋ for "drop", ⌈H / P⌉ for "pad".

        Raises:
            ValueError: if a side is shorter than ``min_size``.
        """
        height, width = images.shape[-2:]
        if min(height, width) < self.min_size:
            raise ValueError(f"pictures of {height}×{width} pixels are too small, at least {self.min_size} are needed")
        images, step = self.to_own_colours(images), self.patch_size
        if self.fit == "drop":
            images = images[..., : height // step * step, : width // step * step]
        elif self.fit == "pad":
            images = pad_to_multiple(images, step)
        return self.body(images).float()


def load_encoder(name: str | Path, weights: str | Path | None = None) -> PatchEncoder:
    """Load an image encoder.

    Args:
        name: a published name (one of ``ENCODERS``), ``timm:MODEL``, a CLIP (one of OpenAI's names or
            ``open_clip:ARCHITECTURE/WEIGHTS``), or a weight file as for ``encoder_from_state_dict``.
        weights: file for a published or timm name in place of its download; mocov2 and swav need one.

    Returns:
        The encoder in evaluation mode, float32, without gradients, on the CPU.

    Raises:
        UserError: if there is no such encoder; names those there are.
        WeightsError: if weights are missing or do not fit.

    Source: ReCo, section 4 (encoders that were compared). The published results are those of DeiT-S/16-SIN.
    """
    name = str(name)
    if name.startswith("timm:"):
        encoder = _from_timm(name.removeprefix("timm:"), weights)
    elif name == DEIT_SIN:
        path = fetch(_DEIT_SIN_FILE) if weights is None else weights
        encoder = _from_deit_sin(read_state_dict(path), source=str(path))
    elif name in ENCODERS and weights is not None:
        encoder = encoder_from_state_dict(read_state_dict(weights), source=str(weights))
    elif name in _TIMM_NAMES:
        network = create_timm(_TIMM_NAMES[name], None)
        encoder = encoder_from_state_dict(network.state_dict(), source=f"timm's {_TIMM_NAMES[name]}")
    elif name in _FILES_ONLY:
        raise WeightsError(f"{name}: this encoder needs a weight file; give its path (encoder_weights).")
    elif Path(name).is_file():
        encoder = encoder_from_state_dict(read_state_dict(name), source=name)
    elif name in OPENAI_MODELS or name.startswith("open_clip:"):
        encoder = _from_clip(name)
    else:
        raise UserError(_unknown(name))
    return encoder.eval().requires_grad_(False)


def needs_download(name: str | Path, weights: str | Path | None = None) -> bool:
    """Whether ``load_encoder`` would fetch weights that are not here, arguments as there; also tells it of any CLIP.

    What timm and open_clip download they keep themselves, and it cannot be told here: it counts as missing.
    """
    name = str(name)
    if name in OPENAI_MODELS:
        return not is_here(name)
    if name.startswith("open_clip:"):
        return not Path(name.partition("/")[2]).is_file()
    if weights is not None:
        return False
    if name == DEIT_SIN:
        return not is_here(_DEIT_SIN_FILE)
    return name.startswith("timm:") or name in _TIMM_NAMES


def encoder_from_state_dict(state_dict: Mapping[str, Tensor], *, source: str = "the encoder's weights") -> PatchEncoder:
    """Build the encoder that weights describe and load it strictly.

    Args:
        state_dict: out of its wrapper. A ViT of DINO, DeiT (distilled or not) or timm, a SelfMask (its encoder is
            taken), a ResNet-50 (MoCo v2, SwAV or torchvision), or a CLIP in OpenAI's names. Classifiers are left out.
        source: file name for messages.

    Returns:
        The encoder in evaluation mode, without gradients, on the CPU. A distilled DeiT drops the rest beyond whole
        patches, other transformers pad.

    Raises:
        WeightsError: if it is none of these, or entries are missing, superfluous or of another shape.
    """
    if "query_embed" in state_dict and "encoder.patch_embed.proj.weight" in state_dict:
        prefix = "encoder."
        state_dict = {n.removeprefix(prefix): value for n, value in state_dict.items() if n.startswith(prefix)}
    if any(name.startswith("patch_embed.") for name in state_dict):
        network = vit_from_state_dict(_without_heads(state_dict), source=source)
        # Kept for the released reference embeddings: the published DeiT sees whole patches only.
        fit: Literal["drop", "pad"] = "drop" if network.dist_token is not None else "pad"
        encoder = PatchEncoder(VitPatchFeatures(network), fit=fit)
    elif any(name.startswith("visual.") for name in state_dict):
        encoder = _from_clip(dict(state_dict), source)
    elif any(name.endswith("layer1.0.conv1.weight") for name in state_dict):
        encoder = PatchEncoder(ResNetFeatures(state_dict, source=source), fit="keep")
    else:
        raise WeightsError(
            f"{source}: an image encoder was expected (a ViT of DINO, DeiT or timm, SelfMask, a ResNet-50, or CLIP), "
            f"but the file begins with {', '.join(list(state_dict)[:3]) or 'nothing'}. Is this the right weight file?"
        )
    return encoder.eval().requires_grad_(False)


def _without_heads(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state_dict.items() if not name.startswith(_HEADS)}


def _from_deit_sin(state_dict: Mapping[str, Tensor], *, source: str) -> PatchEncoder:
    """The published encoder; whatever the file lacks is named."""
    network = VisionTransformer(**_DEIT_SIN_SIZES)
    load_strict(network, _without_heads(state_dict), source=source)
    return PatchEncoder(VitPatchFeatures(network), fit="drop")


def _from_timm(arch: str, weights: str | Path | None) -> PatchEncoder:
    network = create_timm(arch, None if weights is None else str(weights))
    return PatchEncoder(TimmFeatures(network, name=arch))


def _from_clip(name_or_state: str | dict[str, Any], source: str = "") -> PatchEncoder:
    """A CLIP's ResNet as a dense tower, or the patch tokens of its vision transformer."""
    from networks.clip import clip_from_state_dict, load_clip  # open_clip takes seconds to import
    from networks.dense_clip import DenseClipResNet, dense_clip

    if isinstance(name_or_state, str):
        clip = load_clip(name_or_state, towers=("image",))
    else:
        clip = clip_from_state_dict(name_or_state, towers=("image",), source=source)
    tower = dense_clip(clip)
    if isinstance(tower, DenseClipResNet):
        return PatchEncoder(tower, fit="keep")
    return PatchEncoder(ClipPatchFeatures(clip), fit="drop")


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, (*ENCODERS, *OPENAI_MODELS), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"{name!r} is neither an image encoder nor a file.{hint} Allowed: {', '.join(ENCODERS)}, timm:MODEL, a CLIP "
        f"({OPENAI_MODELS[0]}, ..., open_clip:ARCHITECTURE/WEIGHTS), or the path of a weight file."
    )
