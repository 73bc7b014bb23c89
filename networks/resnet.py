"""The dilated ResNet-50 (output stride 8) that gives MoCo v2 and SwAV features to spectral voting."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torchvision.models import resnet50

from networks.checkpoints import load_strict
from utils.errors import WeightsError

OUTPUT_STRIDE = 8
# Heads of the self-supervised files (MoCo's projection, SwAV's projection and prototypes): not part of the backbone.
_HEADS = ("fc.", "projection_head.", "prototypes.")
_MOCO_ENCODER = "encoder_q."


class DilatedResNet50(nn.Module):
    """ResNet-50 whose last two stages keep stride 8 and dilate their 3×3 convolutions by 2 and 4.

    The first 3×3 of a dilated stage keeps the dilation of the stage before (1 and 2), as torchvision's
    `replace_stride_with_dilation` does.
    """

    stride = OUTPUT_STRIDE
    width = 2048

    def __init__(self) -> None:
        super().__init__()
        network = resnet50(weights=None, replace_stride_with_dilation=[False, True, True])
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

    def forward(self, images: Tensor) -> Tensor:
        """Map ImageNet-normalised pictures (B, 3, H, W) to the features of layer4 (B, 2048, ⌈H/8⌉, ⌈W/8⌉)."""
        return self.stages(images)[-1]


def dilated_resnet_from_state_dict(
    state_dict: Mapping[str, Tensor], *, source: str = "the ResNet-50 weights"
) -> DilatedResNet50:
    """Load a self-supervised ResNet-50: MoCo v2, SwAV, torchvision names, or names with `prefix.` before the stem.

    Args:
        state_dict: the weights, already out of their wrapper (see `networks.checkpoints.read_state_dict`). Entries of
            projection heads and prototypes are left out; of a MoCo file only the query encoder is read.
        source: what the weights are, for error messages.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        utils.errors.WeightsError: if entries are missing, superfluous or of another shape.
    """
    names = {name: name.removeprefix("module.") for name in state_dict}
    if any(name.startswith(_MOCO_ENCODER) for name in names.values()):
        names = {old: name.removeprefix(_MOCO_ENCODER) for old, name in names.items() if name.startswith(_MOCO_ENCODER)}
    names = {old: name.removeprefix("prefix.") for old, name in names.items()}
    backbone = {name: state_dict[old] for old, name in names.items() if not name.startswith(_HEADS)}
    if "conv1.weight" not in backbone:
        raise WeightsError(
            f"{source}: a ResNet-50 was expected, but conv1.weight is missing "
            f"(first entries: {', '.join(list(state_dict)[:3]) or 'none'}). Is this the right weight file?"
        )
    network = DilatedResNet50()
    load_strict(network, backbone, source=source)
    return network.eval()
