"""Where a ZUTIS segmenter comes from: a CLIP (to be trained), a run folder, or a published file.

Also the text embeddings of its categories, which are kept in our checkpoints and cached for published files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from networks.checkpoint_causes import clip_architecture
from networks.checkpoints import read_state_dict
from networks.clip import load_clip
from networks.text import encode_categories
from networks.zutis import Zutis, zutis_from_state_dict
from systems.run_weights import folder_of, stored_state, weight_file
from systems.text_cache import cached_text
from training.run_folder import RunFolder
from utils.config import load_settings, settings_from_dict
from utils.errors import WeightsError
from utils.log import get_logger
from utils.settings import ZutisSettings
from utils.settings_zutis import CLIP_ARCHITECTURES

logger = get_logger(__name__)


@dataclass(frozen=True)
class StoredSegmenter:
    """A trained network and what was stored with it.

    Attributes:
        network: in evaluation mode, on the CPU.
        settings: of the run, or those given for a file on its own.
        category_names: of the run, background first; None for a file on its own.
        text: their unit text embeddings, (N, D); None for a file on its own.
    """

    network: Zutis
    settings: ZutisSettings
    category_names: list[str] | None = None
    text: Tensor | None = None


def build_from_clip(settings: ZutisSettings, names: Sequence[str]) -> tuple[Zutis, Tensor]:
    """A new segmenter with CLIP's encoder, and the text embeddings of its categories (N, D), float32, on the CPU."""
    clip = load_clip(settings.clip_weights or settings.clip_arch, half=settings.text_precision == "fp16")
    text = encode_categories(clip, names).cpu()
    network = Zutis.from_clip(
        clip,
        frozen_bn=settings.frozen_bn,
        num_queries=settings.num_queries,
        num_decoder_layers=settings.num_decoder_layers,
        stop_gradient=settings.stop_gradient,
    )
    return network.float(), text


def read_segmenter(
    weights: Path, settings: ZutisSettings | None = None, overrides: Sequence[str] = ()
) -> StoredSegmenter:
    """Load a segmenter strictly.

    Args:
        weights: a run folder (its best weights, else the final ones, else the checkpoint's), a file in a run folder,
            or a published file.
        settings: None: those of the run folder; for a published file the encoder is told from its weights.
        overrides: `key=value` words, used where the settings are not given.

    Raises:
        WeightsError: missing, damaged, or of another network than the settings say.
    """
    weights = Path(weights)
    run, file = folder_of(weights), weight_file(weights)
    state_dict = read_state_dict(file)
    stored = stored_state(run)
    if settings is None:
        settings = _own_settings(run, state_dict, overrides, file)
    elif not stored:
        _check_architecture(state_dict, settings, file)
    network = zutis_from_state_dict(state_dict, **stored.get("network", {}), source=str(file))
    return StoredSegmenter(network, settings, stored.get("category_names"), stored.get("text_embeddings"))


def text_embeddings(settings: ZutisSettings, names: Sequence[str], stored: StoredSegmenter) -> Tensor:
    """Unit text embeddings of `names`, (N, D), float32, on the CPU.

    Those stored with a run are used where it knows all names; else CLIP's text tower makes them once, and a cache
    keeps them.
    """
    known = {name: row for row, name in enumerate(stored.category_names or [])}
    if stored.text is not None and all(name in known for name in names):
        return stored.text[[known[name] for name in names]]
    source = str(settings.clip_weights or settings.clip_arch)

    def embed() -> Tensor:
        logger.info("embedding %d names with the text tower of %s", len(names), source)
        clip = load_clip(source, half=settings.text_precision == "fp16", towers=("text",))
        return encode_categories(clip, names)

    return cached_text(source, settings.text_precision, *names, make=embed)


def _own_settings(run: RunFolder, state_dict: dict[str, Tensor], overrides: Sequence[str], file: Path) -> ZutisSettings:
    """Settings of the run folder, or the plainest ones for a file on its own."""
    if run.config_path.is_file():
        return load_settings(run.config_path, overrides)
    architecture = clip_architecture(state_dict)
    if architecture not in CLIP_ARCHITECTURES:
        raise WeightsError(
            f"{file}: the CLIP architecture of this encoder is none of OpenAI's. Give its settings with --config."
        )
    return settings_from_dict({"system": "zutis", "clip_arch": architecture}, source=str(file), overrides=overrides)


def _check_architecture(state_dict: dict[str, Tensor], settings: ZutisSettings, file: Path) -> None:
    """WeightsError if the file holds another of the published encoders than the settings say."""
    found = clip_architecture(state_dict)
    if found is None or settings.clip_arch not in CLIP_ARCHITECTURES:
        return
    if found.removesuffix("@336px") != settings.clip_arch.removesuffix("@336px"):
        raise WeightsError(
            f"{file}: these look like {found} weights; the config says clip_arch: {settings.clip_arch}. "
            f"Use the script or config of {found}, or set clip_arch={found}."
        )
