"""The shipped models of the built-in world: they load as published files do, name things, and find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.shapes import CATEGORY_NAMES, make_scene
from networks.checkpoints import read_state_dict
from networks.clip import ClipModel, load_clip
from networks.selfmask import selfmask_from_state_dict
from networks.text import encode_categories, encode_prompt_ensemble
from pseudo_labels import rle
from pseudo_labels.bilateral_solver import refine_mask
from pseudo_labels.mask_predictors import SaliencyPredictor
from pseudo_labels.mask_stage import make_pseudo_masks
from pseudo_labels.store import read_mask
from retrieval.prompts import load_templates
from systems.shapes_selfmask import refine_votes
from utils.files import read_json, write_json

MODELS = Path(__file__).parents[2] / "world_models"
SEED = 11  # a world that nothing was taught in


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    """The shipped CLIP."""
    return load_clip(str(MODELS / "clip.pt"))


@torch.inference_mode()
def _image_embeddings(clip: ClipModel, images: list[np.ndarray]) -> torch.Tensor:
    pixels = torch.stack([clip.preprocess(image) for image in images])
    return torch.nn.functional.normalize(clip.encode_image(pixels).float(), dim=-1)


def test_together_they_are_small():
    assert sum((MODELS / name).stat().st_size for name in ("clip.pt", "selfmask.pt")) <= 10_000_000


def test_files_are_bare_tensors_with_the_published_names():
    state = torch.load(MODELS / "clip.pt", weights_only=True)
    assert state["token_embedding.weight"].shape[0] == 49408
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in state
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    state = torch.load(MODELS / "selfmask.pt", weights_only=True)
    assert {"query_embed", "encoder.cls_token", "decoder.norm.weight", "ffn.layers.2.bias"} <= set(state)


@pytest.mark.parametrize("use_templates", [False, True])
def test_clip_names_things_it_has_never_seen(clip: ClipModel, use_templates: bool):
    rows = [index % len(CATEGORY_NAMES) for index in range(210)]
    images = [make_scene("single", index, seed=SEED, category=row).image for index, row in enumerate(rows)]
    if use_templates:
        text = encode_prompt_ensemble(clip, CATEGORY_NAMES, load_templates())
    else:
        text = encode_categories(clip, CATEGORY_NAMES)
    named = (_image_embeddings(clip, images) @ text.T).argmax(dim=1)
    assert (named == torch.tensor(rows)).float().mean() >= 0.8


def test_the_word_background_is_nearest_to_pictures_of_nothing(clip: ClipModel):
    scenes = [make_scene("web", index, seed=SEED) for index in range(160)]
    is_empty = torch.tensor([not scene.things for scene in scenes])
    text = encode_categories(clip, ["background"])
    score = (_image_embeddings(clip, [scene.image for scene in scenes]) @ text.T)[:, 0]
    in_order = score[is_empty][:, None] > score[~is_empty][None]  # every pair of an empty and a full picture
    assert in_order.float().mean() > 0.9


def test_selfmask_finds_the_dominant_thing(tmp_path: Path):
    network = selfmask_from_state_dict(read_state_dict(MODELS / "selfmask.pt"))
    scenes = [make_scene("single", index, seed=SEED, category=index % 14) for index in range(60)]
    scenes = [scene for scene in scenes if scene.things[0].size > 0.35][:24]
    image_paths = _write_pictures(tmp_path, [scene.image for scene in scenes])
    mask_paths = [path.with_suffix(".json") for path in image_paths]
    predictor = SaliencyPredictor(network)
    report = make_pseudo_masks(image_paths, mask_paths, predictor, shorter_side=128, batch_size=8, num_workers=0)
    assert report.made == len(scenes)
    ious = []
    for path, scene in zip(mask_paths, scenes, strict=True):
        mask, truth = read_mask(path) > 0, scene.instances == 1
        ious.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(ious) > 0.6


def test_votes_are_refined_once(tmp_path: Path):
    scene = make_scene("single", 0, seed=SEED, category=0)
    (image_path,) = _write_pictures(tmp_path, [scene.image])
    vote = np.kron(scene.instances[::8, ::8] > 0, np.ones((8, 8), dtype=np.uint8))
    write_json(tmp_path / "votes.json", {image_path.name: rle.encode(vote)})
    path = refine_votes(tmp_path / "votes.json", tmp_path / "refined.json", tmp_path, num_workers=1)
    refined = rle.decode(read_json(path)[image_path.name])
    np.testing.assert_array_equal(refined > 0, refine_mask(scene.image, vote))
    write_json(tmp_path / "votes.json", {})
    assert refine_votes(tmp_path / "votes.json", path, tmp_path) == path


def _write_pictures(folder: Path, images: list[np.ndarray]) -> list[Path]:
    paths = [folder / f"{number:03d}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths
