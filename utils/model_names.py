"""Names of networks in settings, checked before the stages that take hours: encoders, CLIPs, backbones' weights.

The networks are loaded by `networks/patch_encoders.py`, `networks/clip.py` and `networks/backbone_weights.py`, which
know the same names. timm and open_clip take seconds to import, so only names that are theirs import them.
"""

from __future__ import annotations

from pathlib import Path

from utils.config_problems import nearest
from utils.setting_types import Problem, listing, needs_file

OPENAI_CLIPS = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")
FILE_ENCODERS = ("mocov2", "swav")  # without a download
ENCODERS = ("DeiT-S/16-SIN", "dino_small", "dino_base", "supervised", *FILE_ENCODERS)
TIMM, OPEN_CLIP = "timm:", "open_clip:"


def encoder_problems(name: str, weights: Path | None) -> list[Problem]:
    """What is wrong with an image encoder (`encoder_arch`) and its file (`encoder_weights`); nothing is loaded."""
    problems = needs_file("encoder_weights", weights)
    if name.startswith(TIMM):
        return problems + _timm_problems("encoder_arch", name, has_file=weights is not None)
    if name in FILE_ENCODERS and weights is None:
        text = f"not set; {name} has no download, expected the file with its weights"
        return [*problems, Problem(("encoder_weights", "encoder_arch"), text)]
    if name.startswith(OPEN_CLIP):
        return problems + clip_problems("encoder_arch", name)
    if name in (*ENCODERS, *OPENAI_CLIPS) or Path(name).is_file():
        return problems
    allowed = f"{listing(ENCODERS)}, {TIMM}MODEL, a CLIP ({OPENAI_CLIPS[0]}, ..., {OPEN_CLIP}ARCHITECTURE/WEIGHTS)"
    text = f"received {name!r}, expected one of {allowed}, or an existing weight file"
    return [*problems, Problem(("encoder_arch",), text + _hint(name, (*ENCODERS, *OPENAI_CLIPS)))]


def clip_problems(key: str, name: str) -> list[Problem]:
    """What is wrong with the name or file of a CLIP under a key; nothing is loaded."""
    if name.startswith(OPEN_CLIP):
        return [Problem((key,), text) for text in _open_clip_problems(name)]
    if name in OPENAI_CLIPS or Path(name).is_file():
        return []
    text = f"received {name!r}, expected one of {listing(OPENAI_CLIPS)}, {OPEN_CLIP}ARCHITECTURE/WEIGHTS, or an "
    return [Problem((key,), f"{text}existing weight file{_hint(name, OPENAI_CLIPS)}")]


def backbone_problems(weights: str | None, backbone: str) -> list[Problem]:
    """What is wrong with what a backbone starts from (`backbone_weights`); nothing is loaded.

    Args:
        weights: the setting.
        backbone: "resnet50", "resnet101" or "mobilenet".
    """
    key = "backbone_weights"
    if weights is None or weights == "torchvision":
        return []
    if weights == "dino":
        text = f"dino is a ResNet-50, but the backbone is {backbone}; expected torchvision, a file, or null"
        return [] if backbone == "resnet50" else [Problem((key, "segmenter_name"), text)]
    if weights.startswith(TIMM):
        if backbone == "mobilenet":
            text = f"received {weights!r}, but timm's MobileNets do not fit; expected torchvision, a file, or null"
            return [Problem((key, "segmenter_name"), text)]
        problems = _timm_problems(key, weights, has_file=False)
        if not problems and backbone not in weights:
            problems.append(Problem((key, "segmenter_name"), f"received {weights!r}, expected a {backbone} of timm"))
        return problems
    if "/" in weights or "." in weights:
        return needs_file(key, Path(weights))
    text = f"received {weights!r}, expected dino, torchvision, {TIMM}<name>, or an existing file"
    return [] if Path(weights).is_file() else [Problem((key,), text + _hint(weights, ("dino", "torchvision")))]


def _timm_problems(key: str, name: str, *, has_file: bool) -> list[Problem]:
    import timm
    from timm.models import is_model_pretrained

    arch = name.removeprefix(TIMM)
    base = arch.split(".")[0]
    if not timm.is_model(base):
        return [Problem((key,), f"received {name!r}, but timm has no such model{_hint(base, timm.list_models())}")]
    is_old_name = base not in timm.list_models(base)  # timm takes these, but its lists are without them
    if has_file or is_model_pretrained(arch) or is_old_name:
        return []
    tags = timm.list_pretrained(f"{base}.*")
    text = f"received {name!r}, but timm has no such weights"
    return [Problem((key,), f"{text}; expected one of {listing(tags)}" if tags else f"{text}, expected a file")]


def _open_clip_problems(name: str) -> list[str]:
    import open_clip

    architecture, _, weights = name.removeprefix(OPEN_CLIP).partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        return [f"received {name!r}, but open_clip has no such architecture{_hint(architecture, known)}"]
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights and (weights in tags or Path(weights).exists()):
        return []
    return [f"received {name!r}, expected after the slash a file or one of {listing(tags) or 'no tag, there are none'}"]


def _hint(name: str, allowed: tuple[str, ...] | list[str]) -> str:
    match = nearest(name, allowed)
    return f" (did you mean {match!r}?)" if match else ""
