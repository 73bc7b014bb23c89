"""Teaches a small CLIP from captioned pictures: relations between captions, losses, cheap forward passes, the loop.

The network is open_clip's ``CLIP``, whose parameter names for a ViT and a plain text tower are OpenAI's.
Next: ``datasets/shapes`` makes the pictures, ``scripts/pretrain_world.sh`` runs the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.log import get_logger

_logger = get_logger(__name__)

#: CLIP's pixel constants (mean, std) for pictures in [0, 1].
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class CaptionedPictures:
    """What the loop learns from.

    Attributes:
        images: uint8 RGB (N, S, S, 3), may be memory-mapped.
        token_ids: int32 (N, K, L), K captions of each picture, cut after their end-of-text token.
        nouns: bool (N, K, C), which of ``noun_names`` the caption's words contain.
        noun_ids: int32 (C + 1, L), tokens of the bare nouns and, last, of the word "background".
        has_background: bool (N,), whether the captions leave a part of the picture unnamed; None: all do.
        shown: bool (N, C), which nouns the picture's captions contain together; None: each caption stands for itself.
    """

    images: np.ndarray
    token_ids: np.ndarray
    nouns: np.ndarray
    noun_ids: np.ndarray
    has_background: np.ndarray | None = None
    shown: np.ndarray | None = None


@dataclass(frozen=True)
class ClipTrainSettings:
    """Settings of the loop.

    Attributes:
        num_steps: optimiser steps, with a cosine decay to 0.
        batch_size: pictures with one caption each.
        lr: after the warm-up.
        weight_decay: on matrices; none on vectors and the token embedding.
        warmup_steps: linear increase of the rate.
        resolutions: sides in pixels, one is drawn per batch.
        max_tokens: patches kept of every picture.
        patch_loss_weight: factor of the patches' naming loss.
        precision: "bf16" or "fp32".
        seed: of batches, crops and kept patches.
    """

    num_steps: int = 6000
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 150
    resolutions: tuple[int, ...] = (64, 64, 96, 128)
    max_tokens: int = 72
    patch_loss_weight: float = 0.5
    precision: str = "bf16"
    seed: int = 0


def caption_relations(nouns: Tensor, shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tell for each pair of captions whether they say the same, contradict, or neither.

    Args:
        nouns: which names each caption mentions, bool (B, C).
        shown: which names any caption of its picture mentions, bool (B, C); None: only its own.

    Returns:
        same: bool (B, B), both mention exactly the same names (none at all counts as the same).
        unclear: bool (B, B), symmetric: they do not, but one mentions some name that the other's picture is known to
            show: no evidence either way.
    """
    counts = nouns.float()
    shared = counts @ counts.T
    sizes = counts.sum(dim=1)
    same = (shared == sizes[:, None]) & (shared == sizes[None])
    if shown is not None:
        shared = shown.float() @ counts.T
        shared = shared + shared.T
    return same, (shared > 0) & ~same


def contrastive_loss(image: Tensor, text: Tensor, scale: Tensor, same: Tensor, unclear: Tensor) -> Tensor:
    """Compute the symmetric contrastive loss with several positives.

    Args:
        image: unit-length rows, (B, D), float32.
        text: unit-length rows, (B, D), float32.
        scale: positive scalar that multiplies the similarities.
        same: positives, bool (B, B), symmetric, true on the diagonal.
        unclear: pairs left out of the comparison, bool (B, B), symmetric.

    Returns:
        Mean of both directions' cross-entropies, the target spread evenly over a row's positives; scalar.

    Source: CLIP (Radford et al. 2021), figure 3; deliberate difference: captions that name the same things are
    positives of each other, captions that share some names are not compared.
    """
    logits = (scale * image @ text.T).masked_fill(unclear, -torch.inf)
    target = same.float() / same.sum(dim=1, keepdim=True)
    losses = []
    for rows in (logits, logits.T):
        log_probs = rows.log_softmax(dim=1).masked_fill(unclear, 0.0)
        losses.append(-(target * log_probs).sum(dim=1).mean())
    return (losses[0] + losses[1]) / 2


def patch_naming_loss(
    patches: Tensor,
    names: Tensor,
    mentioned: Tensor,
    *,
    has_background: Tensor | None = None,
    scale: float = 20.0,
) -> Tensor:
    """Ask that some patches carry each mentioned name, no patch an unmentioned one, and many none.

    Only the caption's words are used: every patch chooses among all nouns and "background"; a mentioned noun needs its
    best 3 % of patches (at least one), the background the best 40 %, and the best patch of an unmentioned noun is
    pushed down.

    Args:
        patches: unit-length patch tokens in the joint space, (B, P, D).
        names: unit-length embeddings of the nouns, "background" last, (C + 1, D).
        mentioned: nouns of the caption, or of all captions of the picture, bool (B, C).
        has_background: pictures that need patches of background, bool (B,); None: all do.
        scale: sharpness of the choice.

    Returns:
        Scalar loss.

    Source: multiple-instance learning as in GroupViT's multi-label contrast (Xu et al. 2022, section 3.2), on patches.
    """
    log_probs = (scale * patches @ names.T).log_softmax(dim=-1)  # (B, P, C + 1)
    num_patches = log_probs.shape[1]
    best = log_probs[..., :-1].topk(max(1, round(0.03 * num_patches)), dim=1).values  # (B, k, C)
    present = -(best.mean(dim=1) * mentioned).sum(dim=1)
    absent = -(torch.log1p(-best[:, 0].exp().clamp(max=1 - 1e-4)) * ~mentioned).sum(dim=1)
    ground = -log_probs[..., -1].topk(round(0.4 * num_patches), dim=1).values.mean(dim=1)
    if has_background is not None:
        ground = ground * has_background
    return (present + absent + ground).mean()


def encode_tokens(clip: nn.Module, token_ids: Tensor) -> Tensor:
    """Embed texts at their own length: causal attention makes everything after the end-of-text token irrelevant.

    Args:
        clip: open_clip's ``CLIP``.
        token_ids: (B, L), L up to the context length; the largest id of a row is its end.

    Returns:
        Raw embeddings, (B, D).
    """
    longest = int(token_ids.argmax(dim=1).max()) + 1
    token_ids = token_ids[:, :longest]
    x = clip.token_embedding(token_ids) + clip.positional_embedding[:longest]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:longest, :longest])
    x = clip.ln_final(x)
    return x[torch.arange(len(x)), token_ids.argmax(dim=1)] @ clip.text_projection


def encode_pictures(visual: nn.Module, pixels: Tensor, *, max_tokens: int | None = None) -> tuple[Tensor, Tensor]:
    """Run the vision tower at any size, on all patches or on a random share of them.

    Args:
        visual: open_clip's ``VisionTransformer`` with a class token and no pooling of its own.
        pixels: normalised, (B, 3, H, W), H and W multiples of the patch side.
        max_tokens: keep a random subset of so many patches per picture; None keeps all.

    Returns:
        class tokens (B, D) and patch tokens (B, P, D), both after ``ln_post`` and ``proj``, not normalised.

    Source: dropping patches while training, FLIP (Li et al. 2023).
    """
    x = visual.conv1(pixels)
    grid_height, grid_width = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, h·w, C)
    side = math.isqrt(len(visual.positional_embedding) - 1)
    position = visual.positional_embedding[1:]
    if (grid_height, grid_width) != (side, side):
        grid = position.T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, size=(grid_height, grid_width), mode="bicubic", align_corners=False)
        position = grid.flatten(2)[0].T
    x = x + position
    if max_tokens is not None and x.shape[1] > max_tokens:
        keep = torch.rand(x.shape[:2]).topk(max_tokens, dim=1).indices
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[2]))
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first.to(x.dtype), x], dim=1))
    x = visual.ln_post(visual.transformer(x)) @ visual.proj
    return x[:, 0], x[:, 1:]


def prepare_pixels(images: np.ndarray, resolution: int, rng: np.random.Generator) -> Tensor:
    """Crop, mirror, resize and normalise a batch.

    Args:
        images: uint8 RGB (B, S, S, 3).
        resolution: side of the result.
        rng: draws one crop side per batch, and place, mirror and brightness per picture.

    Returns:
        float32 (B, 3, resolution, resolution), normalised with CLIP's constants.
    """
    side = images.shape[1]
    crop = int(side * rng.choice((1.0, 1.0, 0.9, 0.8)))
    tops, lefts = rng.integers(0, side - crop + 1, (2, len(images)))
    batch = np.stack([im[t : t + crop, left : left + crop] for im, t, left in zip(images, tops, lefts, strict=True)])
    batch[::2] = batch[::2, :, ::-1]
    pixels = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255
    if crop != resolution:
        exact = crop % resolution == 0 and rng.random() < 0.5
        if exact:
            pixels = F.avg_pool2d(pixels, crop // resolution)
        else:
            pixels = F.interpolate(pixels, size=(resolution, resolution), mode="bilinear", antialias=True)
    gain = torch.from_numpy(rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)).astype(np.float32))
    mean, std = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1), torch.tensor(CLIP_STD).view(1, 3, 1, 1)
    return (pixels * gain - mean) / std


def _optimiser(clip: nn.Module, settings: ClipTrainSettings) -> torch.optim.Optimizer:
    matrices = [p for p in clip.parameters() if p.ndim >= 2 and p is not clip.token_embedding.weight]
    rest = [p for p in clip.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": [*rest, clip.token_embedding.weight], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6)


def _learning_rate(step: int, settings: ClipTrainSettings) -> float:
    warm = min(1.0, (step + 1) / settings.warmup_steps)
    return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, step / settings.num_steps)))


def batch_loss(
    clip: nn.Module, data: CaptionedPictures, rows: np.ndarray, settings: ClipTrainSettings, rng: np.random.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Compute the loss of one batch.

    Args:
        clip: open_clip's ``CLIP``.
        data: the captioned pictures.
        rows: pictures of the batch, int (B,).
        settings: weights and sizes.
        rng: draws captions, resolution and augmentation.

    Returns:
        The loss to differentiate, and the parts as numbers for the log (detached tensors, not yet read).
    """
    choice = rng.integers(data.token_ids.shape[1], size=len(rows))
    token_ids = torch.from_numpy(data.token_ids[rows, choice]).long()
    nouns = torch.from_numpy(data.nouns[rows, choice])
    pixels = prepare_pixels(np.asarray(data.images[rows]), int(rng.choice(settings.resolutions)), rng)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
        image, patches = encode_pictures(clip.visual, pixels, max_tokens=settings.max_tokens)
        text = encode_tokens(clip, torch.cat([token_ids, torch.from_numpy(data.noun_ids).long()]))
    text = F.normalize(text.float(), dim=-1)
    image, patches = F.normalize(image.float(), dim=-1), F.normalize(patches.float(), dim=-1)
    captions, names = text[: len(rows)], text[len(rows) :]
    shown = None if data.shown is None else torch.from_numpy(data.shown[rows])
    has_background = None if data.has_background is None else torch.from_numpy(data.has_background[rows])
    contrast = contrastive_loss(image, captions, clip.logit_scale.exp(), *caption_relations(nouns, shown))
    naming = patch_naming_loss(patches, names, nouns if shown is None else shown, has_background=has_background)
    return contrast + settings.patch_loss_weight * naming, {"contrast": contrast.detach(), "naming": naming.detach()}


def train_clip(
    clip: nn.Module,
    data: CaptionedPictures,
    settings: ClipTrainSettings,
    *,
    start_step: int = 0,
    optimiser_state: dict | None = None,
    on_log: Callable[[int, dict[str, float]], None] | None = None,
    on_checkpoint: Callable[[int, dict], None] | None = None,
    log_steps: int = 100,
    checkpoint_steps: int = 1000,
) -> None:
    """Train in place; a restarted run draws the same batches, since a batch is a function of (seed, step).

    Args:
        clip: open_clip's ``CLIP``; its weights are changed.
        data: the captioned pictures.
        settings: sizes, rates, number of steps.
        start_step: steps already done.
        optimiser_state: state to go on from.
        on_log: receives (step, numbers) every ``log_steps``.
        on_checkpoint: receives (step, optimiser state) every ``checkpoint_steps`` and at the end.
        log_steps: steps between log lines.
        checkpoint_steps: steps between checkpoints.
    """
    optimiser = _optimiser(clip, settings)
    if optimiser_state is not None:
        optimiser.load_state_dict(optimiser_state)
    started = time.monotonic()
    clip.train()
    for step in range(start_step, settings.num_steps):
        rng = np.random.default_rng([settings.seed, step])
        torch.manual_seed(settings.seed * 1_000_003 + step)
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, settings)
        rows = np.sort(rng.choice(len(data.images), settings.batch_size, replace=False))
        loss, parts = batch_loss(clip, data, rng.permutation(rows), settings, rng)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=math.log(100))
        done = step + 1
        if on_log is not None and (done % log_steps == 0 or done == settings.num_steps):
            numbers = {name: round(float(value), 4) for name, value in parts.items()}
            on_log(done, numbers | {"seconds": round(time.monotonic() - started, 1)})
        if on_checkpoint is not None and (done % checkpoint_steps == 0 or done == settings.num_steps):
            on_checkpoint(done, optimiser.state_dict())
    _logger.info("CLIP trained: %d steps of %d pictures", settings.num_steps - start_step, settings.batch_size)


def cut_tokens(token_ids: Sequence[Sequence[int]] | Tensor, length: int) -> np.ndarray:
    """Cut zero-padded token rows to a common length.

    Args:
        token_ids: (N, L) with zeros after the end-of-text token.
        length: columns to keep.

    Returns:
        int32 (N, length).

    Raises:
        ValueError: if a row is longer than ``length``.
    """
    array = np.asarray(token_ids, dtype=np.int32)
    if array[:, length:].any():
        raise ValueError(f"a caption has more than {length} tokens; raise the length or shorten the caption")
    return array[:, :length].copy()
