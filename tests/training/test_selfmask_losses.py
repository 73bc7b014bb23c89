import pytest
import torch
from torch.nn.functional import interpolate

from training.selfmask_losses import dice_losses, ranking_loss, selfmask_criterion


def inputs(seed: int = 0, batch: int = 3, layers: int = 2, queries: int = 4):
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(batch, layers, queries, 5, 6, generator=generator)
    objectness = torch.rand(batch, layers, queries, generator=generator)
    masks = torch.rand(batch, 19, 26, generator=generator) > 0.6
    return probs, objectness, masks


def plain_loss(probs, objectness, masks, sign=1.0, weight_dice=1.0, weight_ranking=1.0):
    """The loss by its formulas, upsampling everything, one image, layer and pair at a time."""
    total = torch.zeros(())
    for image_probs, scores, mask in zip(probs, objectness, masks, strict=True):
        if not mask.any():
            continue
        big = interpolate(image_probs, size=mask.shape, mode="bilinear", align_corners=False)
        for layer in range(len(big)):
            g = mask.float()
            dice = torch.stack([1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1) for p in big[layer]])
            total = total + weight_dice * dice.sum()
            ordered = scores[layer][dice.argsort(descending=True)]
            for i in range(len(ordered)):
                for j in range(i + 1, len(ordered)):
                    total = total + weight_ranking * (sign * (ordered[j] - ordered[i])).clamp(min=0)
    return total / len(masks)


@pytest.mark.parametrize("sign", ["released", "corrected"])
def test_loss_and_gradients_equal_the_formula(sign):
    probs, objectness, masks = inputs()
    masks[1] = False
    leaves = [[tensor.clone().requires_grad_() for tensor in (probs, objectness)] for _ in range(2)]
    ours = selfmask_criterion(*leaves[0], masks, weight_dice=0.7, weight_ranking=1.3, ranking_sign=sign).loss
    plain = plain_loss(*leaves[1], masks, 1.0 if sign == "released" else -1.0, 0.7, 1.3)
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    ours.backward()
    plain.backward()
    for mine, theirs in zip(*leaves, strict=True):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


@pytest.mark.parametrize("size", [(5, 6), (4, 3), (40, 7)])
def test_dice_sums_without_upsampling(size):
    probs, _, _ = inputs()
    masks = (torch.rand(3, *size, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    big = interpolate(probs.flatten(0, 1), size=size, mode="bilinear", align_corners=False).unflatten(0, (3, 2))
    g = masks[:, None, None]
    expected = 1 - (2 * (big * g).sum((-1, -2)) + 1) / (big.sum((-1, -2)) + g.sum((-1, -2)) + 1)
    assert torch.allclose(dice_losses(probs, masks), expected, atol=1e-6)


def test_ranking_signs():
    dice = torch.tensor([[[0.2, 0.8]]])  # the first query is the better mask
    trusts_better, trusts_worse = torch.tensor([[[0.9, 0.1]]]), torch.tensor([[[0.1, 0.9]]])
    assert float(ranking_loss(trusts_better, dice)) == pytest.approx(0.8)
    assert float(ranking_loss(trusts_worse, dice)) == 0
    assert float(ranking_loss(trusts_better, dice, sign="corrected")) == 0
    assert float(ranking_loss(trusts_worse, dice, sign="corrected")) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="'released' or 'corrected', received 'both'"):
        ranking_loss(trusts_better, dice, sign="both")


def test_images_are_independent_of_their_order():
    probs, objectness, masks = inputs()
    whole = selfmask_criterion(probs, objectness, masks)
    order = [2, 0, 1]
    turned = selfmask_criterion(probs[order], objectness[order], masks[order])
    assert torch.allclose(whole.loss, turned.loss)
    assert torch.equal(whole.best_queries[order], turned.best_queries)
    single = [selfmask_criterion(probs[i : i + 1], objectness[i : i + 1], masks[i : i + 1]).loss for i in range(3)]
    assert torch.allclose(whole.loss, torch.stack(single).mean())


def test_best_query_and_iou():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, 2:6, 2:6] = True
    probs = torch.full((2, 1, 3, 8, 8), 0.1)
    probs[0, 0, 1] = masks[0].float()
    losses = selfmask_criterion(probs, torch.rand(2, 1, 3), masks)
    assert losses.best_queries.tolist() == [1, -1]
    assert float(losses.iou) == pytest.approx(1.0, abs=1e-6)


def test_a_batch_without_objects_costs_nothing():
    probs, objectness, masks = inputs()
    probs.requires_grad_()
    losses = selfmask_criterion(probs, objectness, torch.zeros_like(masks))
    losses.loss.backward()
    assert float(losses.loss.detach()) == 0
    assert not probs.grad.any()
    assert [float(value) for value in (losses.dice, losses.ranking, losses.iou)] == [0, 0, 0]
    assert losses.best_queries.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_at_the_ends(value):
    _, objectness, masks = inputs()
    probs = torch.full((3, 2, 4, 5, 6), value, requires_grad=True)
    objectness = torch.full_like(objectness, value).requires_grad_()
    selfmask_criterion(probs, objectness, masks).loss.backward()
    assert torch.isfinite(probs.grad).all()
    assert torch.isfinite(objectness.grad).all()


def test_refuses_shapes_that_do_not_belong_together():
    probs, objectness, masks = inputs()
    for wrong in ((probs, objectness, masks[:2]), (probs, objectness[:, :1], masks), (probs[0], objectness, masks)):
        with pytest.raises(
            ValueError, match=r"expected mask_probs \(B, L, Q, h, w\), objectness \(B, L, Q\) and masks"
        ):
            selfmask_criterion(*wrong)
