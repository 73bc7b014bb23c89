"""What a segmenter's backbone starts from: a setting of one word, resolved to names and tensors.

Next: ``deeplab.py`` (``build_deeplab`` loads them), ``resnet.py`` and ``mobilenet.py`` (the dialects of files).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from networks.checkpoints import read_state_dict
from utils.download import fetch, is_here
from utils.errors import ConfigError, WeightsError

KINDS = "dino, torchvision, timm:<name>, or a file"
_TORCHVISION_NAMES = {"resnet50": "resnet50", "resnet101": "resnet101", "mobilenet": "mobilenet_v2"}
_DINO_FILE = "dino_resnet50_pretrain.pth"


def read_backbone_weights(weights: str | Path | None, backbone: str) -> dict[str, Tensor] | None:
    """Read the weights that a backbone starts from; downloads what is not there yet.

    Args:
        weights: "dino" (self-supervised ResNet-50, what NamedMask starts from), "torchvision" (trained on ImageNet's
            labels, version 1, what ReCo+ starts from), "timm:NAME" for a ResNet of timm with its weights, the path of
            a file in any of these dialects, of MoCo or SwAV; None: nothing, the backbone starts from random values.
        backbone: "resnet50", "resnet101" or "mobilenet".

    Returns:
        Names and tensors as they are in the file, for ``build_deeplab``; None for None.

    Raises:
        ConfigError: if there are no such weights for this backbone.
        WeightsError: if a file is missing or damaged, or cannot be downloaded.
    """
    if weights is None:
        return None
    weights = str(weights)
    if weights == "dino":
        if backbone != "resnet50":
            raise ConfigError(f"backbone weights 'dino' are a ResNet-50's, but the backbone is {backbone}")
        return read_state_dict(fetch(_DINO_FILE))
    if weights == "torchvision":
        return _from_torchvision(backbone)
    if weights.startswith("timm:"):
        if backbone == "mobilenet":
            raise ConfigError(f"backbone weights {weights!r}: MobileNets of timm do not fit, torchvision's do")
        return _from_timm(weights.removeprefix("timm:"))
    if not Path(weights).exists() and "/" not in weights and "." not in weights:
        raise ConfigError(f"backbone weights: expected {KINDS}, received {weights!r}")
    return read_state_dict(weights)


def needs_download(weights: str | Path | None) -> bool:
    """Whether `read_backbone_weights` would ask the network: torchvision and timm keep their downloads themselves."""
    if weights is None or Path(weights).is_file():
        return False
    return not is_here(_DINO_FILE) if weights == "dino" else str(weights).partition(":")[0] in ("torchvision", "timm")


def _from_torchvision(backbone: str) -> dict[str, Tensor]:
    if backbone not in _TORCHVISION_NAMES:
        raise ConfigError(f"backbone weights 'torchvision': there are none for the backbone {backbone!r}")
    from torchvision.models import get_model_weights

    weights = get_model_weights(_TORCHVISION_NAMES[backbone])["IMAGENET1K_V1"]
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError) as error:  # no network, a full disk, a wrong digest
        raise WeightsError(
            f"backbone weights 'torchvision': {weights.url} cannot be had ({_reason(error)}). Check the network "
            "connection, or download the file elsewhere and give its path."
        ) from error


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:8]}*")[:3])
        raise ConfigError(f"backbone weights: timm has no model {name!r}" + (f"; it has {near}" if near else ""))
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightsError(
            f"backbone weights 'timm:{name}' could not be loaded ({_reason(error)}). Check the network connection, or "
            "give a downloaded file."
        ) from error


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
