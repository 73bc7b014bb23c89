"""SelfMask: queries that each propose a mask of the salient object, and a score that says which mask to trust.

`SelfMask.forward` is what training needs (every decoder layer); `SelfMask.predict` computes only what the chosen mask
needs. Pseudo-masks for whole folders are made in `pseudo_labels/mask_stage.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from networks.checkpoints import load_strict
from networks.layers import FeedForward
from networks.query_decoder import QueryDecoder
from networks.vit import HEAD_WIDTH, VisionTransformer, pad_to_multiple, vit_settings
from utils.errors import WeightsError


class SelfMaskOutput(NamedTuple):
    """What every decoder layer proposes.

    Attributes:
        mask_pred: mask probabilities in [0, 1] of the padded pictures, (B, L, Q, 2h, 2w).
        objectness: probability in [0, 1] that a query's mask is the best one, (B, L, Q, 1).
    """

    mask_pred: Tensor
    objectness: Tensor


class SelfMaskPrediction(NamedTuple):
    """The one mask that SelfMask trusts in every picture.

    Attributes:
        query: number of the chosen query, (B,), int64.
        probability: its mask probability at the size of the pictures, (B, H, W), in [0, 1].
        mask: probability > 0.5, (B, H, W), bool.
    """

    query: Tensor
    probability: Tensor
    mask: Tensor


class SelfMask(nn.Module):
    """Salient-object network of a vision transformer and a query decoder.

    Args:
        width: width D of tokens and queries; one attention head per 64 channels.
        num_queries: number Q of mask proposals per picture.
        patch_size: side P of the encoder's patches in pixels.
        num_layers: blocks of the encoder.
        num_decoder_layers: layers of the decoder.
        native_grid: rows (= columns) of the encoder's position table.
        hidden_width: width inside the encoder's MLP; 4·D if None.
        decoder_hidden_width: width inside the decoder's feed-forward layers; 4·D if None.

    The default is the published network. Masks have two cells per patch.

    Source: Shin, Albanie, Xie, "Unsupervised Salient Object Detection with Spectral Cluster Voting", CVPRW 2022.
    """

    def __init__(
        self,
        *,
        width: int = 384,
        num_queries: int = 20,
        patch_size: int = 8,
        num_layers: int = 12,
        num_decoder_layers: int = 6,
        native_grid: int = 28,
        hidden_width: int | None = None,
        decoder_hidden_width: int | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.encoder = VisionTransformer(
            width=width,
            num_layers=num_layers,
            patch_size=patch_size,
            native_grid=native_grid,
            hidden_width=hidden_width,
        )
        num_heads = max(1, width // HEAD_WIDTH)
        self.query_embed = nn.Parameter(torch.randn(num_queries, width))
        self.decoder = QueryDecoder(width, num_heads, decoder_hidden_width or 4 * width, num_decoder_layers)
        self.ffn = FeedForward(width, width, 1)  # objectness

    def encode(self, images: Tensor) -> Tensor:
        """Compute the encoder's tokens.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W) of any size; padded with zeros (the mean colour), right
                and bottom, to multiples of the patch size.

        Returns:
            Normalised tokens, class token first, (B, 1 + h·w, D), with h = ⌈H/P⌉ and w = ⌈W/P⌉.
        """
        return self.encoder(pad_to_multiple(images, self.patch_size))

    def decode(self, tokens: Tensor, *, all_layers: bool = False) -> Tensor:
        """Let the queries read the patch tokens.

        Args:
            tokens: what `encode` returns, (B, 1 + h·w, D).
            all_layers: the queries after every decoder layer instead of the last one only.

        Returns:
            Normalised queries (B, Q, D), or (B, L, Q, D) with all layers.
        """
        return self.decoder(tokens[:, 1:], self.query_embed, all_layers=all_layers)

    def mask_probabilities(self, queries: Tensor, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compare queries with patch tokens.

        Args:
            queries: what `decode` returns, (B, ..., D).
            tokens: what `encode` returns, (B, 1 + h·w, D).
            grid: rows h and columns w of patches.

        Returns:
            Mask probabilities (B, ..., 2h, 2w).
        """
        # The release enlarges the D-channel features and then takes the products. Both steps are linear, so the
        # products come first here and only one channel per query is enlarged.
        flat = queries.flatten(1, -2)
        logits = flat @ tokens[:, 1:].transpose(1, 2)  # (B, N, D) · (B, D, h·w) -> (B, N, h·w)
        logits = logits.unflatten(2, grid)
        logits = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
        return logits.sigmoid().unflatten(1, queries.shape[1:-1])

    def forward(self, images: Tensor) -> SelfMaskOutput:
        """Compute the mask probabilities and objectness of every decoder layer, as training needs them.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W) of any size.

        Returns:
            Masks (B, L, Q, 2h, 2w) of the padded pictures and objectness (B, L, Q, 1), both in [0, 1].
        """
        tokens = self.encode(images)
        queries = self.decode(tokens, all_layers=True)
        masks = self.mask_probabilities(queries, tokens, self.token_grid(images))
        return SelfMaskOutput(masks, self.ffn(queries).sigmoid())

    def predict(self, images: Tensor) -> SelfMaskPrediction:
        """Find the salient object: the mask of the query with the highest objectness.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W) of any size, in evaluation mode and without gradients
                as a rule.

        Returns:
            Chosen query, its probability at the size of the pictures, and the mask where that is above 0.5.
        """
        tokens = self.encode(images)
        queries = self.decode(tokens)
        best = self.ffn(queries).squeeze(2).argmax(dim=1)  # (B, Q, 1) -> (B,)
        chosen = queries[torch.arange(len(queries), device=queries.device), best]
        grid = self.token_grid(images)
        probability = self.mask_probabilities(chosen.unsqueeze(1), tokens, grid)  # (B, 1, 2h, 2w)
        padded_size = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        # Kept for released weights: probabilities are enlarged, not logits.
        probability = F.interpolate(probability.float(), size=padded_size, mode="bilinear", align_corners=False)
        probability = probability[:, 0, : images.shape[-2], : images.shape[-1]]
        return SelfMaskPrediction(best, probability, probability > 0.5)

    def token_grid(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches that pictures (B, 3, H, W) are cut into."""
        return -(-images.shape[-2] // self.patch_size), -(-images.shape[-1] // self.patch_size)


def selfmask_from_state_dict(state_dict: Mapping[str, Tensor], *, source: str = "the SelfMask weights") -> SelfMask:
    """Build the SelfMask that a state dict describes and load it strictly.

    Args:
        state_dict: entries of `selfmask_nq20.pt` or of any network trained with this class, out of their wrapper
            (see `networks.checkpoints.read_state_dict`). Width, number of queries, patch size, layers and native
            grid are read off the shapes.
        source: what the weights are, for error messages.

    Returns:
        The network in evaluation mode, float32, on the CPU.

    Raises:
        utils.errors.WeightsError: if entries are missing, superfluous or of another shape.
    """
    needed = ("query_embed", "decoder.layers.0.linear1.weight")
    missing = [name for name in needed if name not in state_dict]
    if missing:
        raise WeightsError(
            f"{source}: SelfMask was expected, but {', '.join(missing)} is missing "
            f"(first entries: {', '.join(list(state_dict)[:3]) or 'none'}). Is this the right weight file?"
        )
    layers = {name.split(".")[2] for name in state_dict if name.startswith("decoder.layers.")}
    network = SelfMask(
        **vit_settings(state_dict, "encoder.", source=source),
        num_queries=state_dict["query_embed"].shape[0],
        num_decoder_layers=len(layers),
        decoder_hidden_width=state_dict["decoder.layers.0.linear1.weight"].shape[0],
    )
    load_strict(network, dict(state_dict), source=source)
    return network.eval()
