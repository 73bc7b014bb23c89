"""The dilated MobileNetV2 (output stride 8), a small backbone for DeepLab."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from networks.depthwise import DepthwiseConv3x3
from networks.resnet import OUTPUT_STRIDE, with_counters
from utils.errors import WeightsError

_STAGES = (  # expansion, channels, blocks, stride (MobileNetV2, table 2)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
_STEM_WIDTH = 32
_STEM_SIDE = 3  # pixels that the stem reads along each side; it pads nothing
_NUM_LOW_LEVEL = 4  # parts up to stride 4, the stem included
_LAST_PART = "features.18."  # torchvision's last convolution, behind the features


class DilatedMobileNetV2(nn.Module):
    """MobileNetV2 up to its last block; where its stride would exceed 8, the blocks dilate instead.

    Kept for released weights: the stem does not pad, a block pads its *input*, so that at the border the padding goes
    through the expansion, and the first block of a dilated stage keeps the dilation of the stage before.

    Values are torchvision's `features.{0..17}`, named `low_level_features.{0..3}` and `high_level_features.{4..17}`.

    Source: MobileNetV2 (Sandler et al., 2018), table 2.
    """

    stride = OUTPUT_STRIDE
    width = 320
    low_level_width = 24

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Sequential(*_convolution(nn.Conv2d(3, _STEM_WIDTH, 3, stride=2, bias=False)))]
        width, total_stride, dilation = _STEM_WIDTH, 2, 1
        for expansion, channels, num_blocks, stride in _STAGES:
            before = dilation
            if total_stride * stride > OUTPUT_STRIDE:
                stride, dilation = 1, dilation * stride
            total_stride *= stride
            for index in range(num_blocks):
                options = {"stride": stride if index == 0 else 1, "dilation": before if index == 0 else dilation}
                parts.append(InvertedResidual(width, channels, expansion, **options))
                width = channels
        self.low_level_features = nn.Sequential(*parts[:_NUM_LOW_LEVEL])
        self.high_level_features = nn.ModuleDict({str(i): parts[i] for i in range(_NUM_LOW_LEVEL, len(parts))})

    def initialise(self) -> None:
        """Draw new weights for a training from nothing (He et al., fan-out)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def low_and_high(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map ImageNet-normalised pictures (B, 3, H, W) to features of stride 4 (24 channels) and of stride 8 (320).

        Pictures of fewer than three pixels along a side are continued to three.
        """
        missing = [max(0, _STEM_SIDE - side) for side in images.shape[2:]]
        if any(missing):
            images = F.pad(images, (0, missing[1], 0, missing[0]), mode="replicate")
        low = high = self.low_level_features(images)
        for block in self.high_level_features.values():
            high = block(high)
        return low, high

    def forward(self, images: Tensor) -> Tensor:
        """Map ImageNet-normalised pictures to the features of stride 8, (B, 320, h, w)."""
        return self.low_and_high(images)[1]


class InvertedResidual(nn.Module):
    """Expansion (1×1), depthwise 3×3, projection (1×1); with a shortcut where shapes allow."""

    def __init__(self, width: int, channels: int, expansion: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        self.padding, self.has_shortcut = dilation, stride == 1 and width == channels
        hidden = width * expansion
        depthwise = (
            DepthwiseConv3x3(hidden, dilation, padding=0)
            if stride == 1
            else nn.Conv2d(hidden, hidden, 3, stride=stride, groups=hidden, bias=False)
        )
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(nn.Sequential(*_convolution(nn.Conv2d(width, hidden, 1, bias=False))))
        layers.append(nn.Sequential(*_convolution(depthwise)))
        self.conv = nn.Sequential(*layers, nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, width, h, w) to (B, channels, ⌈h / stride⌉, ⌈w / stride⌉)."""
        changed = self.conv(F.pad(features, (self.padding,) * 4))
        return features + changed if self.has_shortcut else changed


def _convolution(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6(inplace=True)]


def mobilenet_entries(state_dict: Mapping[str, Tensor], *, source: str = "the weights") -> dict[str, Tensor]:
    """The entries of torchvision's MobileNetV2 (`features.*`) under the names used here.

    Args:
        state_dict: torchvision's names; the classifier and the last convolution are left out.
        source: what the weights are, for error messages.

    Raises:
        utils.errors.WeightsError: if there is no MobileNetV2 in the file.
    """
    names = {name.removeprefix("module."): value for name, value in state_dict.items()}
    if "features.0.0.weight" not in names:
        raise WeightsError(
            f"{source}: a MobileNetV2 in torchvision's names was expected, but features.0.0.weight is missing "
            f"(first entries: {', '.join(list(state_dict)[:3]) or 'none'}). Is this the right weight file?"
        )
    entries = {}
    for name, value in names.items():
        if name.startswith("features.") and not name.startswith(_LAST_PART):
            index = int(name.split(".")[1])
            entries[("low_level_" if index < _NUM_LOW_LEVEL else "high_level_") + name] = value
    return with_counters(entries)
