"""CLIP's image towers without their pooling, so that every cell of the last feature map lies in the joint space.

The value path is the only one kept, as in MaskCLIP: pooling would mix the cells. ReCo weights positions with it
(``pseudo_labels/cosegmentation.py``) and sharpens its score maps (``reco.py``). Comparing cells with texts:
``cosine_maps.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from networks.clip import ClipModel
from networks.clip_encoder import ClipVitEncoder, encoder_from_visual
from networks.colours import FromImagenet
from networks.text import encode_prompt_ensemble


class DenseClipResNet(nn.Module):
    """CLIP's ResNet with value and output projection of its attention pool at every cell.

    Attributes:
        stride: pixels between neighbouring cells.
        min_size: sides shorter than this leave no cell.
        width: channels D of the joint space.
    """

    stride, min_size = 32, 31

    def __init__(self, visual: ModifiedResNet) -> None:
        """Use open_clip's tower as it is; its weights are shared, not copied."""
        super().__init__()
        self.visual, self.width = visual, visual.attnpool.c_proj.out_features

    def forward(self, images: Tensor) -> Tensor:
        """Compute dense features.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W), float32.

        Returns:
            (B, D, h, w), not normalised; every halving on the way to stride 32 rounds down but for the first.

        Source: ReCo, section 3.2 (after Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022). Kept for the
        released reference embeddings: the pictures are not normalised as CLIP's are.
        """
        x, pool = self.visual.stem(images), self.visual.attnpool
        for stage in (self.visual.layer1, self.visual.layer2, self.visual.layer3, self.visual.layer4):
            x = stage(x)
        for projection in (pool.v_proj, pool.c_proj):
            x = F.conv2d(x, projection.weight[:, :, None, None], projection.bias)
        return x


class DenseClipVit(nn.Module):
    """CLIP's vision transformer, of whose last block only the value path is left.

    Attributes:
        stride: side of a patch; trailing rows and columns that fill none are never seen.
        min_size: as ``stride``.
        width: channels D of the joint space.
    """

    def __init__(self, encoder: ClipVitEncoder, to_own_colours: FromImagenet) -> None:
        """Use an encoder (see ``encoder_from_visual``) and the way to the colours that it was trained with."""
        super().__init__()
        self.encoder, self.to_own_colours = encoder, to_own_colours
        self.stride = self.min_size = encoder.patch_size
        self.width = encoder.embed_dim

    def forward(self, images: Tensor) -> Tensor:
        """Compute dense features.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W), float32; brought to CLIP's own colours here.

        Returns:
            (B, D, H // P, W // P), not normalised.

        Source: Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022: value and output projection of the last
        attention at every token, as in the ResNets. The residual connections and the perceptron of that block are left
        out (their program keeps them): on the built-in world labels are clearly better so, as Lan et al., "ClearCLIP",
        ECCV 2024, report for pictures.
        """
        x, grid = self.encoder.embed(self.to_own_colours(images))
        *blocks, last = self.encoder.transformer["resblocks"]
        for block in blocks:
            x = block(x)
        weight, bias = last.attn.in_proj_weight.chunk(3)[2], last.attn.in_proj_bias.chunk(3)[2]
        x = last.attn.out_proj(F.linear(last.ln_1(x[:, 1:]), weight, bias))
        x = self.encoder.project(self.encoder.ln_post(x))
        return x.transpose(1, 2).unflatten(2, grid)  # (B, h·w, D) -> (B, D, h, w)


DenseClip = DenseClipResNet | DenseClipVit


def dense_clip(clip: ClipModel) -> DenseClip:
    """The image tower of a CLIP as a dense one.

    Args:
        clip: any CLIP whose image tower is an OpenAI ResNet or a plain vision transformer, float32. A ResNet is
            shared with the result, a transformer is copied.

    Returns:
        The dense tower in evaluation mode, without gradients, on the CLIP's device.

    Raises:
        utils.errors.UserError: if the tower is of another kind.
    """
    if isinstance(clip.visual, ModifiedResNet):
        tower: DenseClip = DenseClipResNet(clip.visual)
    else:
        colours = FromImagenet(clip.preprocess.mean, clip.preprocess.std)
        tower = DenseClipVit(encoder_from_visual(clip.visual), colours)
    return tower.to(device=clip.device, dtype=torch.float32).eval().requires_grad_(False)


@torch.no_grad()
def text_vectors(clip: ClipModel, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit text vectors of categories, averaged over prompts: (N, D), float32, on the CLIP's device.

    Raises:
        utils.errors.UserError: as ``encode_prompt_ensemble``, of which this differs for a single prompt only: its
            vector has unit length too.
    """
    return F.normalize(encode_prompt_ensemble(clip, names, templates), dim=-1)
