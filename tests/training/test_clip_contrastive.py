"""Contrastive lessons: the losses against their definitions, the cheap forward passes against open_clip's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.shapes import STUFF_CATEGORY_NAMES, make_scene, make_stuff_scene
from datasets.shapes.captions import mentioned_categories
from systems.shapes_clip import (
    WorldClipSettings,
    build_world_clip,
    export_state_dict,
    import_state_dict,
    make_lessons,
    read_lessons,
    round_weights,
    save_compressed,
)
from training.clip_contrastive import (
    ClipTrainSettings,
    caption_relations,
    contrastive_loss,
    cut_tokens,
    encode_pictures,
    encode_tokens,
    patch_naming_loss,
    prepare_pixels,
    train_clip,
)

TINY = WorldClipSettings(vision_width=64, vision_layers=1, text_width=64, text_layers=1, embed_dim=32)
CAPTIONS = [
    ["a fish", "fish"],
    ["a red star.", "star"],
    ["fish and star", "a star and a fish"],
    ["background", "just background"],
]


def _unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1)


def _lessons() -> tuple:
    images = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    return read_lessons(images, CAPTIONS, max_tokens=24)


def test_relations_of_captions():
    nouns = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    same, unclear = caption_relations(nouns)
    assert same.tolist() == [
        [True, True, False, False, False, False],
        [True, True, False, False, False, False],
        [False, False, True, False, False, False],
        [False, False, False, True, False, False],
        [False, False, False, False, True, True],
        [False, False, False, False, True, True],
    ]
    assert unclear.nonzero().tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]


def test_a_picture_known_to_show_a_name_is_no_counterexample_of_it():
    nouns = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool)
    same, unclear = caption_relations(nouns, torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.bool))
    assert same.tolist() == torch.eye(3, dtype=torch.bool).tolist()
    assert unclear.nonzero().tolist() == [[0, 1], [1, 0]]
    for found, expected in zip(caption_relations(nouns, nouns), caption_relations(nouns), strict=True):
        assert torch.equal(found, expected)


def test_with_one_positive_each_it_is_clips_loss():
    image, text, scale = _unit(6, 8), _unit(7, 8)[:6], torch.tensor(9.0)
    own = torch.eye(6, dtype=torch.bool)
    logits, target = scale * image @ text.T, torch.arange(6)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, scale, own, torch.zeros_like(own)), expected)


def test_unclear_pairs_do_not_matter():
    image, text, scale = _unit(4, 8), _unit(5, 8)[:4], torch.tensor(5.0)
    same, unclear = torch.eye(4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)
    unclear[0, 1] = unclear[1, 0] = True
    found = contrastive_loss(image, text, scale, same, unclear)
    logits = scale * image @ text.T
    rows = [logits[i, [j for j in range(4) if {i, j} != {0, 1}]] for i in range(4)]
    columns = [logits[[j for j in range(4) if {i, j} != {0, 1}], i] for i in range(4)]
    places = [0, 0, 2, 3]
    expected = sum(row.logsumexp(0) - row[place] for row, place in zip(rows + columns, places * 2, strict=True)) / 8
    torch.testing.assert_close(found, expected)


def test_patches_that_name_what_the_caption_names_cost_little():
    names = torch.eye(4)  # three nouns and the background
    patches = names[[0, 0, 3, 3, 3, 3, 3, 3, 3, 3]][None]
    right = patch_naming_loss(patches, names, torch.tensor([[True, False, False]]))
    wrong = patch_naming_loss(patches, names, torch.tensor([[False, True, False]]))
    assert right < 1e-3
    assert wrong > 10


def test_a_picture_without_background_asks_no_patch_to_be_background():
    names, patches = torch.eye(4), torch.eye(4)[[0, 0, 1, 1, 1]][None].repeat(2, 1, 1)
    mentioned = torch.tensor([[True, True, False]] * 2)
    asked = patch_naming_loss(patches, names, mentioned)
    assert patch_naming_loss(patches, names, mentioned, has_background=torch.zeros(2, dtype=torch.bool)) < 1e-3 < asked
    half = patch_naming_loss(patches, names, mentioned, has_background=torch.tensor([True, False]))
    torch.testing.assert_close(half, asked / 2, rtol=1e-4, atol=1e-4)


def test_texts_at_their_own_length_equal_open_clips():
    torch.manual_seed(0)
    clip = build_world_clip(TINY, vocabulary_size=50)
    ids = torch.zeros(3, 77, dtype=torch.long)
    for row, length in enumerate((3, 9, 5)):
        ids[row, :length] = torch.randint(1, 48, (length,))
        ids[row, length] = 49
    with torch.inference_mode():
        torch.testing.assert_close(encode_tokens(clip, ids), clip.encode_text(ids))


def test_pictures_at_the_native_size_equal_open_clips():
    torch.manual_seed(0)
    clip = build_world_clip(TINY, vocabulary_size=50).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        whole, patches = encode_pictures(clip.visual, pixels)
        torch.testing.assert_close(whole, clip.encode_image(pixels))
        assert patches.shape == (2, 64, 32)
        assert encode_pictures(clip.visual, torch.randn(1, 3, 96, 128))[1].shape == (1, 192, 32)
        assert encode_pictures(clip.visual, pixels, max_tokens=20)[1].shape == (2, 20, 32)


@pytest.mark.parametrize("resolution", [64, 96, 128])
def test_pixels_have_the_size_asked_for(resolution: int):
    images = np.full((5, 128, 128, 3), 128, dtype=np.uint8)
    pixels = prepare_pixels(images, resolution, np.random.default_rng(0))
    assert pixels.shape == (5, 3, resolution, resolution)
    assert pixels.abs().max() < 1


def test_lessons_have_a_compact_vocabulary_whose_last_token_ends_the_text():
    lessons, token_ids = _lessons()
    assert token_ids[0] == 0
    assert token_ids[-1] == 49407
    assert len(token_ids) < 40
    assert lessons.token_ids.shape == (4, 2, 24)
    assert (lessons.token_ids.max(axis=-1) == len(token_ids) - 1).all()
    assert lessons.nouns.sum(axis=-1).tolist() == [[1, 1], [1, 1], [2, 2], [0, 0]]


def test_too_long_captions_are_refused():
    with pytest.raises(ValueError, match="a caption has more than 3 tokens; raise the length or shorten"):
        cut_tokens([[1, 2, 3, 4]], 3)


def test_going_on_from_a_checkpoint_gives_the_same_weights():
    lessons, token_ids = _lessons()
    settings = ClipTrainSettings(num_steps=4, batch_size=4, resolutions=(64,), max_tokens=32, precision="fp32")

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return build_world_clip(TINY, vocabulary_size=len(token_ids))

    whole, first, states = network(), network(), {}
    train_clip(whole, lessons, settings)

    def keep(step: int, state: dict) -> None:
        states[step] = ({n: v.clone() for n, v in first.state_dict().items()}, state)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_clip(first, lessons, settings, on_checkpoint=keep, checkpoint_steps=2)
    second = network()
    second.load_state_dict(states[2][0])
    train_clip(second, lessons, settings, start_step=2, optimiser_state=states[2][1])
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=0, atol=1e-6)


def test_exported_weights_load_safely_and_spell_the_same_texts(tmp_path):
    lessons, token_ids = _lessons()
    torch.manual_seed(0)
    compact = build_world_clip(TINY, vocabulary_size=len(token_ids))
    rounded = round_weights({name: value for name, value in compact.state_dict().items() if name != "attn_mask"})
    compact.load_state_dict({name: value.float() for name, value in rounded.items()})
    path = tmp_path / "clip.pt"
    save_compressed(export_state_dict(compact.state_dict(), token_ids), path)
    state = torch.load(path, weights_only=True)
    assert path.stat().st_size < 500_000
    assert state["token_embedding.weight"].shape == (49408, 64)
    whole = build_world_clip(TINY)
    whole.load_state_dict({name: value.float() for name, value in state.items()})
    ids = torch.from_numpy(lessons.token_ids[:, 0]).long()
    with torch.inference_mode():
        torch.testing.assert_close(encode_tokens(whole, token_ids[ids]), encode_tokens(compact, ids))


def test_lessons_go_on_from_exported_weights_with_new_words():
    _, token_ids = _lessons()
    torch.manual_seed(0)
    first = build_world_clip(TINY, vocabulary_size=len(token_ids))
    state = export_state_dict(first.state_dict(), token_ids)
    more = torch.cat([token_ids[:-1], torch.tensor([40_000, 40_001]), token_ids[-1:]])
    second = build_world_clip(TINY, vocabulary_size=len(more))
    random_rows = second.token_embedding.weight.detach().clone()
    import_state_dict(second, state, more)
    rows = second.token_embedding.weight.detach()
    torch.testing.assert_close(rows[:-3], state["token_embedding.weight"][token_ids[:-1]].float(), rtol=0, atol=0)
    torch.testing.assert_close(rows[-3:-1], random_rows[-3:-1], rtol=0, atol=0)
    torch.testing.assert_close(second.visual.proj.detach(), state["visual.proj"].float(), rtol=0, atol=0)


def test_lessons_of_stuff_follow_those_of_things(tmp_path):
    settings = WorldClipSettings(num_pictures=2, num_stuff_pictures=3, picture_size=48, captions_per_picture=2)
    images, captions = make_lessons(tmp_path, settings, num_workers=1)
    assert images.shape == (5, 48, 48, 3)
    np.testing.assert_array_equal(images[1], make_scene("caption", 1, image_size=48).image)
    scene = make_stuff_scene("stuff_caption", 2, image_size=48)
    np.testing.assert_array_equal(images[4], scene.image)
    for caption in captions[4]:
        assert mentioned_categories(caption, STUFF_CATEGORY_NAMES) <= set(scene.shares)


def test_what_any_caption_names_is_in_the_picture():
    images = np.zeros((4, 64, 64, 3), dtype=np.uint8)
    captions = [["a fish", "fish and star"], *CAPTIONS[1:]]
    lessons, _ = read_lessons(images, captions, max_tokens=24, names=("fish", "star"), pool_captions=True)
    assert lessons.nouns[0].tolist() == [[True, False], [True, True]]
    assert lessons.shown.tolist() == [[True, True], [False, True], [True, True], [False, False]]
    assert read_lessons(images, captions, max_tokens=24)[0].shown is None


@pytest.mark.parametrize("num_bits", [5, 8, 11])
def test_rounding_keeps_so_many_significant_bits(num_bits: int):
    value = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    rounded = round_weights({"w": value}, num_bits=num_bits)["w"]
    assert rounded.dtype == torch.float16
    assert ((rounded.float() - value).abs() <= value.abs() * (2.0**-num_bits + 2.0**-11) + 1e-6).all()
    mantissas = rounded.view(torch.int16) & ((1 << (11 - num_bits)) - 1)
    assert (mantissas == 0).all()
