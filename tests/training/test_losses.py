"""The ZUTIS criterion against a direct implementation, and at its edges."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from training import losses as losses_module
from training import matcher as matcher_module
from training.losses import resized_cross_entropy, zutis_criterion
from training.matcher import match_masks, pairwise_bce, pairwise_dice
from utils.errors import DataError, UserError

IGNORE = 255


def make_batch(
    seed: int = 0, *, objects: tuple[int, ...] = (3, 0, 5), queries: int = 7, grid: tuple[int, int] = (6, 5)
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], Tensor]:
    """Proposals with exact 0 and 1, tokens, text, instance masks (the second empty) and labels."""
    torch.manual_seed(seed)
    size, batch = (4 * grid[0] + 1, 5 * grid[1]), len(objects)
    proposals = (3 * torch.randn(batch, 2, queries, *grid)).sigmoid()
    proposals[torch.rand_like(proposals) < 0.1] = 0.0
    proposals[torch.rand_like(proposals) < 0.1] = 1.0
    tokens = F.normalize(torch.randn(batch, *grid, 8), dim=-1)
    text = F.normalize(torch.randn(4, 8), dim=-1)
    masks = [torch.rand(n, *size) > 0.6 for n in objects]
    for picture in masks:
        picture[1:2] = False  # an object that is covered completely
    semantic = torch.randint(0, 4, (batch, *size))
    semantic[:, :3] = IGNORE
    return proposals.requires_grad_(), tokens.requires_grad_(), text, masks, semantic


def direct_criterion(
    proposals: Tensor, tokens: Tensor, text: Tensor, masks: list[Tensor], semantic: Tensor, weight: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mask loss and cross-entropy with every pair at full size and autograd through the library."""
    total = proposals.sum() * 0
    for image, targets in enumerate(masks):
        if not targets.any():
            continue
        for layer in proposals[image]:
            p = F.interpolate(layer[None], size=targets.shape[1:], mode="bilinear")[0].flatten(1)[None]
            p = p + (p.clamp(0, 1) - p).detach()  # rounding takes mixtures of ones above 1
            g = targets.flatten(1).float()[:, None]
            dice = 1 - (2 * (p * g).sum(-1) + 1) / (p.sum(-1) + g.sum(-1) + 1)
            shape = (len(targets), *p.shape[1:])
            bce = F.binary_cross_entropy(p.expand(shape), g.expand(shape), reduction="none").mean(-1)
            cost = dice + bce
            total = total + cost[linear_sum_assignment(cost.detach().numpy())].sum()
    resized = F.interpolate(tokens.permute(0, 3, 1, 2), size=semantic.shape[1:], mode="bilinear")
    logits = torch.einsum("bdhw,nd->bnhw", resized, text)
    return total / len(masks), F.cross_entropy(logits, semantic, ignore_index=IGNORE)


@pytest.mark.parametrize("objects", [(3, 0, 5), (1,), (9, 2)])  # nine objects and seven queries: two stay unmatched
@pytest.mark.parametrize("chunk", [None, 50])
def test_losses_and_gradients_equal_the_direct_way(
    objects: tuple[int, ...], chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk is not None:
        monkeypatch.setattr(losses_module, "CHUNK_ELEMENTS", {"cpu": chunk})
        monkeypatch.setattr(matcher_module, "CHUNK_ELEMENTS", {"cpu": chunk})
    batch = make_batch(objects=objects)
    result = zutis_criterion(*batch, ignore_index=IGNORE, weight_ce=0.7)
    found = torch.autograd.grad(result.loss * 2, batch[:2])
    mask_loss, ce_loss = direct_criterion(*batch)
    expected = torch.autograd.grad((mask_loss + 0.7 * ce_loss) * 2, batch[:2])
    assert torch.allclose(result.mask_loss, mask_loss, rtol=1e-5)
    assert torch.allclose(result.ce_loss, ce_loss, rtol=1e-5)
    assert torch.allclose(result.loss, mask_loss + 0.7 * ce_loss, rtol=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert a.isfinite().all()
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


def test_pairwise_costs_equal_the_definition() -> None:
    proposals, _, _, masks, _ = make_batch(objects=(4,))
    layers, targets = proposals[0].detach(), masks[0]
    resized = F.interpolate(layers, size=targets.shape[1:], mode="bilinear")[None].flatten(3).clamp(0, 1)
    g = targets.flatten(1).float()[:, None, None]
    dice = 1 - (2 * (resized * g).sum(-1) + 1) / (resized.sum(-1) + g.sum(-1) + 1)
    pairs = torch.broadcast_tensors(resized, g)
    assert torch.allclose(pairwise_dice(layers, targets), dice, atol=1e-5)
    assert torch.allclose(
        pairwise_bce(layers, targets), F.binary_cross_entropy(*pairs, reduction="none").mean(-1), rtol=1e-4
    )


def test_a_batch_is_the_mean_of_its_pictures_for_the_mask_loss() -> None:
    batch = make_batch(objects=(3, 2))
    together = zutis_criterion(*batch, ignore_index=IGNORE)
    singles = [
        zutis_criterion(
            *(part[i : i + 1] if index != 2 else part for index, part in enumerate(batch)), ignore_index=IGNORE
        )
        for i in range(2)
    ]
    assert torch.allclose(together.mask_loss, (singles[0].mask_loss + singles[1].mask_loss) / 2, rtol=1e-5)


def test_proposals_without_layer_axis_are_one_layer() -> None:
    proposals, *rest = make_batch()
    flat = zutis_criterion(proposals[:, 0], *rest, ignore_index=IGNORE)
    layered = zutis_criterion(proposals[:, :1], *rest, ignore_index=IGNORE)
    assert torch.equal(flat.loss, layered.loss)
    assert [len(layers) for layers in flat.matches] == [1, 0, 1]


def test_matches_name_distinct_queries_and_the_last_picture_with_objects() -> None:
    batch = make_batch(objects=(9, 4, 0))
    result = zutis_criterion(*batch, ignore_index=IGNORE)
    assert [len(match.queries) for match in result.matches[0]] == [7, 7]
    assert result.matches[2] == []
    assert result.last_match is result.matches[1][-1]
    assert result.last_match.instances.tolist() == [0, 1, 2, 3]
    assert len(set(result.last_match.queries.tolist())) == 4


@pytest.mark.parametrize("objects", [(0, 0), (2, 1)])
def test_a_batch_without_any_object_has_mask_loss_zero_with_a_graph(objects: tuple[int, ...]) -> None:
    proposals, tokens, text, masks, semantic = make_batch(objects=objects)
    masks = [torch.zeros_like(picture) for picture in masks]
    result = zutis_criterion(proposals, tokens, text, masks, semantic, ignore_index=IGNORE)
    result.loss.backward()
    assert result.mask_loss == 0
    assert result.last_match is None
    assert (proposals.grad == 0).all()
    assert tokens.grad.abs().sum() > 0


def test_one_query_one_cell_one_pixel() -> None:
    proposals = torch.tensor([0.3]).view(1, 1, 1, 1, 1).requires_grad_()
    masks, semantic = [torch.ones(1, 1, 1, dtype=torch.bool)], torch.zeros(1, 1, 1, dtype=torch.int64)
    result = zutis_criterion(proposals, torch.ones(1, 1, 1, 1), torch.ones(1, 1), masks, semantic, ignore_index=IGNORE)
    expected = 1 - 1.6 / 2.3 - torch.tensor(0.3).log()
    assert torch.allclose(result.mask_loss, expected)
    assert result.ce_loss == 0


def test_everything_ignored_costs_nothing() -> None:
    logits = torch.randn(1, 3, 3, 2, requires_grad=True)
    loss = resized_cross_entropy(logits, torch.full((1, 6, 6), IGNORE), IGNORE)
    loss.backward()
    assert loss == 0
    assert (logits.grad == 0).all()


def test_half_precision_outputs_are_accepted() -> None:
    proposals, tokens, *rest = make_batch()
    with torch.autocast("cpu", torch.bfloat16):
        result = zutis_criterion(proposals.bfloat16(), tokens.bfloat16(), *rest, ignore_index=IGNORE)
    assert result.loss.dtype == torch.float32
    rounded = proposals.bfloat16().float(), tokens.bfloat16().float()
    assert torch.allclose(result.loss, zutis_criterion(*rounded, *rest, ignore_index=IGNORE).loss, rtol=1e-5)


def test_without_gradients_nothing_is_kept() -> None:
    batch = make_batch()
    with torch.no_grad():
        result = zutis_criterion(*batch, ignore_index=IGNORE)
    assert not result.loss.requires_grad
    assert torch.allclose(result.loss, zutis_criterion(*batch, ignore_index=IGNORE).loss.detach())


def test_wrong_batches_are_named() -> None:
    proposals, tokens, text, masks, semantic = make_batch()
    with pytest.raises(DataError, match="3 mask proposals, 3 patch tokens, 2 instance masks, 3 semantic labels"):
        zutis_criterion(proposals, tokens, text, masks[:2], semantic, ignore_index=IGNORE)
    with pytest.raises(
        DataError, match=r"instance masks of picture 0 have shape \(3, 25, 24\), expected \(objects, 25, 25\)"
    ):
        zutis_criterion(proposals, tokens, text, [m[..., 1:] for m in masks], semantic, ignore_index=IGNORE)
    with pytest.raises(DataError, match=r"225 pixels have labels outside 0 ... 3 that are not the ignore index \(9\)"):
        zutis_criterion(proposals, tokens, text, masks, semantic, ignore_index=9)
    with pytest.raises(UserError, match="the mask proposals hold NaN, so the training has diverged"):
        match_masks(torch.full_like(proposals, torch.nan), masks)
