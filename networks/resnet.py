"""Dilated ResNets (output stride 8): features of MoCo v2 and SwAV for spectral voting, and DeepLab's backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from networks.checkpoints import load_strict
from utils.errors import WeightsError

OUTPUT_STRIDE = 8
_NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
_STAGES = (  # width, stride, dilation of the first block, dilation of the others
    (64, 1, 1, 1),
    (128, 2, 1, 1),
    (256, 1, 1, 2),
    (512, 1, 2, 4),
)
# Heads of published files (a classifier, MoCo's projection, SwAV's projection and prototypes): no part of the backbone.
_HEADS = ("fc.", "projection_head.", "prototypes.")
_MOCO_ENCODERS = ("encoder_q.", "base_encoder.")  # version 2, version 3
_COUNTER = "num_batches_tracked"


class DilatedResNet(nn.Module):
    """ResNet with bottlenecks whose last two stages keep stride 8 and dilate their 3×3 convolutions by 2 and 4.

    The first 3×3 of a dilated stage keeps the dilation of the stage before (1 and 2). Names and shapes are
    torchvision's, without the classifier.

    Args:
        depth: 50 or 101.

    Source: He et al., CVPR 2016, table 1, with the stride in the 3×3 convolutions; dilation as in DeepLabv3.
    """

    stride = OUTPUT_STRIDE
    width = 4 * _STAGES[-1][0]
    low_level_width = 4 * _STAGES[0][0]

    def __init__(self, depth: int = 50) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for number, (width, stride, first, others) in enumerate(_STAGES, start=1):
            blocks = [Bottleneck(channels, width, stride=stride, dilation=first, has_projection=True)]
            channels = 4 * width
            blocks += [Bottleneck(channels, width, dilation=others) for _ in range(_NUM_BLOCKS[depth][number - 1] - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))

    def initialise(self) -> None:
        """Draw new weights for a training from nothing (He et al., fan-out)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs of all four stages.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W), float.

        Returns:
            Features of layer1 (stride 4, 256 channels) and layer2 to layer4 (stride 8; 512, 1024, 2048 channels).
        """
        features = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        outputs = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
            outputs.append(features)
        return outputs

    def low_and_high(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map ImageNet-normalised pictures to layer1 (B, 256, ⌈H/4⌉, ⌈W/4⌉) and layer4 (B, 2048, ⌈H/8⌉, ⌈W/8⌉)."""
        low, _, _, high = self.stages(images)
        return low, high

    def forward(self, images: Tensor) -> Tensor:
        """Map ImageNet-normalised pictures (B, 3, H, W) to the features of layer4 (B, 2048, ⌈H/8⌉, ⌈W/8⌉)."""
        return self.stages(images)[-1]


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with a shortcut; the last widens four times.

    Args:
        channels: of the input.
        width: of the inner convolutions.
        stride, dilation: of the 3×3 convolution.
        has_projection: whether the shortcut is a 1×1 convolution, as it has to be where shapes change.
    """

    def __init__(
        self, channels: int, width: int, *, stride: int = 1, dilation: int = 1, has_projection: bool = False
    ) -> None:
        super().__init__()
        options = {"stride": stride, "padding": dilation, "dilation": dilation, "bias": False}
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, **options), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if has_projection:
            projection = nn.Conv2d(channels, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(4 * width))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, channels, h, w) to (B, 4·width, ⌈h / stride⌉, ⌈w / stride⌉)."""
        changed = self.relu(self.bn1(self.conv1(features)))
        changed = self.relu(self.bn2(self.conv2(changed)))
        changed = self.bn3(self.conv3(changed))
        changed += features if self.downsample is None else self.downsample(features)
        return self.relu(changed)


def dilated_resnet_from_state_dict(
    state_dict: Mapping[str, Tensor], *, source: str = "the ResNet-50 weights"
) -> DilatedResNet:
    """Load a self-supervised ResNet-50: MoCo, SwAV, torchvision names, or names with `prefix.` before the stem.

    Args:
        state_dict: the weights, already out of their wrapper (see `networks.checkpoints.read_state_dict`).
        source: what the weights are, for error messages.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        utils.errors.WeightsError: if entries are missing, superfluous or of another shape.
    """
    network = DilatedResNet(50)
    load_strict(network, resnet_entries(state_dict, source=source), source=source)
    return network.eval()


def resnet_entries(state_dict: Mapping[str, Tensor], *, source: str = "the ResNet weights") -> dict[str, Tensor]:
    """The entries of a ResNet's backbone in any dialect, under torchvision's names.

    Args:
        state_dict: DINO, torchvision, timm, MoCo (only the encoder that is trained by gradients is read), SwAV, or
            names with `prefix.` before the stem. Classifiers, projection heads and prototypes are left out.
        source: what the weights are, for error messages.

    Returns:
        Names and tensors; counters of batches, which files of before 2018 lack, start at 0.

    Raises:
        utils.errors.WeightsError: if there is no ResNet in the file.
    """
    names = {name: name.removeprefix("module.") for name in state_dict}
    for encoder in _MOCO_ENCODERS:
        if any(name.startswith(encoder) for name in names.values()):
            names = {old: name.removeprefix(encoder) for old, name in names.items() if name.startswith(encoder)}
    names = {old: name.removeprefix("prefix.") for old, name in names.items()}
    entries = {name: state_dict[old] for old, name in names.items() if not name.startswith(_HEADS)}
    if "conv1.weight" not in entries:
        raise WeightsError(
            f"{source}: a ResNet was expected, but conv1.weight is missing "
            f"(first entries: {', '.join(list(state_dict)[:3]) or 'none'}). Is this the right weight file?"
        )
    return with_counters(entries)


def with_counters(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries with counters of the batches that norms have seen, at 0, where a file has no counter at all."""
    if any(name.endswith(_COUNTER) for name in entries):
        return entries
    norms = [name.removesuffix("running_var") for name in entries if name.endswith("running_var")]
    return entries | {f"{norm}{_COUNTER}": torch.zeros((), dtype=torch.int64) for norm in norms}
