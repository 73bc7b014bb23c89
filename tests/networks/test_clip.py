"""CLIP models: dimensions from shapes, both towers, tokeniser, text embeddings, and what users are told."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from networks.clip import (
    ClipDimensions,
    clip_from_state_dict,
    load_clip,
    preprocess_image,
    wrap_open_clip,
)
from networks.text import encode_categories, encode_prompt_ensemble, encode_texts
from networks.tokenizer import tokenize
from tests.networks.tiny_clips import RESNET, VIT, tiny_clip, tiny_gelu_clip
from utils.errors import UserError, WeightsError

NAMES = ["background", "traffic light", "a rather long name for a teddy bear"]


@pytest.mark.parametrize("dimensions", [VIT, RESNET])
def test_dimensions_are_read_from_the_weights(dimensions: ClipDimensions) -> None:
    state_dict = tiny_clip(dimensions).model.state_dict()
    assert ClipDimensions.from_state_dict(state_dict) == dimensions
    extra = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77), "vocab_size": torch.tensor(1)}
    again = clip_from_state_dict({**state_dict, **extra})
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, state_dict[name]), name


def test_short_texts_are_encoded_as_with_all_columns() -> None:
    clip = tiny_clip()
    ids = clip.tokenize(NAMES)
    with torch.inference_mode():
        assert torch.allclose(clip.encode_text(ids), clip.model.encode_text(ids), atol=1e-5)


def test_a_tower_alone_gives_the_same_and_refuses_the_other() -> None:
    clip = tiny_clip()
    state_dict, pixels = clip.model.state_dict(), torch.randn(2, 3, 32, 32)
    image = clip_from_state_dict(state_dict, towers=("image",))
    text = clip_from_state_dict(state_dict, towers=("text",))
    with torch.inference_mode():
        assert torch.equal(image.encode_image(pixels), clip.encode_image(pixels))
        assert torch.equal(text.encode_text(tokenize(NAMES)), clip.encode_text(tokenize(NAMES)))
    with pytest.raises(ValueError, match=r"without its text tower"):
        image.encode_text(tokenize(NAMES))
    with pytest.raises(ValueError, match=r"without its image tower"):
        text.encode_image(pixels)


@pytest.mark.parametrize("dimensions", [VIT, RESNET])
def test_mixed_half_precision_runs_on_the_cpu(dimensions: ClipDimensions) -> None:
    clip = tiny_clip(dimensions)
    half = clip_from_state_dict(clip.model.state_dict(), half=True)
    assert half.dtype == torch.float16
    assert half.model.token_embedding.weight.dtype == half.model.ln_final.weight.dtype == torch.float32
    pixels = torch.randn(1, 3, dimensions.image_resolution, dimensions.image_resolution)
    with torch.inference_mode():
        image, text = half.encode_image(pixels), half.encode_text(tokenize(NAMES))
        assert image.dtype == text.dtype == torch.float16
        assert torch.allclose(text.float(), clip.encode_text(tokenize(NAMES)), atol=0.05)
        assert torch.allclose(image.float(), clip.encode_image(pixels), atol=0.05)


def test_any_open_clip_model_can_be_wrapped() -> None:
    model = tiny_gelu_clip()
    clip = wrap_open_clip(model, open_clip.SimpleTokenizer(context_length=16))
    assert (clip.image_resolution, clip.embed_dim, clip.context_length, clip.is_openai) == (32, 24, 16, False)
    embeddings = encode_categories(clip, NAMES)
    assert embeddings.shape == (3, 24)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3))
    assert clip.encode_image(clip.preprocess(np.zeros((40, 50, 3), np.uint8))[None]).shape == (1, 24)


def test_preprocessing_resizes_before_it_converts() -> None:
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (50, 81), dtype=np.uint8))
    pixels = preprocess_image(grey, 32)
    assert pixels.shape == (3, 32, 32)
    resized = grey.resize((int(32 * 81 / 50), 32), Image.Resampling.BICUBIC)
    left = round((resized.width - 32) / 2)
    expected = np.asarray(resized, np.float32)[:, left : left + 32] / 255
    assert np.allclose(pixels[1], (expected - 0.4578275) / 0.26130258, atol=1e-6)
    for size in ((32, 32), (1, 1), (300, 7)):
        assert preprocess_image(np.zeros((*size, 3), np.uint8), 32).shape == (3, 32, 32)


def test_tokens_of_special_and_foreign_words() -> None:
    ids = tokenize(["<|endoftext|> inside", "<start_of_text>", "", "3000"])
    assert ids[0, :4].tolist()[:2] == [49406, 49407]
    assert ids[2].tolist() == [49406, 49407] + [0] * 75
    assert (ids[1] == 49406).sum() == 1  # open_clip's spelling of the start token is ordinary text here
    assert (ids[3] > 0).sum() == 6  # single digits
    with pytest.raises(UserError, match=r"a text has 82 tokens .* CLIP takes 77: 'cat cat.*Shorten"):
        tokenize("cat " * 80)


def test_embeddings_do_not_depend_on_the_batch() -> None:
    clip = tiny_clip()
    names = ["cat", "a very long category name indeed", "dog", "x"] * 70
    together = encode_texts(clip, names)
    assert torch.allclose(together[:4], torch.cat([encode_texts(clip, [name]) for name in names[:4]]), atol=1e-5)
    assert torch.allclose(together[:4], together[-4:], atol=1e-5)


def test_prompt_ensemble_averages_unit_vectors_and_keeps_a_single_prompt_raw() -> None:
    clip = tiny_clip()
    templates = ["a photo of a {}.", "art of the {}."]
    features = [encode_texts(clip, [t.replace("{}", name) for t in templates]) for name in NAMES]
    expected = torch.stack([(f / f.norm(dim=-1, keepdim=True)).mean(0) for f in features])
    expected = expected / expected.norm(dim=-1, keepdim=True)
    assert torch.allclose(encode_prompt_ensemble(clip, NAMES, templates), expected, atol=1e-6)
    raw = encode_texts(clip, [f"a {name}" for name in NAMES])
    assert torch.allclose(encode_prompt_ensemble(clip, NAMES, ["a {}"]), raw, atol=1e-5)
    assert encode_prompt_ensemble(clip, ["{odd} {0}"], templates).shape == (1, 32)


@pytest.mark.parametrize(
    ("names", "templates", "message"),
    [
        ([], ["a {}"], "expected at least one of category names, received none"),
        (["cat", " "], ["a {}"], "category names: number 2 of 2 is empty"),
        (["cat"], [], "expected prompt templates .* received none"),
        (["cat"], ["a {}", "a photo"], "in the place of the category name, received 'a photo'"),
    ],
)
def test_bad_names_and_templates_are_named(names: list[str], templates: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        encode_prompt_ensemble(tiny_clip(), names, templates)


def test_unknown_models_are_refused_with_the_choices(tmp_path) -> None:
    with pytest.raises(UserError, match=r"'ViT-B16' is neither a CLIP nor a file. Did you mean 'ViT-B/16'"):
        load_clip("ViT-B16")
    with pytest.raises(UserError, match=r"open_clip has no architecture 'ViT-Q-16'; nearest: ViT-"):
        load_clip("open_clip:ViT-Q-16/openai")
    with pytest.raises(UserError, match=r"expected a file or a pretrained tag of ViT-B-16 .* 'nonsense'; tags"):
        load_clip("open_clip:ViT-B-16/nonsense")
    with pytest.raises(UserError, match=r"expected a file or a pretrained tag of ViT-B-16 .* received ''"):
        load_clip("open_clip:ViT-B-16")
    torch.save({"query_embed": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other.pt: these are not CLIP weights in OpenAI's names"):
        load_clip(tmp_path / "other.pt")


def test_weights_of_another_shape_are_named(tmp_path) -> None:
    state_dict = tiny_clip().model.state_dict()
    state_dict["visual.ln_post.weight"] = torch.ones(3)
    del state_dict["ln_final.bias"]
    torch.save(state_dict, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=r"clip.pt") as caught:
        load_clip(tmp_path / "clip.pt")
    assert "ln_final.bias" in str(caught.value)
    assert "visual.ln_post.weight" in str(caught.value)


def test_a_file_is_loaded(tmp_path) -> None:
    clip = tiny_clip()
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")
    assert torch.equal(encode_categories(load_clip(tmp_path / "clip.pt"), NAMES), encode_categories(clip, NAMES))
