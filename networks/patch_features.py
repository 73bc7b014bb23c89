"""Backbones as maps from a normalised picture to a grid of features: DINO and DeiT, CLIP, ResNet-50, any timm model.

Every class tells its ``stride``, its ``width`` and the colours it wants (``mean``, ``std``). Who uses them:
``patch_encoders.py`` (co-segmentation) and ``pseudo_labels/features.py`` (spectral voting).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from networks.checkpoints import load_strict, read_state_dict
from networks.resnet import resnet_entries
from networks.vit import VisionTransformer
from utils.errors import ConfigError, WeightsError
from utils.normalisation import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from networks.clip import ClipModel


class VitPatchFeatures(nn.Module):
    """Patch tokens of DINO's or DeiT's vision transformer after one block and the final norm, as a grid."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD

    def __init__(self, network: VisionTransformer, block: int | None = None) -> None:
        super().__init__()
        network.blocks = network.blocks[: resolve_block(block, len(network.blocks))]
        self.network, self.stride, self.width = network, network.patch_size, network.width

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W), sides multiples of P, to (B, D, H / P, W / P)."""
        grid = (images.shape[-2] // self.stride, images.shape[-1] // self.stride)
        tokens = self.network(images)[:, self.network.num_extra_tokens :]
        return tokens.transpose(1, 2).unflatten(2, grid)  # (B, h·w, D) -> (B, D, h, w)


class ClipPatchFeatures(nn.Module):
    """Patch tokens of CLIP's vision transformer after one block and its last norm, as a grid.

    Args:
        clip: a CLIP whose image tower is a plain vision transformer; its weights are copied.
        block: transformer block, counted from 1, or from the end if negative; None: the last.

    Raises:
        utils.errors.ConfigError: if the tower is a ResNet or there is no such block.
    """

    def __init__(self, clip: ClipModel, block: int | None = None) -> None:
        super().__init__()
        from networks.clip_encoder import ClipVitEncoder, encoder_from_visual  # open_clip takes seconds to import

        encoder = encoder_from_visual(clip.visual)
        if not isinstance(encoder, ClipVitEncoder):
            raise ConfigError("this is a ResNet CLIP, whose stride of 32 is too coarse; choose one with a ViT")
        blocks = encoder.transformer["resblocks"]
        encoder.transformer["resblocks"] = blocks[: resolve_block(block, len(blocks))]
        self.encoder, self.stride, self.width = encoder, encoder.patch_size, encoder.width
        self.mean, self.std = tuple(clip.preprocess.mean), tuple(clip.preprocess.std)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, C, H // P, W // P)."""
        return self.encoder(images).permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)


class ResNetFeatures(nn.Module):
    """Last stage of ResNet-50 (stride 32).

    Args:
        state_dict: weights of any dialect that ``resnet.resnet_entries`` knows.
        source: file name for messages.

    Raises:
        utils.errors.WeightsError: if entries are missing, superfluous or of another shape.
    """

    mean, std, stride, width = IMAGENET_MEAN, IMAGENET_STD, 32, 2048

    def __init__(self, state_dict: Mapping[str, Tensor], *, source: str = "the ResNet weights") -> None:
        super().__init__()
        from torchvision.models import resnet50  # takes a second to import
        from torchvision.models._utils import IntermediateLayerGetter

        self.stages = IntermediateLayerGetter(resnet50(weights=None), {"layer4": "features"})  # torchvision's names
        load_strict(self.stages, resnet_entries(state_dict, source=source), source=source)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 2048, ⌈H / 32⌉, ⌈W / 32⌉)."""
        return self.stages(images)["features"]


class TimmFeatures(nn.Module):
    """Feature grid of any timm model that can tell its intermediate outputs.

    Args:
        network: the model, without its classifier.
        block: transformer block or stage, counted from 1, or from the end if negative; None: the last.
        name: timm's name, for messages.

    Raises:
        ConfigError: if the model gives no intermediate features, or there is no such block.
    """

    def __init__(self, network: nn.Module, block: int | None = None, *, name: str = "this model") -> None:
        super().__init__()
        if not hasattr(network, "forward_intermediates") or not hasattr(network, "feature_info"):
            raise ConfigError(f"timm's {name} does not give intermediate features; choose another model")
        info, config = network.feature_info, network.pretrained_cfg or {}
        info = info.info if hasattr(info, "info") else info
        self.network, self.index = network, resolve_block(block, len(info)) - 1
        self.stride, self.width = int(info[self.index]["reduction"]), int(info[self.index]["num_chs"])
        self.mean, self.std = tuple(config.get("mean", IMAGENET_MEAN)), tuple(config.get("std", IMAGENET_STD))

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, C, h, w)."""
        settings = {"indices": [self.index], "output_fmt": "NCHW", "intermediates_only": True}
        return self.network.forward_intermediates(images, norm=hasattr(self.network, "blocks"), **settings)[0]


def resolve_block(block: int | None, num_blocks: int) -> int:
    """Number of blocks to run for a block counted from 1, or from the end if negative.

    Raises:
        ConfigError: if there is no such block.
    """
    number = num_blocks if block is None else block if block > 0 else num_blocks + 1 + block
    if not 1 <= number <= num_blocks:
        raise ConfigError(f"block {block} was asked for, but this network has {num_blocks} blocks")
    return number


def create_timm(arch: str, weights: str | None) -> nn.Module:
    """Build a timm model without its classifier.

    Args:
        arch: timm's name, with a tag or without ("vit_small_patch16_224.dino").
        weights: file; None: timm's own download.

    Raises:
        ConfigError: if timm has no such model.
        WeightsError: if the weights cannot be loaded or do not fit.
    """
    import timm

    base = arch.split(".")[0]
    if not timm.is_model(base):
        near = ", ".join(timm.list_models(f"*{base[:10]}*")[:3])
        raise ConfigError(f"timm has no model {arch!r}" + (f"; it has {near}" if near else ""))
    options = {"dynamic_img_size": True} if base.startswith(("vit_", "deit_", "deit3_", "eva")) else {}
    try:
        network = timm.create_model(arch, pretrained=weights is None, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"timm's weights for {arch} could not be loaded ({str(error).splitlines()[0][:200]}). Check the "
            f"network connection, or give a downloaded file as weights."
        ) from error
    if weights is not None:
        names = network.state_dict().keys()
        heads = ("head.", "head_dist.", "fc.", "classifier.")
        state = {n: value for n, value in read_state_dict(weights).items() if n in names or not n.startswith(heads)}
        load_strict(network, state, source=weights)
    return network
