"""CLIP: OpenAI's models from their files, and every model of open_clip, behind one small class.

Next: ``text.py`` (category embeddings), ``clip_encoder.py`` (image towers as dense encoders), ``tokenizer.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import open_clip
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, convert_weights_to_lp
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from networks.checkpoints import CLIP_SCALARS, load_strict, read_state_dict
from networks.clip_dimensions import OPENAI_MODELS, TOWERS, ClipDimensions
from networks.clip_preprocessing import CLIP_MEAN, CLIP_STD, ClipPreprocessing, preprocess_image
from networks.tokenizer import tokenize
from utils.download import fetch
from utils.errors import UserError, WeightsError

__all__ = [
    "CLIP_MEAN", "CLIP_STD", "OPENAI_MODELS", "TOWERS", "ClipDimensions", "ClipModel", "ClipPreprocessing",
    "clip_from_state_dict", "create_clip", "load_clip", "preprocess_image", "wrap_open_clip",
]  # fmt: skip
OPEN_CLIP_PREFIX = "open_clip:"
_TEXT_PARTS = ("transformer", "token_embedding", "positional_embedding", "ln_final", "text_projection", "logit_scale")


class ClipModel(nn.Module):
    """A CLIP with its tokeniser and preprocessing.

    Attributes:
        model: the open_clip network; its parameter names are OpenAI's for OpenAI's models.
        is_openai: made from weights in OpenAI's names, whose values are float16 numbers.
        preprocess: picture -> (3, R, R) float32; picklable.
        image_resolution, embed_dim, context_length: R, D, tokens per text.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        is_openai: bool,
        preprocess: ClipPreprocessing,
        tokenizer: Callable[[Sequence[str]], Tensor],
        embed_dim: int,
        context_length: int,
    ) -> None:
        """Wrap a network of open_clip."""
        super().__init__()
        self.model, self.is_openai, self.preprocess, self._tokenizer = model, is_openai, preprocess, tokenizer
        self.image_resolution, self.embed_dim, self.context_length = preprocess.resolution, embed_dim, context_length

    @property
    def visual(self) -> nn.Module:
        """The image tower."""
        return self.model.visual

    @property
    def dtype(self) -> torch.dtype:
        """The type that matrices are multiplied in: float32, or a half type for mixed models."""
        return min((p.dtype for p in self.parameters()), key=lambda dtype: dtype.itemsize)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Texts -> padded token ids (n, context_length) on the CPU, with this model's own tokeniser."""
        return self._tokenizer(list(texts))

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Preprocessed pictures (B, 3, R, R) -> features (B, D), not normalised, in the model's dtype."""
        if self.visual is None:
            raise ValueError("this CLIP was loaded without its image tower")
        return self.model.encode_image(pixels.to(device=self.device, dtype=self.dtype))

    def encode_text(self, ids: Tensor) -> Tensor:
        """Token ids (n, context_length) -> features (n, D), not normalised, in the model's dtype.

        Columns after the last end of text are left out: attention is causal, so padding never matters.
        """
        ids, model = ids.to(device=self.device, dtype=torch.int64), self.model
        if isinstance(model, CLIP) and model.transformer is None:
            raise ValueError("this CLIP was loaded without its text tower")
        if not (isinstance(model, CLIP) and model.text_pool_type == "argmax" and model.attn_mask is not None):
            return model.encode_text(ids)
        end = ids.argmax(dim=-1)  # the end of text has the largest id
        length = int(end.max()) + 1
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(ids[:, :length]).to(dtype) + model.positional_embedding[:length].to(dtype)
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x[torch.arange(len(x), device=x.device), end])
        projection = model.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x @ projection


def create_clip(dimensions: ClipDimensions, *, half: bool = False) -> ClipModel:
    """A CLIP of OpenAI's kind with fresh weights; ``half`` makes it the mixed model (see ``clip_from_state_dict``)."""
    d = dimensions
    vision = CLIPVisionCfg(
        layers=d.vision_layers, width=d.vision_width, patch_size=d.vision_patch_size, image_size=d.image_resolution
    )
    text = CLIPTextCfg(
        context_length=d.context_length,
        vocab_size=d.vocab_size,
        width=d.transformer_width,
        heads=d.transformer_heads,
        layers=d.transformer_layers,
    )
    model = CLIP(d.embed_dim, vision, text, quick_gelu=True, cast_dtype=torch.float16 if half else None)
    if half:
        convert_weights_to_lp(model, torch.float16)
    return ClipModel(
        model,
        is_openai=True,
        preprocess=ClipPreprocessing(d.image_resolution),
        tokenizer=partial(tokenize, context_length=d.context_length),
        embed_dim=d.embed_dim,
        context_length=d.context_length,
    )


def clip_from_state_dict(
    state_dict: dict[str, Tensor],
    *,
    half: bool = False,
    towers: Sequence[str] = TOWERS,
    source: str = "the checkpoint",
) -> ClipModel:
    """Build a CLIP from weights in OpenAI's names, of any dimensions, vision transformer or ResNet.

    Args:
        state_dict: the weights; the archive's three extra scalars are ignored.
        half: the mixed model that OpenAI runs on GPUs: matrices in float16, norms and embeddings in float32.
        towers: ("image",) or ("text",) to build and load that tower alone; the other one is then missing.
        source: file name for messages.

    Returns:
        The model in evaluation mode on the CPU; float32 unless ``half``.

    Raises:
        WeightsError: if names or shapes do not fit.
    """
    kept = {
        name: value
        for name, value in state_dict.items()
        if name not in CLIP_SCALARS and ("image" if name.startswith("visual.") else "text") in towers
    }
    clip = create_clip(ClipDimensions.from_state_dict(kept, towers=towers, source=source), half=half)
    if "image" not in towers:
        clip.model.visual = None
    if "text" not in towers:
        for part in _TEXT_PARTS:
            setattr(clip.model, part, None)
    if "text" in towers and "image" not in towers and "logit_scale" not in kept:
        clip.model.logit_scale = None  # it compares the towers: one alone does without
    load_strict(clip.model, kept, source=source)
    return clip.eval()


def load_clip(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    half: bool = False,
    towers: Sequence[str] = TOWERS,
) -> ClipModel:
    """Load a CLIP.

    Args:
        name_or_path: one of ``OPENAI_MODELS`` (downloaded once), a file with weights in OpenAI's names, or
            ``open_clip:ARCHITECTURE/WEIGHTS`` with a pretrained tag of open_clip or a file.
        device: where to put it.
        half: mixed float16, as the authors ran it on GPUs.
        towers: for OpenAI's models, ("image",) or ("text",) to keep only that tower in memory.

    Raises:
        UserError: if the name is unknown, the file missing or the weights do not fit.
    """
    name = str(name_or_path)
    if name.startswith(OPEN_CLIP_PREFIX):
        clip = _load_open_clip(name[len(OPEN_CLIP_PREFIX) :], half)
    elif name in OPENAI_MODELS:
        path = fetch(name)
        clip = clip_from_state_dict(read_state_dict(path), half=half, towers=towers, source=str(path))
    elif Path(name).exists():
        clip = clip_from_state_dict(read_state_dict(name), half=half, towers=towers, source=name)
    else:
        near = difflib.get_close_matches(name, OPENAI_MODELS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{name!r} is neither a CLIP nor a file.{hint} Allowed: {', '.join(OPENAI_MODELS)}, a path to weights in "
            f"OpenAI's names, or {OPEN_CLIP_PREFIX}ARCHITECTURE/WEIGHTS, e.g. open_clip:ViT-B-16/laion2b_s34b_b88k."
        )
    return clip.to(device).eval()


def _load_open_clip(name: str, half: bool) -> ClipModel:
    """Load ``ARCHITECTURE/WEIGHTS`` with open_clip; UserError naming the choices if there is no such model."""
    architecture, _, weights = name.partition("/")
    if architecture not in open_clip.list_models():
        near = difflib.get_close_matches(architecture, open_clip.list_models(), n=3, cutoff=0.3)
        raise UserError(f"open_clip has no architecture {architecture!r}; nearest: {', '.join(near) or 'none'}.")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not weights or (weights not in tags and not Path(weights).exists()):
        raise UserError(
            f"open_clip:{name}: expected a file or a pretrained tag of {architecture} after the slash, received "
            f"{weights!r}; tags: {', '.join(tags) or 'none'}."
        )
    try:
        model = open_clip.create_model(architecture, pretrained=weights, precision="fp16" if half else "fp32")
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"open_clip:{name}: the weights could not be loaded ({str(error).splitlines()[0][:200]}). Check the "
            "network connection or the file, or give the path of a downloaded file after the slash."
        ) from error
    return wrap_open_clip(model, open_clip.get_tokenizer(architecture), is_openai=weights == "openai")


def wrap_open_clip(
    model: nn.Module, tokenizer: Callable[[Sequence[str]], Tensor], *, is_openai: bool = False
) -> ClipModel:
    """Put a network of open_clip behind the interface of this module, with its own preprocessing and tokeniser."""
    config = PreprocessCfg(**open_clip.get_model_preprocess_cfg(model))
    size = config.size if isinstance(config.size, int) else config.size[0]
    transform = None
    if config.resize_mode != "shortest" or config.interpolation != "bicubic" or not _is_square(config.size):
        transform = image_transform_v2(config, is_train=False)
    parameters = model.text_projection if isinstance(model, CLIP) else None
    embed_dim = parameters.shape[1] if isinstance(parameters, Tensor) else _probe_embed_dim(model, size)
    return ClipModel(
        model,
        is_openai=is_openai,
        preprocess=ClipPreprocessing(size, tuple(config.mean), tuple(config.std), transform),
        tokenizer=tokenizer,
        embed_dim=embed_dim,
        context_length=getattr(model, "context_length", None) or model.text.context_length,
    )


def _is_square(size: int | Sequence[int]) -> bool:
    return isinstance(size, int) or size[0] == size[1]


@torch.inference_mode()
def _probe_embed_dim(model: nn.Module, size: int) -> int:
    """Dimension of the joint space of a model that does not tell: encode one black picture."""
    parameter = next(model.visual.parameters())
    was_training = model.training
    features = model.eval().encode_image(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    model.train(was_training)
    return features.shape[-1]
