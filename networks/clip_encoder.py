"""CLIP image towers as dense encoders: every patch gets a token, and tokens can be projected to CLIP's joint space.

``ClipVitEncoder`` carries the parameter names of the published ZUTIS checkpoints; ``ClipResNetEncoder`` those of
CLIP's ResNets. ``encoder_from_clip`` builds either from a loaded CLIP. Next: ``zutis.py``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import CustomTransformer, LayerScale, QuickGELU, VisionTransformer
from torch import Tensor, nn

from networks.layers import Attention
from networks.position import resample_position_embedding
from utils.errors import UserError

QUICK_GELU_SLOPE = 1.702


class ClipMlp(nn.Module):
    """The perceptron of a CLIP block, ``c_fc`` and ``c_proj``, with QuickGELU or GELU between them."""

    def __init__(self, width: int, hidden_width: int, quick_gelu: bool) -> None:
        """Create both linear layers."""
        super().__init__()
        self.c_fc = nn.Linear(width, hidden_width)
        self.c_proj = nn.Linear(hidden_width, width)
        self.quick_gelu = quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        if not self.quick_gelu:
            return self.c_proj(F.gelu(self.c_fc(x)))
        # x·sigmoid(sx) = silu(sx) / s: both factors ride along in the matrix products, so one pass over the widest
        # tensor of the network is enough and only one copy of it is kept for the backward pass.
        slope, shape = QUICK_GELU_SLOPE, x.shape
        x = torch.addmm(self.c_fc.bias, x.flatten(0, 1), self.c_fc.weight.T, alpha=slope, beta=slope)
        x = torch.addmm(self.c_proj.bias, F.silu(x), self.c_proj.weight.T, alpha=1 / slope)
        return x.view(shape)


class Scale(nn.Module):
    """Learnt factor per channel (LayerScale), ``gamma`` (C)."""

    def __init__(self, width: int) -> None:
        """Create the factors, at one."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        return x * self.gamma


class ClipBlock(nn.Module):
    """Pre-norm transformer block of CLIP."""

    def __init__(self, width: int, num_heads: int, hidden_width: int, quick_gelu: bool, layer_scale: bool) -> None:
        """Create the block; ``layer_scale`` adds the learnt factors that some open_clip models have."""
        super().__init__()
        self.attn = Attention(width, num_heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = ClipMlp(width, hidden_width, quick_gelu)
        self.ln_2 = nn.LayerNorm(width)
        self.ls_1 = Scale(width) if layer_scale else nn.Identity()
        self.ls_2 = Scale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.ls_1(self.attn(self.ln_1(x)))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class ClipVitEncoder(nn.Module):
    """CLIP's vision transformer without its pooling: patch tokens for pictures of any size.

    Attributes:
        width: channels C of the tokens.
        embed_dim: channels D after ``project``.
        patch_size: side of a patch in pixels; trailing rows and columns that fill no patch are never seen.
    """

    def __init__(
        self,
        *,
        width: int,
        num_layers: int,
        patch_size: int,
        native_grid: int,
        embed_dim: int,
        num_heads: int | None = None,
        hidden_width: int | None = None,
        quick_gelu: bool = True,
        layer_scale: bool = False,
        norm_before: bool = True,
    ) -> None:
        """Create the encoder.

        Args:
            width: channels C.
            num_layers: number of blocks.
            patch_size: side of a patch in pixels.
            native_grid: rows (= columns) of the stored position table.
            embed_dim: dimension D of CLIP's joint space.
            num_heads: attention heads; None: C / 64, as in all of OpenAI's models.
            hidden_width: hidden width of the perceptrons; None: 4·C.
            quick_gelu: x·sigmoid(1.702x) as in OpenAI's models instead of GELU.
            layer_scale: the blocks have learnt factors (some open_clip models).
            norm_before: there is a layer norm before the blocks (all but a few open_clip models).
        """
        super().__init__()
        self.width, self.embed_dim, self.patch_size = width, embed_dim, patch_size
        self.num_heads, self.quick_gelu = num_heads or width // 64, quick_gelu
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn(native_grid**2 + 1, width))
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width) if norm_before else nn.Identity()
        block = (width, self.num_heads, hidden_width or 4 * width, quick_gelu, layer_scale)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(ClipBlock(*block) for _ in range(num_layers))})
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Encode pictures.

        Args:
            images: RGB in [0, 1], normalised by the caller, (B, 3, H, W) with H and W at least one patch.

        Returns:
            Patch tokens after the last norm, (B, H // p, W // p, C).
        """
        x, grid = self.embed(images)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 1:]).unflatten(1, grid)

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, class token first, (B, 1 + h·w, C), and the grid (h, w) of the others."""
        x = self.conv1(images)
        grid = (x.shape[-2], x.shape[-1])
        x = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h·w, C)
        table = resample_position_embedding(self.positional_embedding, grid).to(x.dtype)
        class_token = (self.class_embedding.to(x.dtype) + table[:, :1]).expand(x.shape[0], -1, -1)
        return self.ln_pre(torch.cat((class_token, x + table[:, 1:]), dim=1)), grid

    def project(self, tokens: Tensor) -> Tensor:
        """Map tokens to CLIP's joint space: (..., C) -> (..., D). Linear: it commutes with resizing the grid."""
        return tokens @ self.proj


class ClipResNetEncoder(ModifiedResNet):
    """CLIP's ResNet with its final feature map (stride 32) as patch tokens.

    The published code names these encoders but cannot run them. Here the projection is CLIP's attention pool with a
    query at every position, and batch norm keeps its stored statistics and weights while ``frozen_bn``.
    """

    patch_size = 32

    def __init__(
        self,
        *,
        num_blocks: tuple[int, int, int, int],
        width: int,
        native_grid: int,
        embed_dim: int,
        frozen_bn: bool = True,
    ) -> None:
        """Create the encoder; ``width`` is that of the first stage, the tokens have 32 times as many channels."""
        super().__init__(list(num_blocks), embed_dim, heads=width * 32 // 64, image_size=native_grid * 32, width=width)
        self.width, self.embed_dim, self.frozen_bn = 32 * width, embed_dim, frozen_bn
        if frozen_bn:
            for norm in self._batch_norms():
                norm.requires_grad_(False)

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]

    def train(self, mode: bool = True) -> ClipResNetEncoder:
        """Switch the mode; frozen batch norms stay in evaluation mode."""
        super().train(mode)
        if self.frozen_bn:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised pictures (B, 3, H, W), H and W at least 32: (B, H // 32, W // 32, C)."""
        x = self.stem(images)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.permute(0, 2, 3, 1)

    def project(self, tokens: Tensor) -> Tensor:
        """Map a grid of tokens to CLIP's joint space with the attention pool: (B, h, w, C) -> (B, h, w, D).

        Every position asks for itself; keys and values are all positions and their mean, as in the pool itself.
        """
        pool, grid = self.attnpool, tokens.shape[1:3]
        x = tokens.flatten(1, 2)
        x = torch.cat((x.mean(dim=1, keepdim=True), x), dim=1)
        x = x + resample_position_embedding(pool.positional_embedding, tuple(grid)).to(x.dtype)
        query, key, value = (
            layer(part).unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
            for layer, part in ((pool.q_proj, x[:, 1:]), (pool.k_proj, x), (pool.v_proj, x))
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return pool.c_proj(mixed).unflatten(1, grid)


ClipEncoder = ClipVitEncoder | ClipResNetEncoder


def encoder_from_visual(visual: nn.Module, *, frozen_bn: bool = True) -> ClipEncoder:
    """Build a dense encoder with the weights of an open_clip image tower.

    Args:
        visual: open_clip's ``VisionTransformer`` (with class-token or mean pooling) or ``ModifiedResNet``.
        frozen_bn: for ResNets, keep batch norm as it is.

    Returns:
        A float32 encoder on the tower's device; the tower itself is left as it is.

    Raises:
        UserError: if the tower is of another kind (timm towers, attention-pooled towers, ...).
    """
    if isinstance(visual, ModifiedResNet):
        blocks = tuple(len(getattr(visual, f"layer{i}")) for i in (1, 2, 3, 4))
        grid = int((visual.attnpool.positional_embedding.shape[0] - 1) ** 0.5)
        width, dim = visual.layer1[0].conv1.out_channels, visual.attnpool.c_proj.out_features
        encoder: ClipEncoder = ClipResNetEncoder(
            num_blocks=blocks, width=width, native_grid=grid, embed_dim=dim, frozen_bn=frozen_bn
        )
    else:
        encoder = _vit_like(visual)
    state_dict = {name: value.float() for name, value in visual.state_dict().items()}
    encoder.load_state_dict(state_dict)
    return encoder.to(next(visual.parameters()).device)


def _vit_like(visual: nn.Module) -> ClipVitEncoder:
    """An encoder shaped like an open_clip vision transformer; UserError if there is none of that shape."""
    problem = None
    if not isinstance(visual, VisionTransformer):
        problem = f"its image tower is a {type(visual).__name__}"
    elif visual.attn_pool is not None:
        problem = "its image tower pools with attention, so single patches have no place in the joint space"
    elif isinstance(visual.transformer, CustomTransformer) or visual.grid_size[0] != visual.grid_size[1]:
        problem = "its image tower has special blocks or a grid that is not square"
    if problem:
        raise UserError(
            "the segmenter needs a CLIP whose image tower is a plain vision transformer (open_clip's "
            f"VisionTransformer) or an OpenAI ResNet, but {problem}. Choose another CLIP, e.g. ViT-B/16 or "
            "open_clip:ViT-B-16/laion2b_s34b_b88k; this one can still be used for retrieval."
        )
    block = visual.transformer.resblocks[0]
    return ClipVitEncoder(
        width=visual.conv1.out_channels,
        num_layers=len(visual.transformer.resblocks),
        patch_size=visual.patch_size[0],
        native_grid=visual.grid_size[0],
        embed_dim=visual.proj.shape[1],
        num_heads=block.attn.num_heads,
        hidden_width=block.mlp.c_fc.out_features,
        quick_gelu=isinstance(block.mlp.gelu, QuickGELU),
        layer_scale=isinstance(block.ls_1, LayerScale),
        norm_before=not isinstance(visual.ln_pre, nn.Identity),
    )


@torch.no_grad()
def round_through_half(encoder: ClipEncoder) -> None:
    """Give convolution, linear, attention and projection weights the values they have in float16, in place.

    Norms and embeddings keep all their digits. Source: CLIP's mixed-precision model, from which the authors built
    their encoders.
    """
    rounded = [p for m in encoder.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) for p in m.parameters()]
    rounded += [p for m in encoder.modules() if isinstance(m, Attention) for p in (m.in_proj_weight, m.in_proj_bias)]
    if isinstance(encoder, ClipVitEncoder):
        rounded.append(encoder.proj)
    for parameter in rounded:
        parameter.copy_(parameter.half().float())
