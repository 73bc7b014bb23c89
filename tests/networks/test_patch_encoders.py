"""Image encoders of ReCo: files of every kind, what happens at the borders, and what users are told."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional as F
from torchvision.models import resnet50

from networks.dense_clip import dense_clip
from networks.patch_encoders import DEIT_SIN, encoder_from_state_dict, load_encoder
from networks.selfmask import SelfMask
from networks.vit import VisionTransformer, resize_position_table
from tests.networks.tiny_clips import RESNET, VIT, tiny_clip
from utils.errors import ConfigError, UserError, WeightsError
from utils.normalisation import normalise_images

MODELS = Path(__file__).parents[2] / "world_models"
IMAGES = torch.randn(2, 3, 37, 52, generator=torch.Generator().manual_seed(0))
TINY = {"width": 64, "num_layers": 2, "patch_size": 8, "native_grid": 4}


def vit(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(**{**TINY, **options}).eval()


def with_heads(network: VisionTransformer) -> dict[str, torch.Tensor]:
    heads = {f"{head}.{name}": torch.zeros(5, 64) for head in ("head", "head_dist") for name in ("weight", "bias")}
    return network.state_dict() | heads


@torch.no_grad()
def test_distilled_deit_sees_whole_patches_and_drops_both_extra_tokens() -> None:
    network = vit(distilled=True)
    encoder = encoder_from_state_dict(with_heads(network))
    expected = network(IMAGES[..., :32, :48])[:, 2:].transpose(1, 2).reshape(2, 64, 4, 6)
    assert torch.equal(encoder(IMAGES), expected)
    assert (encoder.patch_size, encoder.width, encoder.min_size) == (8, 64, 8)
    assert torch.allclose(encoder(IMAGES), torch.cat([encoder(image[None]) for image in IMAGES]), atol=1e-5)
    assert encoder(IMAGES[..., :8, :9]).shape == (2, 64, 1, 1)
    with pytest.raises(ValueError, match="pictures of 7×52 pixels are too small, at least 8 are needed"):
        encoder(IMAGES[..., :7, :])


def test_position_table_with_two_extra_entries() -> None:
    table = torch.randn(1, 18, 3)
    assert torch.equal(resize_position_table(table, (2, 8), 2), table)  # as many patches: as it is
    resized = resize_position_table(table, (3, 5), 2)
    assert torch.equal(resized[:, :2], table[:, :2])
    assert torch.equal(resized[:, 1:], resize_position_table(table[:, 1:], (3, 5)))


@torch.no_grad()
def test_plain_vit_pads() -> None:
    network = vit()
    encoder = encoder_from_state_dict(network.state_dict())
    padded = F.pad(IMAGES, (0, 4, 0, 3))
    assert torch.equal(encoder(IMAGES), network(padded)[:, 1:].transpose(1, 2).reshape(2, 64, 5, 7))
    assert encoder(IMAGES[..., :1, :1]).shape == (2, 64, 1, 1)


@torch.no_grad()
def test_published_wrapper_with_options_beside_the_weights(tmp_path) -> None:
    network = vit(width=384, num_layers=12, patch_size=16, native_grid=14, distilled=True)
    torch.save({"model": with_heads(network), "epoch": 299, "args": argparse.Namespace(lr=1e-3)}, tmp_path / "d.pth")
    encoder = load_encoder(DEIT_SIN, tmp_path / "d.pth")
    assert encoder(IMAGES).shape == (2, 384, 2, 3)
    assert torch.equal(encoder(IMAGES), load_encoder(tmp_path / "d.pth")(IMAGES))
    state = with_heads(network)
    del state["blocks.3.norm1.weight"], state["dist_token"]
    torch.save({"model": state}, tmp_path / "d.pth")
    with pytest.raises(WeightsError, match=r"(?s)2 missing in the file:\n.*dist_token\n.*blocks\.3\.norm1"):
        load_encoder(DEIT_SIN, tmp_path / "d.pth")
    with pytest.raises(WeightsError, match=r"pos_embed has 198 entries; one class entry and a square grid"):
        load_encoder(tmp_path / "d.pth")


def test_a_dino_file_is_not_taken_for_the_published_encoder(tmp_path) -> None:
    torch.save(vit(width=384, num_layers=12, patch_size=16, native_grid=14).state_dict(), tmp_path / "dino.pth")
    with pytest.raises(WeightsError, match="dist_token"):
        load_encoder(DEIT_SIN, tmp_path / "dino.pth")
    assert load_encoder("dino_small", tmp_path / "dino.pth").fit == "pad"


@torch.no_grad()
def test_encoder_of_a_selfmask() -> None:
    torch.manual_seed(0)
    network = SelfMask(width=64, num_queries=2, patch_size=8, num_layers=1, num_decoder_layers=1, native_grid=4).eval()
    encoder = encoder_from_state_dict(network.state_dict())
    assert torch.equal(encoder(IMAGES), network.encode(IMAGES)[:, 1:].transpose(1, 2).reshape(2, 64, 5, 7))
    shipped = load_encoder(MODELS / "selfmask.pt")
    assert (shipped.width, shipped.patch_size) == (192, 8)
    assert shipped(IMAGES).dtype == torch.float32


@torch.no_grad()
def test_resnet_has_stride_32() -> None:
    torch.manual_seed(0)
    network = resnet50(weights=None).eval()
    network.avgpool = network.fc = torch.nn.Identity()
    moco = {f"module.encoder_q.{name}": value for name, value in network.state_dict().items()}
    encoder = encoder_from_state_dict(moco | {"module.encoder_q.fc.0.weight": torch.zeros(2, 2)})
    images = torch.randn(1, 3, 70, 33)
    assert (encoder.width, encoder.patch_size, encoder.min_size) == (2048, 32, 1)
    assert torch.allclose(encoder(images), network(images).reshape(1, 2048, 3, 2), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("arch", "width", "stride"), [("vit_tiny_patch16_224", 192, 16), ("resnet10t", 512, 32)])
def test_any_timm_model(tmp_path, arch: str, width: int, stride: int) -> None:
    network = timm.create_model(arch, pretrained=False)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    encoder = load_encoder(f"timm:{arch}", tmp_path / "timm.pth")
    assert (encoder.width, encoder.patch_size) == (width, stride)
    assert encoder(IMAGES).shape == (2, width, -(-37 // stride), -(-52 // stride))
    # the network's own normalisation is not ImageNet's: it gets what it was trained on
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(network.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    direct = encoder.body((pixels / 255 - mean) / std)
    assert torch.allclose(encoder(normalise_images(pixels)), direct, atol=1e-4)


@torch.no_grad()
def test_clips_as_encoders(tmp_path) -> None:
    images = torch.randn(2, 3, 70, 52)
    resnet, transformer = tiny_clip(RESNET), tiny_clip(VIT)
    assert torch.equal(encoder_from_state_dict(resnet.model.state_dict())(images), dense_clip(resnet)(images))
    torch.save(transformer.model.state_dict(), tmp_path / "clip.pt")
    encoder = load_encoder(tmp_path / "clip.pt")
    assert encoder(images).shape == (2, 64, 8, 6)
    assert (encoder.width, encoder.patch_size, encoder.min_size) == (64, 8, 8)


def test_what_users_are_told(tmp_path) -> None:
    with pytest.raises(UserError, match=r"'DeiT-S/16-SN' is neither an image encoder.* Did you mean 'DeiT-S/16"):
        load_encoder("DeiT-S/16-SN")
    with pytest.raises(WeightsError, match="mocov2: this encoder needs a weight file"):
        load_encoder("mocov2")
    with pytest.raises(ConfigError, match="timm has no model 'vit_smal'"):
        load_encoder("timm:vit_smal")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth: an image encoder was expected .* the file begins with a\."):
        load_encoder(tmp_path / "other.pth")
