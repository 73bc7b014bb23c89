"""Feature networks for spectral voting: self-supervised ResNet-50 and ViT files, CLIP, and any timm or open_clip model.

A network is told by a `FeatureSpec`; all kinds become a `FeatureNetwork`, which takes pictures in [0, 1] of any size.
The backbones themselves: ``networks/patch_features.py``. Clustering: ``spectral.py``; the stage that uses both:
``candidates.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from networks.checkpoints import read_state_dict
from networks.patch_features import ClipPatchFeatures, TimmFeatures, VitPatchFeatures, create_timm
from networks.resnet import dilated_resnet_from_state_dict
from networks.vit import pad_to_multiple, vit_from_state_dict
from utils.errors import ConfigError
from utils.normalisation import IMAGENET_MEAN, IMAGENET_STD

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
    return _wrap(VitPatchFeatures(network, spec.block), spec)


def _load_clip(spec: FeatureSpec) -> FeatureNetwork:
    from networks.clip import load_clip  # open_clip takes seconds to import: only the runs that use it pay for that

    name = spec.network if spec.network.startswith("open_clip:") else spec.weights
    if spec.network.startswith("open_clip:") and spec.weights:
        name = f"{spec.network.partition('/')[0]}/{spec.weights}"
    return _wrap(ClipPatchFeatures(load_clip(name), spec.block), spec)


def _load_timm(spec: FeatureSpec) -> FeatureNetwork:
    arch = spec.network.removeprefix("timm:")
    return _wrap(TimmFeatures(create_timm(arch, spec.weights), spec.block, name=arch), spec)


def _wrap(body: VitPatchFeatures | ClipPatchFeatures | TimmFeatures, spec: FeatureSpec) -> FeatureNetwork:
    return FeatureNetwork(body, body.stride, mean=body.mean, std=body.std, name=str(spec))
