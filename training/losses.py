"""The ZUTIS criterion: mask loss of matched proposals and cross-entropy of patch tokens.

Both losses compute their gradient in the forward pass, a piece at a time, so that nothing of the pictures' full
resolution stays in memory. Next: ``matcher.py`` (who is matched), ``networks/zutis.py`` (the outputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from networks.interpolation import bilinear_matrix, resize, resize_adjoint, source_cells
from training.matcher import Match, match_masks
from utils.errors import DataError

CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 26}


class CriterionOutput(NamedTuple):
    """Losses of a batch.

    Attributes:
        loss: mask loss + weight · cross-entropy, scalar with graph.
        mask_loss: scalar, detached.
        ce_loss: unweighted, scalar, detached.
        matches: per picture one match per decoder layer; empty for pictures without objects.
    """

    loss: Tensor
    mask_loss: Tensor
    ce_loss: Tensor
    matches: list[list[Match]]

    @property
    def last_match(self) -> Match | None:
        """The match of the last decoder layer in the last picture with objects, for drawings."""
        return next((layers[-1] for layers in reversed(self.matches) if layers), None)


def zutis_criterion(
    mask_proposals: Tensor,
    patch_tokens: Tensor,
    text: Tensor,
    instance_masks: Sequence[Tensor],
    semantic: Tensor,
    *,
    ignore_index: int,
    weight_ce: float = 1.0,
    num_pixels: Tensor | None = None,
) -> CriterionOutput:
    """Compute the training loss.

    Args:
        mask_proposals: probabilities, (B, L, Q, h, w) or (B, Q, h, w).
        patch_tokens: unit vectors, (B, h, w, D).
        text: unit text embeddings, (N, D).
        instance_masks: per picture (n, H, W), bool; n may be 0 and masks may be empty.
        semantic: labels, (B, H, W), any integer type.
        ignore_index: label without cross-entropy; for the mask loss such pixels are background.
        weight_ce: weight of the cross-entropy.
        num_pixels: one number: what the cross-entropy's sum is divided by, where this batch is a part of a larger one
            (its mean number of non-ignored pixels per part); None: this batch's own number of non-ignored pixels.

    Returns:
        Losses and matches. A batch without any object has mask loss 0.

    Raises:
        DataError: if the numbers of pictures or their sizes differ.
        UserError: if the mask proposals hold NaN.

    Source: ZUTIS, section 3.3. Kept for released weights: objects hidden completely are matched too, queries without
    an object have no loss, and the mask loss is summed over layers and objects but averaged over pictures.
    """
    if mask_proposals.ndim == 4:
        mask_proposals = mask_proposals[:, None]
    _check_batch(mask_proposals, patch_tokens, instance_masks, semantic)
    with torch.autocast(mask_proposals.device.type, enabled=False):
        matches = match_masks(mask_proposals.detach(), instance_masks)
        mask_loss = matched_mask_loss(mask_proposals.float(), instance_masks, matches)
        logits = patch_tokens.float() @ text.float().T  # (B, h, w, N)
        ce_loss = resized_cross_entropy(logits, semantic, ignore_index, num_pixels)
        loss = mask_loss + weight_ce * ce_loss
    return CriterionOutput(loss, mask_loss.detach(), ce_loss.detach(), matches)


def matched_mask_loss(
    mask_proposals: Tensor, instance_masks: Sequence[Tensor], matches: Sequence[Sequence[Match]]
) -> Tensor:
    """Dice and binary cross-entropy of matched pairs: summed over layers and objects, averaged over pictures.

    Args:
        mask_proposals: probabilities, (B, L, Q, h, w), float32.
        instance_masks: per picture (n, H, W), bool.
        matches: per picture L matches, or none.

    Returns:
        Scalar; 0 (with graph) if nothing is matched.
    """
    losses = []
    for proposals, masks, layers in zip(mask_proposals, instance_masks, matches, strict=True):
        if not layers:
            continue
        rows = [(layer, query, row) for layer, match in enumerate(layers) for row, query in zip(*match, strict=True)]
        layer, query, row = torch.tensor(rows, device=proposals.device).unbind(1)
        chosen = proposals[layer, query]  # (K, h, w), K = L·n
        targets = resize_adjoint(masks.float(), chosen.shape[-2:])
        weights = resize_adjoint(torch.ones_like(masks[:1], dtype=torch.float32), chosen.shape[-2:])
        overlap = (chosen * targets[row]).sum(dim=(1, 2))
        total = (chosen * weights).sum(dim=(1, 2)) + masks.flatten(1).sum(dim=1)[row]
        dice = 1 - (2 * overlap + 1) / (total + 1)
        losses.append(dice.sum() + _ResizedBce.apply(chosen, masks, row))
    if not losses:
        return 0.0 * mask_proposals.sum()
    return torch.stack(losses).sum() / len(mask_proposals)


class _ResizedBce(torch.autograd.Function):
    """Σ over pairs of the mean binary cross-entropy between a resized proposal and its object.

    The gradient is that of the library's loss, finite at probabilities of exactly 0 and 1.
    """

    @staticmethod
    def forward(ctx: Any, proposals: Tensor, masks: Tensor, rows: Tensor) -> Tensor:
        """Proposals (K, h, w), masks (n, H, W), row of every proposal's mask (K) -> scalar."""
        size = tuple(masks.shape[1:])
        num_pixels = size[0] * size[1]
        gradient = torch.empty_like(proposals) if ctx.needs_input_grad[0] else None
        total = proposals.new_zeros((), dtype=torch.float64)
        group = max(_chunk_elements(proposals) // num_pixels, 1)
        for start in range(0, len(proposals), group):
            part = slice(start, start + group)
            with torch.enable_grad():
                small = proposals[part].detach().requires_grad_()
                resized = resize(small, size)
                # Mixtures of ones may be 1 + rounding. Gradients at exact 0 and 1 are so large that they have to go
                # back through the very weights of the resize: those of a matrix differ by rounding.
                p = resized.detach().clamp_(0, 1).requires_grad_()
                loss = F.binary_cross_entropy(p, masks[rows[part]].float(), reduction="none").sum(dim=(1, 2)).sum()
                if gradient is not None:
                    (slope,) = torch.autograd.grad(loss, p)
                    (gradient[part],) = torch.autograd.grad(resized, small, slope)
            total += loss.detach().double()
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(num_pixels))
        return (total / num_pixels).to(proposals.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient that the forward pass kept."""
        return ctx.saved_tensors[0] * grad_output, None, None


def resized_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, num_pixels: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of logits resized bilinearly to the labels' size (align_corners false).

    Args:
        logits: (B, h, w, N), float32.
        labels: (B, H, W), any integer type, values below N or ``ignore_index``.
        ignore_index: label that is left out.
        num_pixels: one number to divide the sum by; None: the number of pixels that are not left out.

    Returns:
        Scalar mean over all other pixels of the batch; 0 if there is none.

    Raises:
        DataError: if there is a label outside 0 … N − 1.
    """
    labels = labels.long()
    valid = labels != ignore_index
    wrong = valid & ((labels < 0) | (labels >= logits.shape[-1]))
    if num_wrong := int(wrong.sum()):
        raise DataError(
            f"{num_wrong} pixels have labels outside 0 ... {logits.shape[-1] - 1} that are not the ignore index "
            f"({ignore_index}); check the categories and 'ignore_index' of the configuration against the labels"
        )
    divisor = (valid.sum() if num_pixels is None else num_pixels.reshape(())).clamp(min=1)
    return _ResizedCrossEntropy.apply(logits, labels.where(valid, 0), valid, divisor)


class _ResizedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of resized logits, computed row block by row block together with its gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, valid: Tensor, num_pixels: Tensor) -> Tensor:
        """Logits (B, h, w, N), labels (B, H, W) in range, which count (B, H, W), divisor () -> scalar."""
        (_, h, w, num_categories), (height, width) = logits.shape, labels.shape[1:]
        rows = bilinear_matrix(h, height).to(logits)
        columns = bilinear_matrix(w, width).to(logits)
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        total = logits.new_zeros((), dtype=torch.float64)
        block, cells = max(_chunk_elements(logits) // (width * num_categories), 1), source_cells(h, height)
        for index, image in enumerate(logits):
            wide = (columns @ image).flatten(1)  # (h, w, N) -> (h, W·N)
            wide_gradient = torch.zeros_like(wide) if gradient is not None else None
            for start in range(0, height, block):
                part = slice(start, min(start + block, height))
                # With many categories a block is a few rows of pixels, which need a few rows of cells.
                band = slice(cells[part.start][0], cells[part.stop - 1][1] + 1)
                z = (rows[part, band] @ wide[band]).view(-1, num_categories)  # (rows·W, N)
                target, counts = labels[index, part].reshape(-1, 1), valid[index, part].reshape(-1, 1)
                losses, slope = _cross_entropy(z, target)
                total += losses.mul_(counts).double().sum()
                if wide_gradient is not None:
                    slope.mul_(counts)
                    wide_gradient[band].addmm_(rows[part, band].T, slope.view(-1, width * num_categories))
            if gradient is not None and wide_gradient is not None:
                gradient[index] = columns.T @ wide_gradient.view(h, width, num_categories)
        if gradient is not None:
            ctx.save_for_backward(gradient.div_(num_pixels))
        return (total / num_pixels).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        """Scale the gradient that the forward pass kept."""
        return ctx.saved_tensors[0] * grad_output, None, None, None


def _cross_entropy(z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of logits (P, N) with classes (P, 1), (P, 1), and its gradient (P, N); exponentials once."""
    top, winner = z.max(dim=1, keepdim=True)
    slope = z.softmax(dim=1)
    losses = top - slope.gather(1, winner).log_() - z.gather(1, target)  # the winner's share is at least 1 / N
    return losses, slope.scatter_add_(1, target, slope.new_full((), -1.0).expand(target.shape))


def _chunk_elements(x: Tensor) -> int:
    return CHUNK_ELEMENTS["cuda" if x.is_cuda else "cpu"]


def _check_batch(
    mask_proposals: Tensor, patch_tokens: Tensor, instance_masks: Sequence[Tensor], semantic: Tensor
) -> None:
    """DataError unless all parts of a batch describe the same number of pictures of one size."""
    numbers = {
        "mask proposals": len(mask_proposals),
        "patch tokens": len(patch_tokens),
        "instance masks": len(instance_masks),
        "semantic labels": len(semantic),
    }
    if len(set(numbers.values())) > 1:
        found = ", ".join(f"{number} {name}" for name, number in numbers.items())
        raise DataError(f"expected the same number of pictures everywhere in a batch, received {found}")
    for index, masks in enumerate(instance_masks):
        if masks.ndim != 3 or masks.shape[1:] != semantic.shape[1:]:
            raise DataError(
                f"instance masks of picture {index} have shape {tuple(masks.shape)}, expected (objects, "
                f"{semantic.shape[1]}, {semantic.shape[2]}) as the semantic labels"
            )
