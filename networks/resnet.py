"""Dilated ResNets (output stride 8): features of MoCo v2 and SwAV for spectral voting, and DeepLab's backbone."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from networks.checkpoints import load_strict
from utils.errors import WeightsError

OUTPUT_STRIDE = 8
DEPTHS = (50, 101)
# Heads of published files (a classifier, MoCo's projection, SwAV's projection and prototypes): no part of the backbone.
_HEADS = ("fc.", "projection_head.", "prototypes.")
_MOCO_ENCODERS = ("encoder_q.", "base_encoder.")  # version 2, version 3
_COUNTER = "num_batches_tracked"


class DilatedResNet(nn.Module):
    """ResNet with bottlenecks whose last two stages keep stride 8 and dilate their 3×3 convolutions by 2 and 4.

    The first 3×3 of a dilated stage keeps the dilation of the stage before (1 and 2), as torchvision's
    `replace_stride_with_dilation` does. Names and shapes are torchvision's, without the classifier.

    Args:
        depth: 50 or 101.
    """

    stride = OUTPUT_STRIDE
    width = 2048
    low_level_width = 256

    def __init__(self, depth: int = 50) -> None:
        super().__init__()
        # Takes a second to import: only those who build a ResNet pay for that.
        from torchvision.models import resnet50, resnet101

        build = {50: resnet50, 101: resnet101}[depth]
        network = build(weights=None, replace_stride_with_dilation=[False, True, True])
        self.conv1, self.bn1 = network.conv1, network.bn1
        self.relu, self.maxpool = network.relu, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4

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
            f"{source}: a ResNet-50 was expected, but conv1.weight is missing "
            f"(first entries: {', '.join(list(state_dict)[:3]) or 'none'}). Is this the right weight file?"
        )
    return with_counters(entries)


def with_counters(entries: dict[str, Tensor]) -> dict[str, Tensor]:
    """The entries with counters of the batches that norms have seen, at 0, where a file has no counter at all."""
    if any(name.endswith(_COUNTER) for name in entries):
        return entries
    norms = [name.removesuffix("running_var") for name in entries if name.endswith("running_var")]
    return entries | {f"{norm}{_COUNTER}": torch.zeros((), dtype=torch.int64) for norm in norms}
