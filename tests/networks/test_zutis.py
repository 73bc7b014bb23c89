"""The segmenter: encoders, shapes, gradient routing, checkpoints, and what users are told."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from networks.clip import wrap_open_clip
from networks.clip_encoder import ClipResNetEncoder, ClipVitEncoder, encoder_from_visual, round_through_half
from networks.position import position_sine, resample_position_embedding
from networks.zutis import Zutis, zutis_from_state_dict
from tests.networks.tiny_clips import RESNET, VIT, tiny_clip, tiny_gelu_clip
from utils.errors import UserError, WeightsError


def tiny_zutis(encoder: nn.Module | None = None, **settings: object) -> Zutis:
    """A small segmenter with random weights."""
    torch.manual_seed(0)
    encoder = encoder or ClipVitEncoder(width=64, num_layers=2, patch_size=8, native_grid=4, embed_dim=24)
    return Zutis(encoder, **{"num_queries": 5, "num_decoder_layers": 3, "num_heads": 4, **settings}).eval()


def outputs(network: Zutis, images: Tensor, all_layers: bool = True) -> tuple[Tensor, Tensor]:
    """What the network finds, without gradients."""
    with torch.no_grad():
        return network(images, all_layers=all_layers)


@pytest.mark.parametrize("size", [(8, 8), (9, 31), (64, 40), (8, 100)])
def test_shapes_of_any_size(size: tuple[int, int]) -> None:
    proposals, tokens = outputs(tiny_zutis(), torch.randn(2, 3, *size))
    grid = 2 * (size[0] // 8), 2 * (size[1] // 8)
    assert proposals.shape == (2, 3, 5, *grid)
    assert tokens.shape == (2, *grid, 24)
    assert ((proposals >= 0) & (proposals <= 1)).all()
    assert torch.allclose(tokens.norm(dim=-1), torch.ones(2, *grid), atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_batch_gives_what_single_pictures_give(kind: str) -> None:
    network = tiny_zutis(encoder_from_visual(tiny_clip(RESNET if kind == "resnet" else VIT).visual))
    images = torch.randn(3, 3, 64, 96)
    together = outputs(network, images)
    for index in range(3):
        for batch, single in zip(together, outputs(network, images[index : index + 1]), strict=True):
            assert torch.allclose(batch[index : index + 1], single, atol=1e-5)


def test_trailing_pixels_that_fill_no_patch_are_not_seen() -> None:
    network, images = tiny_zutis(), torch.randn(1, 3, 30, 45)
    changed = images.clone()
    changed[:, :, 24:], changed[..., 40:] = 5.0, -5.0
    for a, b in zip(outputs(network, images), outputs(network, changed), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layers", [1, 3])
def test_evaluation_gives_the_last_layer_alone(layers: int) -> None:
    network, images = tiny_zutis(num_decoder_layers=layers, num_queries=1), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        everything, last = network.train()(images).mask_proposals, network.eval()(images).mask_proposals
    assert everything.shape[:3] == (1, layers, 1)
    assert torch.allclose(everything[:, -1:], last, atol=1e-6)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_losses_reach_their_own_parts(stop_gradient: bool) -> None:
    network, images = tiny_zutis(stop_gradient=stop_gradient).train(), torch.randn(1, 3, 32, 32)

    def reached(pick: int) -> set[str]:
        network.zero_grad()
        (network(images)[pick] ** 2 * torch.rand(1)).sum().backward()
        names = [n for n, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
        return {name.split(".")[0] for name in names}

    head = {"query_embed", "decoder", "ffn1", "ffn2"}
    assert reached(0) == (head if stop_gradient else head | {"encoder"})
    network.zero_grad(set_to_none=True)
    tokens = network(images).patch_tokens
    (tokens * torch.randn_like(tokens)).sum().backward()
    assert {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None} == {"encoder"}


def test_key_biases_get_next_to_no_gradient() -> None:
    network = tiny_zutis().train()
    proposals = network(torch.randn(1, 3, 64, 64)).mask_proposals
    (proposals * torch.randn_like(proposals)).sum().backward()
    for name, parameter in network.decoder.named_parameters():
        if name.endswith("in_proj_bias"):
            _, key, value = parameter.grad.chunk(3)
            assert key.norm() < 1e-4 * value.norm(), name


def test_groups_are_in_the_published_order_and_complete() -> None:
    network = tiny_zutis()
    groups = network.parameter_groups(1.0, 2.0)
    assert [(g["name"], g["lr"]) for g in groups] == [
        ("encoder", 1.0), ("decoder", 2.0), ("query_embed", 2.0), ("ffn1", 2.0), ("ffn2", 2.0),
    ]  # fmt: skip
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_published_layout_of_vit_b() -> None:
    with torch.device("meta"):
        encoder = ClipVitEncoder(width=768, num_layers=12, patch_size=16, native_grid=14, embed_dim=512)
        state_dict = Zutis(encoder).state_dict()
    assert len(state_dict) == 275
    assert sum(value.numel() for value in state_dict.values()) == 134_458_368
    assert tuple(state_dict["decoder.layers.5.multihead_attn.in_proj_weight"].shape) == (2304, 768)
    assert tuple(state_dict["encoder.transformer.resblocks.11.mlp.c_fc.weight"].shape) == (3072, 768)
    assert tuple(state_dict["ffn2.layers.2.weight"].shape) == (768, 256)


def test_decoder_layers_start_identical() -> None:
    layers = tiny_zutis().decoder.layers
    for name, value in layers[0].state_dict().items():
        assert torch.equal(value, layers[2].state_dict()[name]), name


@pytest.mark.parametrize("kind", ["vit", "gelu", "resnet"])
def test_a_checkpoint_and_its_settings_rebuild_the_network(kind: str) -> None:
    towers = {"vit": tiny_clip(VIT), "resnet": tiny_clip(RESNET)}
    clip = towers.get(kind) or wrap_open_clip(tiny_gelu_clip(), lambda texts: torch.zeros(len(texts), 16))
    network = Zutis.from_clip(clip, num_queries=4, num_decoder_layers=2, num_heads=4, stop_gradient=False).eval()
    again = zutis_from_state_dict(network.state_dict(), **network.settings)
    assert again.settings == network.settings
    images = torch.randn(1, 3, 64, 64)
    for a, b in zip(outputs(network, images), outputs(again, images), strict=True):
        assert torch.equal(a, b)


def test_encoder_equals_the_tower_it_came_from() -> None:
    visual = tiny_gelu_clip().visual
    with torch.no_grad():
        visual.positional_embedding.zero_()  # resampling then changes nothing
        tower = visual.transformer(visual._embeds(images := torch.randn(2, 3, 32, 32)))
        expected = visual.ln_post(tower)[:, 1:]
        found = encoder_from_visual(visual)(images)
        assert torch.allclose(found.flatten(1, 2), expected, atol=1e-5)


def test_resnet_encoder_is_the_final_stage_and_its_pool() -> None:
    visual = tiny_clip(RESNET).visual
    with torch.no_grad():
        visual.attnpool.positional_embedding.zero_()
        encoder, images = encoder_from_visual(visual).eval(), torch.randn(1, 3, 64, 64)
        tokens = encoder(images)
        expected = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
        assert torch.allclose(tokens.permute(0, 3, 1, 2), expected, atol=1e-5)
        # Of a constant map every position and the mean are alike, so each gets what the pool gives.
        constant = torch.randn(1, 1, 1, encoder.width).expand(1, 2, 2, -1)
        pooled = visual.attnpool(constant.permute(0, 3, 1, 2))
        assert torch.allclose(encoder.project(constant), pooled[:, None, None].expand(1, 2, 2, -1), atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_stays_as_it_is_while_frozen(frozen: bool) -> None:
    encoder = encoder_from_visual(tiny_clip(RESNET).visual, frozen_bn=frozen)
    network = tiny_zutis(encoder).train()
    norm, before = encoder.layer1[0].bn1, encoder.layer1[0].bn1.running_mean.clone()
    network(torch.randn(2, 3, 64, 64)).patch_tokens.square().mean().backward()
    assert norm.training is not frozen
    assert norm.weight.requires_grad is not frozen
    assert torch.equal(before, norm.running_mean) is frozen
    grouped = [p for group in network.parameter_groups() for p in group["params"]]
    assert any(p is norm.weight for p in grouped) is not frozen
    assert isinstance(network.encoder, ClipResNetEncoder)


def test_half_rounding_spares_norms_and_embeddings() -> None:
    encoder = ClipVitEncoder(width=64, num_layers=1, patch_size=8, native_grid=2, embed_dim=8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with torch.no_grad():
        encoder.ln_pre.weight.mul_(1.0001)
        before["ln_pre.weight"] = encoder.ln_pre.weight.clone()
    round_through_half(encoder)
    rounded = {n for n, value in encoder.state_dict().items() if torch.equal(value, before[n].half().float())}
    kept = {n for n, value in encoder.state_dict().items() if torch.equal(value, before[n])}
    assert {"conv1.weight", "proj", "transformer.resblocks.0.attn.in_proj_weight"} <= rounded
    assert {"ln_pre.weight", "positional_embedding", "class_embedding"} <= kept


def test_position_embeddings_describe_themselves() -> None:
    table = torch.randn(17, 6)
    assert torch.equal(resample_position_embedding(table, (3, 5))[0, 0], table[0])
    assert not torch.allclose(resample_position_embedding(table, (4, 4))[0], table, atol=1e-3)  # never the identity
    with pytest.raises(ValueError, match=r"a table with 16 rows"):
        resample_position_embedding(table[:16], (4, 4))
    sine = position_sine((3, 5), 8)
    assert sine.shape == (16, 3, 5)
    assert torch.equal(sine[:8, :, 0], sine[:8, :, 4])  # y part first
    assert torch.equal(sine[8:, 0], sine[8:, 2])


def test_wrong_inputs_are_named() -> None:
    with pytest.raises(ValueError, match=r"at least 8 x 8 pixels .* received \(1, 3, 7, 30\)"):
        tiny_zutis()(torch.randn(1, 3, 7, 30))
    with pytest.raises(ValueError, match=r"width \(64\) must be a multiple of num_heads \(5\)"):
        tiny_zutis(num_heads=5)
    with pytest.raises(UserError, match=r"its image tower pools with attention.*still be used for retrieval"):
        encoder_from_visual(tiny_gelu_clip(attentional_pool=True).visual)
    with pytest.raises(UserError, match=r"its image tower is a Linear"):
        encoder_from_visual(nn.Linear(2, 2))


def test_wrong_checkpoints_are_named() -> None:
    state_dict = tiny_zutis().state_dict()
    with pytest.raises(WeightsError, match=r"clip.pt: these are not weights of a ZUTIS segmenter.*found visual.proj"):
        zutis_from_state_dict({"visual.proj": torch.zeros(2, 2)}, source="clip.pt")
    missing = {name: value for name, value in state_dict.items() if name != "ffn1.layers.0.weight"}
    with pytest.raises(WeightsError, match=r"a.pt: the entry 'ffn1.layers.0.weight' of a ZUTIS segmenter is missing"):
        zutis_from_state_dict(missing, num_heads=4, source="a.pt")
    extra = {**state_dict, "decoder.layers.0.norm9.weight": torch.zeros(2)}
    with pytest.raises(WeightsError, match=r"norm9"):
        zutis_from_state_dict(extra, num_heads=4)


def test_autocast_gives_nearly_the_same() -> None:
    network, images = tiny_zutis().train(), torch.randn(1, 3, 32, 48)
    plain = outputs(network, images)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outputs(network, images)
    for a, b in zip(plain, mixed, strict=True):
        assert b.dtype == torch.float32
        assert torch.allclose(a, b, atol=0.15)
