"""Dense CLIP towers: the value path of both kinds, their colours, sizes, and text attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import make_scene
from networks.clip import clip_from_state_dict, load_clip, wrap_open_clip
from networks.clip_encoder import encoder_from_visual
from networks.cosine_maps import cosine_maps, text_attention
from networks.dense_clip import DenseClipResNet, DenseClipVit, dense_clip, text_vectors
from networks.interpolation import resize
from tests.networks.tiny_clips import RESNET, VIT, tiny_clip, tiny_gelu_clip
from utils.errors import UserError
from utils.normalisation import normalise_images

MODELS = Path(__file__).parents[2] / "world_models"
PICTURES = torch.randint(0, 256, (3, 3, 70, 97), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.no_grad()
def test_resnet_cells_are_values_of_the_attention_pool() -> None:
    clip, images = tiny_clip(RESNET), normalise_images(PICTURES)
    tower, visual = dense_clip(clip), clip.visual
    cells = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    expected = visual.attnpool.c_proj(visual.attnpool.v_proj(cells.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
    assert isinstance(tower, DenseClipResNet)
    assert torch.allclose(tower(images), expected, atol=1e-5)
    assert expected.shape == (3, 32, 2, 3)


@pytest.mark.parametrize(("side", "cells"), [(31, 1), (32, 1), (62, 1), (63, 2), (64, 2), (95, 3), (97, 3)])
@torch.no_grad()
def test_resnet_halvings_round_down_but_the_first(side: int, cells: int) -> None:
    tower = dense_clip(tiny_clip(RESNET))
    assert tower(torch.zeros(1, 3, side, 31)).shape == (1, 32, cells, 1)
    assert tower.min_size == 31


@torch.no_grad()
def test_transformer_keeps_the_values_of_its_last_block() -> None:
    clip = tiny_clip(VIT)
    tower, encoder = dense_clip(clip), encoder_from_visual(clip.visual)
    mean, std = (torch.tensor(v)[:, None, None] for v in (clip.preprocess.mean, clip.preprocess.std))
    tokens, grid = encoder.embed((PICTURES / 255 - mean) / std)
    first, last = clip.visual.transformer.resblocks  # open_clip's own blocks
    tokens = last.ln_1(first(tokens)[:, 1:])
    # with one token to attend to, attention is that token's value
    alone = torch.cat([last.attn(*[token[:, None]] * 3)[0] for token in tokens.unbind(1)], dim=1)
    tokens = clip.visual.ln_post(alone) @ clip.visual.proj
    features = tower(normalise_images(PICTURES))
    assert isinstance(tower, DenseClipVit)
    assert grid == (8, 12)
    assert torch.allclose(features, tokens.transpose(1, 2).unflatten(2, grid), atol=1e-4)


@pytest.mark.parametrize("dimensions", [VIT, RESNET])
@torch.no_grad()
def test_batched_is_single(dimensions) -> None:
    tower, images = dense_clip(tiny_clip(dimensions)), normalise_images(PICTURES)
    assert torch.allclose(tower(images), torch.cat([tower(image[None]) for image in images]), atol=1e-5)


@torch.no_grad()
def test_resnet_sees_the_colours_it_is_given_and_half_weights_are_widened() -> None:
    clip = tiny_clip(RESNET)
    half = {
        name: value.half() if value.is_floating_point() else value for name, value in clip.model.state_dict().items()
    }
    images = normalise_images(PICTURES)
    wide = {name: value.float() if value.is_floating_point() else value for name, value in half.items()}
    towers = [dense_clip(clip_from_state_dict(state, towers=("image",))) for state in (half, wide)]
    features = [tower(images) for tower in towers]
    assert features[0].dtype == torch.float32
    assert torch.equal(*features)
    recoloured = (PICTURES / 255 - 0.45) / 0.27
    assert not torch.allclose(towers[0](recoloured), features[0], atol=1e-3)


@torch.no_grad()
def test_any_plain_transformer_of_open_clip() -> None:
    tower = dense_clip(wrap_open_clip(tiny_gelu_clip(), lambda texts: torch.zeros(len(texts), 16)))
    assert tower(normalise_images(PICTURES)).shape == (3, 24, 8, 12)
    pooled = wrap_open_clip(tiny_gelu_clip(attentional_pool=True, attn_pooler_heads=2), lambda texts: None)
    with pytest.raises(UserError, match="pools with attention"):
        dense_clip(pooled)


@torch.no_grad()
def test_the_shipped_clip_finds_things_where_they_are() -> None:
    clip = load_clip(MODELS / "clip.pt")
    names = ["background", *CATEGORY_NAMES]
    tower, text = dense_clip(clip), text_vectors(clip, names, ["{}"])
    hits = []
    for number in range(8):
        scene = make_scene("scene", number)
        labels = torch.from_numpy(scene.category_map.astype(np.int64))
        features = tower(normalise_images(torch.from_numpy(scene.image).permute(2, 0, 1))[None])
        found = resize(cosine_maps(features, text), labels.shape)[0].argmax(dim=0)
        hits.append((found == labels)[labels > 0].float().mean())
    assert torch.stack(hits).mean() > 0.4  # by chance 1 / 15


def test_attention_is_a_sigmoid_of_cosines_taken_before_the_resize() -> None:
    generator = torch.Generator().manual_seed(1)
    features, text = torch.randn(2, 8, 3, 2, generator=generator), torch.randn(4, 8, generator=generator)
    text = F.normalize(text, dim=-1)
    expected = (5.0 * F.cosine_similarity(features[:, None], text[None, :, :, None, None], dim=2)).sigmoid()
    attention = text_attention(features, text, temperature=5.0)
    assert torch.allclose(attention, expected, atol=1e-6)
    resized = text_attention(features, text, (7, 5), temperature=5.0)
    assert torch.allclose(resized, F.interpolate(expected, (7, 5), mode="bilinear"), atol=1e-6)
    single = text_attention(features, text[1], (7, 5), temperature=5.0)
    assert torch.allclose(single, resized[:, 1], atol=1e-6)


def test_cosines_of_an_empty_feature_are_zero_and_widths_must_agree() -> None:
    assert torch.equal(cosine_maps(torch.zeros(1, 4, 2, 2), torch.ones(3, 4)), torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match=r"features \(1, 4, 2, 2\) and vectors \(3, 5\) differ in D"):
        cosine_maps(torch.zeros(1, 4, 2, 2), torch.ones(3, 5))


def test_text_vectors_have_unit_length_with_one_prompt_too() -> None:
    clip = tiny_clip()
    for templates in (["{}"], ["a {}.", "the {}."]):
        assert torch.allclose(text_vectors(clip, ["sky", "tree"], templates).norm(dim=-1), torch.ones(2), atol=1e-6)
