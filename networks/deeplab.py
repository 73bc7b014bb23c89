"""DeepLabv3+ with depthwise-separable convolutions: the segmenter of NamedMask and ReCo+.

Next: ``deeplab_prediction.py`` (label maps), ``backbone_weights.py`` (what a training starts from), ``resnet.py`` and
``mobilenet.py`` (the backbones), ``training/semantic_step.py`` (the loss).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.checkpoint_causes import deeplab_backbone, recognise
from networks.checkpoints import load_strict
from networks.depthwise import DepthwiseConv3x3
from networks.mobilenet import DilatedMobileNetV2, mobilenet_entries
from networks.resnet import DilatedResNet, resnet_entries
from utils.errors import UserError, WeightsError

BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "resnet50": lambda: DilatedResNet(50),
    "resnet101": lambda: DilatedResNet(101),
    "mobilenet": DilatedMobileNetV2,
}
ASPP_DILATIONS = (12, 24, 36)
BACKBONE_MOMENTUM = 0.01
_LAST_LAYER = "classifier.classifier.3.weight"


class DeepLabV3Plus(nn.Module):
    """Backbone of output stride 8, atrous spatial pyramid pooling, and a decoder at stride 4.

    Args:
        backbone: a key of `BACKBONES`.
        num_classes: output channels, background included.
        dropout: share of the pyramid's channels that training leaves out.

    Raises:
        ValueError: if there is no such backbone.

    Source: Chen et al., ECCV 2018, as NamedMask and ReCo+ use it: rates 12, 24, 36, all 3×3 convolutions of the head
    separable, momentum of the batch norms 0.01 in the backbone and 0.1 in the head.
    """

    def __init__(self, backbone: str, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"there is no backbone {backbone!r}; expected one of {', '.join(BACKBONES)}")
        self.backbone_name, self.num_classes = backbone, num_classes
        self.backbone = BACKBONES[backbone]()
        self.classifier = DeepLabHead(self.backbone.low_level_width, self.backbone.width, num_classes, dropout=dropout)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = BACKBONE_MOMENTUM

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits at the grid of the low-level features.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W), float, of any size. The network computes in their memory
                format: channels last (as training batches are) is faster, on CPUs too.

        Returns:
            (B, C, h, w) with h = ⌈H/4⌉ for ResNets. Resizing them to the pictures is left to the caller, who seldom
            needs all of it: see `training.losses.resized_cross_entropy` and `networks.resized_argmax`.

        Raises:
            ValueError: if the pictures have another shape.
            UserError: for a single picture in training mode.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"expected pictures (B, 3, H, W), received {tuple(images.shape)}")
        return self.classifier(*self.backbone.low_and_high(images))

    def initialise(self) -> None:
        """Draw new weights for a training from nothing. Not done by the constructor: most networks are loaded."""
        self.backbone.initialise()
        self.classifier.initialise()

    def parameter_groups(self, backbone_lr: float = 5e-5, head_lr: float = 5e-4) -> list[dict[str, Any]]:
        """Groups for an optimiser: backbone, then head, with their learning rates and names."""
        return [
            {"params": list(self.backbone.parameters()), "lr": backbone_lr, "name": "backbone"},
            {"params": list(self.classifier.parameters()), "lr": head_lr, "name": "head"},
        ]


class DeepLabHead(nn.Module):
    """From the backbone's features to logits.

    Args:
        low_level_width: channels at stride 4.
        width: channels at stride 8.
        num_classes: output channels.
        dropout: share of the pyramid's channels that training leaves out.
    """

    def __init__(self, low_level_width: int, width: int, num_classes: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Sequential(*_normalised(nn.Conv2d(low_level_width, 48, 1, bias=False), 48))
        self.aspp = AtrousPyramid(width, ASPP_DILATIONS, dropout=dropout)
        self.classifier = nn.Sequential(*_normalised(SeparableConv(48 + 256, 256)), nn.Conv2d(256, num_classes, 1))

    def initialise(self) -> None:
        """Draw new weights for a training (Kaiming-normal, fan-in; biases keep the library's values)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """Map features (B, low_level_width, h, w) and (B, width, h', w') to logits (B, C, h, w)."""
        low = self.project(low)
        context = F.interpolate(self.aspp(high), size=low.shape[2:], mode="bilinear", align_corners=False)
        return self.classifier(torch.cat((low, context), dim=1))


class AtrousPyramid(nn.Module):
    """Atrous spatial pyramid pooling: each cell seen alone, in three surroundings, and in the whole picture.

    Args:
        width: channels of the features.
        dilations: of the three 3×3 branches.
        dropout: share of the channels that training leaves out.
        channels: of every branch and of the result.
    """

    def __init__(self, width: int, dilations: tuple[int, ...], *, dropout: float = 0.1, channels: int = 256) -> None:
        super().__init__()
        alone = nn.Sequential(*_normalised(nn.Conv2d(width, channels, 1, bias=False), channels))
        surroundings = [nn.Sequential(*_normalised(SeparableConv(width, channels, d), channels)) for d in dilations]
        pooled = _normalised(nn.Conv2d(width, channels, 1, bias=False), channels)
        self.convs = nn.ModuleList([alone, *surroundings, nn.Sequential(nn.AdaptiveAvgPool2d(1), *pooled)])
        merge = nn.Conv2d(len(self.convs) * channels, channels, 1, bias=False)
        self.project = nn.Sequential(*_normalised(merge, channels), nn.Dropout(dropout))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, channels, h, w); UserError for a single picture in training mode."""
        if self.training and len(features) == 1:
            raise UserError(
                "DeepLabv3+ cannot be trained on one picture at a time: its image-level branch has one value per "
                "picture and channel, and batch norm needs at least two. Use a batch size of 2 or more per process "
                "and accumulation step."
            )
        *branches, pooled = (branch(features) for branch in self.convs)
        # Resized from 1×1, every cell has the same value.
        return self.project(torch.cat((*branches, pooled.expand_as(branches[0])), dim=1))


class SeparableConv(nn.Module):
    """Depthwise 3×3 and pointwise 1×1 convolution with nothing in between, both without bias."""

    def __init__(self, width: int, channels: int, dilation: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(DepthwiseConv3x3(width, dilation), nn.Conv2d(width, channels, 1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, channels, h, w)."""
        return self.body(features)


def _normalised(convolution: nn.Module, channels: int = 256) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def deeplab_from_state_dict(
    state_dict: Mapping[str, Tensor], *, num_classes: int | None = None, source: str = "the DeepLabv3+ weights"
) -> DeepLabV3Plus:
    """Load a segmenter; backbone and number of classes are told from the weights.

    Args:
        state_dict: names and tensors of a published file or of a run.
        num_classes: how many classes there have to be; None: any number.
        source: what the weights are, for error messages.

    Returns:
        The network in evaluation mode, float32, on the CPU. Nothing is downloaded, and no random number is drawn.

    Raises:
        WeightsError: if these are weights of another network or with another number of classes, or if entries are
            missing, superfluous or of another shape.
    """
    backbone, last = deeplab_backbone(state_dict), state_dict.get(_LAST_LAYER)
    if backbone not in BACKBONES or last is None or last.ndim != 4:
        kind = recognise(state_dict)
        found = f"these look like {kind} weights" if kind and kind != "DeepLabv3+" else "these are not"
        first = ", ".join(list(state_dict)[:3]) or "nothing"
        raise WeightsError(
            f"{source}: weights of a DeepLabv3+ were expected ('backbone.*' of {', '.join(BACKBONES)}, and "
            f"{_LAST_LAYER!r}), but {found} (first entries: {first}). Give a published segmenter or a run of this "
            "project; weights of a backbone alone belong to the settings of a training run."
        )
    if num_classes is not None and last.shape[0] != num_classes:
        raise WeightsError(
            f"{source}: these weights have {last.shape[0]} classes, the benchmark asks for {num_classes}. Use the "
            "script or config of the benchmark that they were trained for, or set dataset_name or categories to it."
        )
    with torch.device("meta"):
        network = DeepLabV3Plus(backbone, last.shape[0])
    # The tensors become the parameters: nothing is drawn or copied.
    load_strict(network, state_dict, source=source, assign=True)
    return network.float().eval()


def build_deeplab(
    backbone: str,
    num_classes: int,
    backbone_state: Mapping[str, Tensor] | None = None,
    *,
    source: str = "the backbone's weights",
) -> DeepLabV3Plus:
    """A segmenter to be trained: the backbone from weights, the head fresh.

    Args:
        backbone: a key of `BACKBONES`.
        num_classes: output channels, background included.
        backbone_state: weights of a classifier or of self-supervision in any dialect of `resnet_entries` or
            `mobilenet_entries`, loaded strictly; None: random values.
        source: what they are, for error messages.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        ValueError: if there is no such backbone.
        WeightsError: if the backbone's weights do not fit.
    """
    network = DeepLabV3Plus(backbone, num_classes)
    network.initialise()
    if backbone_state is not None:
        load_strict(network.backbone, _backbone_entries(backbone, backbone_state, source), source=source)
    return network.train()


def check_backbone_state(
    backbone: str, backbone_state: Mapping[str, Tensor], *, source: str = "the backbone's weights"
) -> None:
    """Refuse weights that ``build_deeplab`` would refuse; nothing is computed and no random number is drawn.

    Raises:
        WeightsError: if the backbone's weights do not fit.
    """
    with torch.device("meta"):
        network = DeepLabV3Plus(backbone, 2)
    entries = _backbone_entries(backbone, backbone_state, source)
    load_strict(network.backbone, entries, source=source, assign=True)


def _backbone_entries(backbone: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Weights in any dialect under our names."""
    return (mobilenet_entries if backbone == "mobilenet" else resnet_entries)(state, source=source)
