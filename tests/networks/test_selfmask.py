"""SelfMask, its vision transformer and the dilated ResNet: properties that hold for any weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from networks.resnet import DilatedResNet, dilated_resnet_from_state_dict
from networks.selfmask import SelfMask, selfmask_from_state_dict
from networks.vit import VisionTransformer, pad_to_multiple, resize_position_table, vit_from_state_dict
from tests.pseudo_labels.tiny_selfmask import tiny_selfmask
from utils.errors import WeightsError


def test_published_network_has_the_published_names_and_size():
    with torch.device("meta"):
        state = SelfMask().state_dict()
    assert len(state) == 267
    assert sum(value.numel() for value in state.values()) == 36_174_337
    assert state["query_embed"].shape == (20, 384)
    assert state["encoder.pos_embed"].shape == (1, 785, 384)
    assert state["ffn.layers.2.weight"].shape == (1, 384)
    assert state["decoder.layers.5.multihead_attn.in_proj_weight"].shape == (1152, 384)


@pytest.mark.parametrize(("patch_size", "width", "num_queries"), [(8, 64, 5), (4, 128, 3), (16, 192, 20)])
def test_dimensions_are_read_off_the_weights(patch_size: int, width: int, num_queries: int):
    network = tiny_selfmask(patch_size, num_queries, width)
    again = selfmask_from_state_dict(network.state_dict())
    images = torch.randn(1, 3, 40, 56)
    assert again.patch_size == patch_size
    assert again.encoder.blocks[0].attn.num_heads == width // 64
    assert not again.training
    with torch.inference_mode():
        torch.testing.assert_close(again.predict(images).probability, network.predict(images).probability)


@torch.inference_mode()
def test_a_batch_gives_what_single_pictures_give():
    network, images = tiny_selfmask(), torch.randn(3, 3, 45, 70)
    together = network.predict(images)
    for number in range(3):
        alone = network.predict(images[number : number + 1])
        assert together.query[number] == alone.query[0]
        torch.testing.assert_close(together.probability[number], alone.probability[0], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_predict_is_the_best_query_of_the_last_layer_of_forward():
    network, images = tiny_selfmask(), torch.randn(2, 3, 45, 70)
    output = network(images)
    assert output.mask_pred.shape == (2, 2, 5, 12, 18)
    assert output.objectness.shape == (2, 2, 5, 1)
    best = output.objectness[:, -1, :, 0].argmax(1)
    masks = F.interpolate(output.mask_pred[:, -1], scale_factor=4, mode="bilinear", align_corners=False)
    expected = torch.stack([masks[i, best[i], :45, :70] for i in range(2)])
    prediction = network.predict(images)
    assert torch.equal(prediction.query, best)
    torch.testing.assert_close(prediction.probability, expected, atol=1e-5, rtol=0)
    assert torch.equal(prediction.mask, prediction.probability > 0.5)


@torch.inference_mode()
def test_products_before_enlarging_equal_the_published_order():
    network, images = tiny_selfmask(), torch.randn(1, 3, 32, 40)
    tokens = network.encode(images)
    queries = network.decode(tokens)
    features = tokens[:, 1:].transpose(1, 2).unflatten(2, (4, 5))
    features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
    published = torch.einsum("bqd,bdhw->bqhw", queries, features).sigmoid()
    torch.testing.assert_close(network.mask_probabilities(queries, tokens, (4, 5)), published, atol=1e-5, rtol=0)


def test_every_weight_learns_from_all_layers():
    network = tiny_selfmask().train()
    output = network(torch.randn(2, 3, 32, 40))
    (output.mask_pred.sum() + output.objectness.sum()).backward()
    assert [name for name, value in network.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
@torch.inference_mode()
def test_extreme_sizes(size: tuple[int, int]):
    prediction = tiny_selfmask().predict(torch.randn(1, 3, *size))
    assert prediction.mask.shape == (1, *size)
    assert prediction.probability.isfinite().all()


def test_padding_is_right_and_bottom_with_zeros():
    padded = pad_to_multiple(torch.ones(1, 3, 9, 16), 8)
    assert padded.shape == (1, 3, 16, 16)
    assert padded[..., :9, :].min() == 1
    assert padded[..., 9:, :].max() == 0


def test_position_table_keeps_its_order_for_another_grid_of_as_many_patches():
    table = torch.randn(1, 17, 8)
    assert torch.equal(resize_position_table(table, (2, 8)), table)
    resized = resize_position_table(table, (3, 7))
    assert resized.shape == (1, 22, 8)
    assert torch.equal(resized[:, 0], table[:, 0])
    expected = F.interpolate(
        table[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2), size=(3, 7), mode="bicubic", align_corners=False
    )
    torch.testing.assert_close(resized[:, 1:], expected.flatten(2).transpose(1, 2))


def test_vit_alone_loads_and_refuses_odd_sizes():
    network = VisionTransformer(width=64, num_layers=1, patch_size=4, native_grid=3)
    again = vit_from_state_dict(network.state_dict())
    images = torch.randn(1, 3, 8, 12)
    torch.testing.assert_close(again(images), network(images))
    with pytest.raises(ValueError, match="9×12 is not a positive multiple of the patch size 4"):
        again(torch.randn(1, 3, 9, 12))


def test_weights_of_another_kind_are_named():
    with pytest.raises(WeightsError, match=r"nq20\.pt: SelfMask was expected, but query_embed, .* is missing"):
        selfmask_from_state_dict({"conv1.weight": torch.zeros(1)}, source="nq20.pt")
    with pytest.raises(WeightsError, match=r"a DINO vision transformer was expected, but pos_embed"):
        vit_from_state_dict({"conv1.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"a ResNet was expected, but conv1\.weight is missing"):
        dilated_resnet_from_state_dict({"cls_token": torch.zeros(1)})
    state = tiny_selfmask().state_dict()
    del state["encoder.norm.bias"]
    with pytest.raises(WeightsError, match=r"encoder\.norm\.bias"):
        selfmask_from_state_dict(state, source="cut.pt")
    table = {**tiny_selfmask().state_dict(), "encoder.pos_embed": torch.zeros(1, 16, 64)}
    with pytest.raises(WeightsError, match="one class entry and a square grid"):
        selfmask_from_state_dict(table)


def test_dilated_resnet_reads_every_dialect_and_keeps_stride_8():
    network = DilatedResNet().eval()
    state = network.state_dict()
    assert len(state) == 318
    zero = torch.zeros(1)
    moco = {f"module.encoder_q.{name}": value for name, value in state.items()}
    moco |= {"module.encoder_q.fc.0.weight": zero, "module.encoder_k.conv1.weight": zero, "module.queue": zero}
    swav = {f"module.{name}": value for name, value in state.items()}
    swav |= {"module.projection_head.0.weight": zero, "module.prototypes.weight": zero}
    stem = {("prefix." if name.startswith(("conv1", "bn1")) else "") + name: value for name, value in state.items()}
    images = torch.randn(1, 3, 40, 33)
    with torch.inference_mode():
        expected = network(images)
        assert expected.shape == (1, 2048, 5, 5)
        for dialect in (moco, swav, stem, {name.removeprefix("module."): value for name, value in moco.items()}):
            assert torch.equal(dilated_resnet_from_state_dict(dialect)(images), expected)
