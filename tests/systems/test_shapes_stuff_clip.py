"""The shipped CLIP of the stuff world: it names grounds and things, finds them, and carries ReCo beyond itself."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from datasets.shapes import CATEGORY_NAMES, STUFF_CATEGORY_NAMES, StuffScene, make_scene, make_stuff_scene
from datasets.shapes.surfaces import SURFACE_NAMES
from evaluation.semantic import SemanticScores
from networks.clip import ClipModel, load_clip
from networks.dense_clip import dense_clip, text_vectors
from networks.patch_encoders import load_encoder
from networks.reco import Reco
from networks.reco_prediction import RecoGrids, predict_labels
from networks.text import encode_categories
from pseudo_labels.reference_building import CategoryFeatures, build_references, needed_categories
from pseudo_labels.reference_pictures import picture_batch
from pseudo_labels.references import ReferenceSettings
from retrieval.prompts import load_templates
from utils.normalisation import normalise_images

WEIGHTS = Path(__file__).parents[2] / "world_models" / "clip_stuff.pt"
SEED = 11  # a world that nothing was taught in
NUM_INDEX, NUM_RETRIEVED, NUM_SCENES = 240, 6, 24


class Index(NamedTuple):
    """Index pictures, and the best ones for every category, best first."""

    scenes: list[StuffScene]
    retrieved: dict[str, list[int]]


@pytest.fixture(scope="module")
def clip() -> ClipModel:
    """The shipped CLIP."""
    return load_clip(str(WEIGHTS))


@torch.inference_mode()
def _image_embeddings(clip: ClipModel, images: list[np.ndarray]) -> torch.Tensor:
    pixels = torch.stack([clip.preprocess(image) for image in images])
    return F.normalize(clip.encode_image(pixels).float(), dim=-1)


@pytest.fixture(scope="module")
def index(clip: ClipModel) -> Index:
    """A small index, and what is retrieved from it by names alone."""
    scenes = [make_stuff_scene("stuff_web", number, seed=SEED) for number in range(NUM_INDEX)]
    scores = (
        text_vectors(clip, STUFF_CATEGORY_NAMES, load_templates())
        @ _image_embeddings(clip, [scene.image for scene in scenes]).T
    )
    best = scores.topk(NUM_RETRIEVED, dim=1).indices.tolist()
    return Index(scenes, dict(zip(STUFF_CATEGORY_NAMES, best, strict=True)))


def test_the_file_is_small_and_bare():
    assert WEIGHTS.stat().st_size <= 4_000_000
    state = torch.load(WEIGHTS, weights_only=True)
    assert state["token_embedding.weight"].shape[0] == 49408
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_it_still_names_things_without_a_ground(clip: ClipModel):
    rows = [number % len(CATEGORY_NAMES) for number in range(140)]
    images = [make_scene("single", number, seed=SEED, category=row).image for number, row in enumerate(rows)]
    named = (_image_embeddings(clip, images) @ encode_categories(clip, CATEGORY_NAMES).T).argmax(dim=1)
    assert (named == torch.tensor(rows)).float().mean() >= 0.75


def test_it_names_pictures_of_one_ground(clip: ClipModel):
    scenes = [make_stuff_scene("stuff_caption", number, image_size=96, seed=SEED) for number in range(150)]
    single = [scene for scene in scenes if len(scene.shares) == 1]
    names = [next(iter(scene.shares)) for scene in single]
    scores = _image_embeddings(clip, [scene.image for scene in single]) @ encode_categories(clip, SURFACE_NAMES).T
    assert len(single) > 10
    assert np.mean([SURFACE_NAMES[row] == name for row, name in zip(scores.argmax(1), names, strict=True)]) >= 0.85


def test_what_is_retrieved_shows_the_category(index: Index):
    precision = {
        name: np.mean([name in index.scenes[number].shares for number in numbers])
        for name, numbers in index.retrieved.items()
    }
    assert np.mean(list(precision.values())) >= 0.95
    assert min(precision.values()) >= 0.8


@torch.inference_mode()
def test_references_from_retrieved_pictures_label_regions_better_than_names_alone(clip: ClipModel, index: Index):
    tower, encoder = dense_clip(clip), load_encoder(WEIGHTS)
    text = text_vectors(clip, STUFF_CATEGORY_NAMES, load_templates())
    settings = ReferenceSettings(
        num_images=NUM_RETRIEVED, image_size=112, context_categories=("sky", "grass", "road", "wall", "tree")
    )

    def look(name: str) -> CategoryFeatures:
        images = [index.scenes[number].image for number in index.retrieved[name]]
        pictures = normalise_images(picture_batch(images, settings.image_size))
        return CategoryFeatures(encoder(pictures), tower(pictures), text[STUFF_CATEGORY_NAMES.index(name)])

    features = map(look, needed_categories(STUFF_CATEGORY_NAMES, settings))
    references = build_references(STUFF_CATEGORY_NAMES, features, settings)
    network = Reco(encoder, references.vectors, tower=tower, text=text).eval()
    scores = {method: SemanticScores(len(STUFF_CATEGORY_NAMES)) for method in ("reco", "dense")}
    for number in range(NUM_SCENES):
        scene = make_stuff_scene("stuff_scene", number, seed=SEED)
        labels = torch.from_numpy(scene.labels.astype(np.int64))[None]
        grids = network(normalise_images(torch.from_numpy(scene.image).permute(2, 0, 1)[None]))
        size = scene.labels.shape
        scores["reco"].update(labels, predict_labels(grids, size))
        scores["dense"].update(labels, predict_labels(RecoGrids(grids.attention), size))
    miou = {method: score.compute().mean_iou for method, score in scores.items()}
    assert miou["dense"] > 0.3  # by chance below 0.03
    assert miou["reco"] > miou["dense"] + 0.05
