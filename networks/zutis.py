"""The ZUTIS segmenter: a CLIP image encoder with a query decoder on top.

One forward pass gives mask proposals (which pixels belong together) and patch tokens in CLIP's joint space (what they
are). ``zutis_prediction.py`` turns them into labels and instances, ``training/losses.py`` into a loss.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.checkpoints import load_strict
from networks.clip import ClipModel
from networks.clip_encoder import (
    ClipEncoder,
    ClipResNetEncoder,
    ClipVitEncoder,
    encoder_from_visual,
    round_through_half,
)
from networks.layers import FeedForward
from networks.position import position_sine
from networks.query_decoder import QueryDecoder
from utils.errors import WeightsError


class ZutisOutput(NamedTuple):
    """What the segmenter finds in a batch of pictures.

    Attributes:
        mask_proposals: probabilities, (B, L, Q, h, w), float32; L is 1 if only the last decoder layer was asked for.
        patch_tokens: unit vectors in CLIP's joint space, (B, h, w, D), float32.
    """

    mask_proposals: Tensor
    patch_tokens: Tensor


class Zutis(nn.Module):
    """Zero-shot segmenter: mask proposals and patch tokens that can be compared with any text embedding.

    Source: Shin, Albanie, Xie, "Zero-shot Unsupervised Transfer Instance Segmentation", CVPR workshops 2023,
    section 3. Parameter names are those of the published checkpoints. Gradient routing: with ``stop_gradient`` the
    mask loss reaches the head alone and the cross-entropy the encoder alone.
    Shapes: B batch, L decoder layers, Q queries, C encoder width, D joint dimension, h×w twice the patch grid.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        *,
        num_queries: int = 100,
        num_decoder_layers: int = 6,
        num_heads: int = 8,
        ffn_width: int = 256,
        decoder_ffn_width: int = 2048,
        stop_gradient: bool = True,
    ) -> None:
        """Put a head on an encoder.

        Args:
            encoder: dense CLIP encoder, see ``clip_encoder.py``.
            num_queries: masks proposed per picture, Q.
            num_decoder_layers: L.
            num_heads: attention heads of the decoder; must divide the encoder's width.
            ffn_width: hidden width of the perceptrons on memory and queries.
            decoder_ffn_width: hidden width inside the decoder layers.
            stop_gradient: keep the mask loss out of the encoder.
        """
        super().__init__()
        width = encoder.width
        self.query_embed = nn.Parameter(torch.randn(num_queries, width))
        self.encoder = encoder
        self.decoder = QueryDecoder(width, num_heads, decoder_ffn_width, num_decoder_layers)
        self.ffn1 = FeedForward(width, ffn_width, width)
        self.ffn2 = FeedForward(width, ffn_width, width)
        self.num_heads, self.stop_gradient = num_heads, stop_gradient

    @classmethod
    def from_clip(cls, clip: ClipModel, *, frozen_bn: bool = True, **settings: Any) -> Zutis:
        """Build a segmenter whose encoder is the image tower of a CLIP; the head is new.

        Args:
            clip: any CLIP with OpenAI's towers, or an open_clip model with a plain vision transformer.
            frozen_bn: for ResNets, keep batch norm as it is.
            settings: keyword arguments of the constructor.

        Raises:
            UserError: if the image tower is of a kind without patch tokens in the joint space.
        """
        encoder = encoder_from_visual(clip.visual, frozen_bn=frozen_bn)
        if clip.is_openai:
            round_through_half(encoder)  # Kept for released weights: they were trained from float16 values.
        return cls(encoder, **settings).to(next(encoder.parameters()).device)

    @property
    def settings(self) -> dict[str, Any]:
        """What ``zutis_from_state_dict`` needs besides the weights; store it in checkpoints."""
        settings: dict[str, Any] = {"num_heads": self.num_heads, "stop_gradient": self.stop_gradient}
        if isinstance(self.encoder, ClipVitEncoder):
            return {**settings, "quick_gelu": self.encoder.quick_gelu, "encoder_heads": self.encoder.num_heads}
        return {**settings, "frozen_bn": self.encoder.frozen_bn}

    def forward(self, images: Tensor, all_layers: bool | None = None) -> ZutisOutput:
        """Segment pictures.

        Args:
            images: RGB in [0, 1] normalised with ImageNet's mean and standard deviation, (B, 3, H, W); any size of at
                least one patch. Kept for released weights: these are not CLIP's own constants.
            all_layers: proposals of every decoder layer; None: in training mode only.

        Returns:
            Mask proposals (B, L or 1, Q, h, w) and patch tokens (B, h, w, D).

        Raises:
            ValueError: if the pictures are not (B, 3, H, W) or smaller than a patch.
        """
        patch = self.encoder.patch_size
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < patch:
            raise ValueError(
                f"expected pictures (B, 3, H, W) of at least {patch} x {patch} pixels (one patch of the encoder), "
                f"received {tuple(images.shape)}; enlarge smaller pictures first"
            )
        tokens = self.encoder(images)
        all_layers = self.training if all_layers is None else all_layers
        head_input = tokens.detach() if self.stop_gradient else tokens
        return ZutisOutput(self._propose(head_input, all_layers), self._joint_tokens(tokens))

    def _joint_tokens(self, tokens: Tensor) -> Tensor:
        """Unit vectors in the joint space at twice the grid: (B, gh, gw, C) -> (B, h, w, D)."""
        if isinstance(self.encoder, ClipVitEncoder):
            projected = upsample_grid(self.encoder.project(tokens))  # linear, so it is cheaper before the upsampling
        else:
            projected = self.encoder.project(upsample_grid(tokens))
        # Kept for released weights: normalised over the whole picture at once, so a token depends on all others.
        projected = F.layer_norm(projected.float(), projected.shape[1:])
        return projected / (projected.norm(dim=-1, keepdim=True) + 1e-7)

    def _propose(self, tokens: Tensor, all_layers: bool) -> Tensor:
        """Mask proposals at twice the grid: (B, gh, gw, C) -> (B, L or 1, Q, h, w)."""
        first, middle, last = self.ffn1.layers
        # The upsampling commutes with the first linear layer, which has fewer channels than the tokens.
        hidden = F.relu(middle(F.relu(upsample_grid(first(tokens)))))
        memory = last(hidden)
        grid = memory.shape[1:3]
        memory = memory.flatten(1, 2)  # (B, h, w, C) -> (B, h·w, C)
        position = position_sine(tuple(grid), memory.shape[-1] // 2, device=memory.device)
        position = position.flatten(1).T.to(memory.dtype)  # (C, h, w) -> (h·w, C)
        queries = self.decoder(memory, self.query_embed, position, all_layers=all_layers)
        queries = self.ffn2(queries if all_layers else queries[:, None])  # (B, L, Q, C)
        queries = queries / queries.norm(dim=-1, keepdim=True)
        scores = queries.flatten(1, 2).to(memory.dtype) @ memory.transpose(1, 2)  # (B, L·Q, h·w)
        return scores.float().sigmoid().unflatten(2, grid).unflatten(1, queries.shape[1:3])

    def parameter_groups(self, encoder_lr: float = 5e-6, head_lr: float = 5e-5) -> list[dict[str, Any]]:
        """Groups for an optimiser, in the published order: encoder, decoder, ``query_embed``, ffn1, ffn2."""
        parts = {
            "encoder": (encoder_lr, list(self.encoder.parameters())),
            "decoder": (head_lr, list(self.decoder.parameters())),
            "query_embed": (head_lr, [self.query_embed]),
            "ffn1": (head_lr, list(self.ffn1.parameters())),
            "ffn2": (head_lr, list(self.ffn2.parameters())),
        }
        return [
            {"name": name, "lr": rate, "params": [p for p in parameters if p.requires_grad]}
            for name, (rate, parameters) in parts.items()
        ]


def upsample_grid(tokens: Tensor) -> Tensor:
    """Double a grid of tokens bilinearly (align_corners false): (B, gh, gw, C) -> (B, 2·gh, 2·gw, C)."""
    doubled = F.interpolate(tokens.permute(0, 3, 1, 2), scale_factor=2, mode="bilinear")
    return doubled.permute(0, 2, 3, 1)


def zutis_from_state_dict(
    state_dict: dict[str, Tensor],
    *,
    num_heads: int = 8,
    stop_gradient: bool = True,
    quick_gelu: bool = True,
    encoder_heads: int | None = None,
    frozen_bn: bool = True,
    source: str = "the checkpoint",
) -> Zutis:
    """Build a segmenter of the right dimensions for a checkpoint and load it strictly.

    Args:
        state_dict: names of the published checkpoints (``query_embed``, ``encoder.*``, ...).
        num_heads: attention heads of the decoder; weights do not tell.
        stop_gradient: see ``Zutis``.
        quick_gelu: activation of the encoder; weights do not tell.
        encoder_heads: attention heads of a vision transformer; None: width / 64.
        frozen_bn: for ResNet encoders.
        source: file name for error messages.

    Raises:
        WeightsError: if the names or shapes are not those of a segmenter.
    """
    if "query_embed" not in state_dict or not any(name.startswith("encoder.") for name in state_dict):
        first = ", ".join(list(state_dict)[:3]) or "nothing"
        raise WeightsError(
            f"{source}: these are not weights of a ZUTIS segmenter: expected 'query_embed' and 'encoder.*', found "
            f"{first}, ... Give a published ZUTIS file or a run of this project; CLIP weights belong to the "
            "configuration of a training run."
        )
    shapes = {name: tuple(value.shape) for name, value in state_dict.items()}
    try:
        vit = {"quick_gelu": quick_gelu, "num_heads": encoder_heads}
        with torch.device("meta"):
            encoder = _encoder_like(shapes, vit, frozen_bn)
            network = Zutis(
                encoder,
                num_queries=shapes["query_embed"][0],
                num_decoder_layers=count_blocks(shapes, "decoder.layers."),
                num_heads=num_heads,
                ffn_width=shapes["ffn1.layers.0.weight"][0],
                decoder_ffn_width=shapes["decoder.layers.0.linear1.weight"][0],
                stop_gradient=stop_gradient,
            )
    except KeyError as error:
        raise WeightsError(
            f"{source}: the entry {error} of a ZUTIS segmenter is missing; is the file cut off?"
        ) from error
    network.to_empty(device="cpu")
    load_strict(network, state_dict, source=source)
    return network.eval()


def count_blocks(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    """How many different numbers follow ``prefix`` in the names of a checkpoint."""
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _encoder_like(shapes: dict[str, tuple[int, ...]], vit_settings: dict[str, Any], frozen_bn: bool) -> ClipEncoder:
    """An encoder without values, of the shapes in a checkpoint; KeyError if an entry is missing."""
    if "encoder.layer1.0.conv1.weight" in shapes:
        table = shapes["encoder.attnpool.positional_embedding"]
        return ClipResNetEncoder(
            num_blocks=tuple(count_blocks(shapes, f"encoder.layer{i}.") for i in (1, 2, 3, 4)),
            width=shapes["encoder.layer1.0.conv1.weight"][0],
            native_grid=round((table[0] - 1) ** 0.5),
            embed_dim=shapes["encoder.attnpool.c_proj.weight"][0],
            frozen_bn=frozen_bn,
        )
    block = "encoder.transformer.resblocks."
    return ClipVitEncoder(
        width=shapes["encoder.conv1.weight"][0],
        num_layers=count_blocks(shapes, block),
        patch_size=shapes["encoder.conv1.weight"][-1],
        native_grid=round((shapes["encoder.positional_embedding"][0] - 1) ** 0.5),
        embed_dim=shapes["encoder.proj"][1],
        hidden_width=shapes[f"{block}0.mlp.c_fc.weight"][0],
        layer_scale=f"{block}0.ls_1.gamma" in shapes,
        norm_before="encoder.ln_pre.weight" in shapes,
        **vit_settings,
    )
