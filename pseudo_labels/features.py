"""Feature networks for spectral voting: self-supervised ResNet-50 and ViT files, CLIP, and any timm or open_clip model.

A network is told by a `FeatureSpec`; all kinds become a `FeatureNetwork`, which takes pictures in [0, 1] of any size.
Clustering: ``spectral.py``; the stage that uses both: ``candidates.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from networks.checkpoints import load_strict, read_state_dict
from networks.resnet import dilated_resnet_from_state_dict
from networks.vit import VisionTransformer, pad_to_multiple, vit_from_state_dict
from pseudo_labels.preparation import IMAGENET_MEAN, IMAGENET_STD
from utils.errors import ConfigError, WeightsError

if TYPE_CHECKING:
    from networks.clip_encoder import ClipVitEncoder

RESNETS = ("mocov2_resnet50", "swav_resnet50", "resnet50")
VITS = ("dino_vits16", "dino_vits8", "vit")
NETWORKS = (*RESNETS, *VITS, "clip", "open_clip:<architecture>/<weights>", "timm:<architecture>")


@dataclass(frozen=True)
class FeatureSpec:
    """Which network, which weights, which block.

    Attributes:
        network: one of `NETWORKS`.
        weights: file; for "clip" also one of OpenAI's names; None lets timm download (open_clip has it in its name).
        block: transformer block whose output is used, counted from 1, or from the end if negative; None: the last.
    """

    network: str
    weights: str | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        prefix, _, name = self.network.partition(":")
        if self.network not in (*RESNETS, *VITS, "clip") and not (prefix in ("open_clip", "timm") and name):
            raise ConfigError(f"features: there is no network {self.network!r}; expected one of {', '.join(NETWORKS)}")
        if self.weights is None and (self.network in (*RESNETS, *VITS, "clip")):
            raise ConfigError(f"features: {self.network} needs weights, the path of a file")

    def __str__(self) -> str:
        weights = f" ({Path(self.weights).name})" if self.weights else ""
        return f"{self.network}{weights}" + ("" if self.block is None else f", block {self.block}")


class FeatureNetwork(nn.Module):
    """A backbone that turns pictures of any size into a grid of features.

    Args:
        body: maps normalised pictures whose sides are multiples of ``stride`` to (B, C, H / stride, W / stride).
        stride: pixels between neighbouring features.
        mean, std: of the body's normalisation, per channel.
        name: short name, for messages.
    """

    def __init__(
        self,
        body: nn.Module,
        stride: int,
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        name: str = "features",
    ) -> None:
        super().__init__()
        self.body, self.stride, self.name = body, stride, name
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Compute features.

        Args:
            images: RGB in [0, 1], (B, 3, H, W), float32; padded right and bottom with the mean colour.

        Returns:
            (B, C, ⌈H / stride⌉, ⌈W / stride⌉), float32.
        """
        return self.body(pad_to_multiple((images - self.mean) / self.std, self.stride)).float()


class VitPatchFeatures(nn.Module):
    """Patch tokens of DINO's vision transformer after one block and the final norm, as a grid."""

    def __init__(self, network: VisionTransformer, block: int | None = None) -> None:
        super().__init__()
        network.blocks = network.blocks[: resolve_block(block, len(network.blocks))]
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, D, H / P, W / P)."""
        grid = (images.shape[-2] // self.network.patch_size, images.shape[-1] // self.network.patch_size)
        return self.network(images)[:, 1:].transpose(1, 2).unflatten(2, grid)  # (B, 1 + h·w, D) -> (B, D, h, w)


class ClipPatchFeatures(nn.Module):
    """Patch tokens of CLIP's vision transformer after one block and its last norm, as a grid."""

    def __init__(self, encoder: ClipVitEncoder, block: int | None = None) -> None:
        super().__init__()
        blocks = encoder.transformer["resblocks"]
        encoder.transformer["resblocks"] = blocks[: resolve_block(block, len(blocks))]
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, C, H / P, W / P)."""
        return self.encoder(images).permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)


class TimmFeatures(nn.Module):
    """Feature grid of any timm model that can tell its intermediate outputs."""

    def __init__(self, network: nn.Module, index: int) -> None:
        super().__init__()
        self.network, self.index = network, index

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
        raise ConfigError(f"features: block {block} was asked for, but this network has {num_blocks} blocks")
    return number


def load_feature_network(spec: FeatureSpec, *, device: str | torch.device = "cpu") -> FeatureNetwork:
    """Load a feature network with its weights.

    Args:
        spec: which one.
        device: where it runs.

    Returns:
        The network in evaluation mode, float32, without gradients.

    Raises:
        ConfigError: if the architecture or the block does not exist.
        WeightsError: if weights are missing or do not fit.

    Source: SelfMask, section 3.1: layer4 of the dilated ResNet-50 (stride 8), or the patch tokens of a transformer's
    last block after the final norm. CLIP's block may matter: its last ones are shaped for the class token.
    """
    network = _loader(spec)(spec)
    return network.to(device).eval().requires_grad_(False)


def _loader(spec: FeatureSpec) -> Callable[[FeatureSpec], FeatureNetwork]:
    if spec.network in RESNETS:
        return _load_resnet
    if spec.network in VITS:
        return _load_vit
    return _load_timm if spec.network.startswith("timm:") else _load_clip


def _load_resnet(spec: FeatureSpec) -> FeatureNetwork:
    if spec.block is not None:
        raise ConfigError(f"features: {spec.network} has no blocks to choose from, received block {spec.block}")
    body = dilated_resnet_from_state_dict(read_state_dict(spec.weights), source=spec.weights)
    return FeatureNetwork(body, body.stride, name=str(spec))


def _load_vit(spec: FeatureSpec) -> FeatureNetwork:
    network = vit_from_state_dict(read_state_dict(spec.weights), source=spec.weights)
    return FeatureNetwork(VitPatchFeatures(network, spec.block), network.patch_size, name=str(spec))


def _load_clip(spec: FeatureSpec) -> FeatureNetwork:
    # open_clip and timm take seconds to import: only the runs that use them pay for that.
    from networks.clip import load_clip
    from networks.clip_encoder import ClipVitEncoder, encoder_from_visual

    name = spec.network if spec.network.startswith("open_clip:") else spec.weights
    if spec.network.startswith("open_clip:") and spec.weights:
        name = f"{spec.network.partition('/')[0]}/{spec.weights}"
    clip = load_clip(name)
    encoder = encoder_from_visual(clip.visual)
    if not isinstance(encoder, ClipVitEncoder):
        raise ConfigError(f"features: {name} is a ResNet CLIP, whose stride of 32 is too coarse; choose one with a ViT")
    preparation = clip.preprocess
    body = ClipPatchFeatures(encoder, spec.block)
    mean, std = preparation.mean, preparation.std
    return FeatureNetwork(body, encoder.patch_size, mean=mean, std=std, name=str(spec))


def _load_timm(spec: FeatureSpec) -> FeatureNetwork:
    arch = spec.network.removeprefix("timm:")
    network = create_timm(arch, spec.weights)
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "feature_info"):
        raise ConfigError(f"features: timm's {arch} does not give intermediate features; choose another model")
    info = network.feature_info
    reductions = info.reduction() if hasattr(info, "reduction") else [entry["reduction"] for entry in info]
    index = resolve_block(spec.block, len(reductions)) - 1
    config = network.pretrained_cfg or {}
    return FeatureNetwork(
        TimmFeatures(network, index),
        int(reductions[index]),
        mean=tuple(config.get("mean", IMAGENET_MEAN)),
        std=tuple(config.get("std", IMAGENET_STD)),
        name=str(spec),
    )


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
        raise ConfigError(f"features: timm has no model {arch!r}" + (f"; it has {near}" if near else ""))
    options = {"dynamic_img_size": True} if base.startswith(("vit_", "deit_", "deit3_", "eva")) else {}
    try:
        network = timm.create_model(arch, pretrained=weights is None, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"features: timm's weights for {arch} could not be loaded ({str(error).splitlines()[0][:200]}). Check the "
            f"network connection, or give a downloaded file as weights."
        ) from error
    if weights is not None:
        names = network.state_dict().keys()
        heads = ("head.", "fc.", "classifier.")
        state = {n: value for n, value in read_state_dict(weights).items() if n in names or not n.startswith(heads)}
        load_strict(network, state, source=weights)
    return network
