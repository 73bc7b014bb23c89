import pytest
import torch
from torch.nn.functional import cosine_similarity, interpolate

from networks.clip_encoder import ClipVitEncoder
from networks.vit_from_clip import vit_from_clip
from utils.errors import WeightsError

CLIP_COLOURS = {"clip_mean": (0.48, 0.46, 0.41), "clip_std": (0.27, 0.26, 0.28)}
COLOURS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def encoder(**options):
    torch.manual_seed(0)
    network = ClipVitEncoder(width=64, num_layers=2, patch_size=8, native_grid=4, embed_dim=16, **options).eval()
    with torch.no_grad():
        if options.get("norm_before", True):
            network.ln_pre.weight.uniform_(0.5, 1.5)
            network.ln_pre.bias.normal_(0, 0.2)
    return network


def colours(images, mean, std):
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def tokens_of_both(network, images):
    vit = vit_from_clip(network, images, **CLIP_COLOURS, **COLOURS)
    with torch.no_grad():
        expected = network(colours(images, CLIP_COLOURS["clip_mean"], CLIP_COLOURS["clip_std"])).flatten(1, 2)
        return expected, vit(colours(images, **COLOURS))[:, 1:]


def test_tokens_are_close_to_those_of_clip(monkeypatch):
    # Each table is used as it is: the two encoders resample positions to other grids in slightly different ways.
    monkeypatch.setattr("networks.clip_encoder.resample_position_embedding", lambda table, grid: table[None])
    images = interpolate(torch.rand(6, 3, 9, 9), size=(32, 32), mode="bilinear")
    expected, found = tokens_of_both(encoder(quick_gelu=False), images)
    assert cosine_similarity(expected, found, dim=-1).min() > 0.9
    expected, found = tokens_of_both(encoder(quick_gelu=False, norm_before=False), images)
    assert torch.allclose(expected, found, atol=5e-3)  # without the norm nothing is left to approximate


def test_fits_pictures_of_another_size_and_other_activations():
    images = interpolate(torch.rand(6, 3, 9, 9), size=(32, 48), mode="bilinear")
    expected, found = tokens_of_both(encoder(), images)
    assert cosine_similarity(expected, found, dim=-1).mean() > 0.9


def test_refuses_a_clip_of_another_build():
    with pytest.raises(WeightsError, match="only a CLIP with one attention head per 64 channels and plain blocks"):
        vit_from_clip(encoder(num_heads=4), torch.rand(1, 3, 32, 32), **CLIP_COLOURS, **COLOURS)
    with pytest.raises(WeightsError, match="choose another CLIP, a DINO file, or none"):
        vit_from_clip(encoder(layer_scale=True), torch.rand(1, 3, 32, 32), **CLIP_COLOURS, **COLOURS)
