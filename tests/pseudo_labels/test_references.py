"""References of all categories: order, sharing, the file, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from pseudo_labels.cosegmentation import cosegment
from pseudo_labels.reference_building import CategoryFeatures, build_references, needed_categories
from pseudo_labels.references import References, ReferenceSettings, read_references, write_references
from utils.errors import ConfigError, DataError

SETTINGS = ReferenceSettings(context_categories=("tree", "sky", "road"), num_images=3)


def features_of(name: str) -> CategoryFeatures:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    features, dense = torch.randn(3, 8, 2, 3, generator=generator), torch.randn(3, 5, 2, 2, generator=generator)
    return CategoryFeatures(features, dense, F.normalize(torch.randn(5, generator=generator), dim=0))


def build(categories: list[str], settings: ReferenceSettings = SETTINGS) -> tuple[References, list[str]]:
    asked = []

    def all_features():
        for name in needed_categories(categories, settings):
            asked.append(name)
            yield features_of(name)

    return build_references(categories, all_features(), settings), asked


def expected(name: str, context: list[torch.Tensor], settings: ReferenceSettings = SETTINGS) -> torch.Tensor:
    given = features_of(name)
    options = given._asdict() if settings.text_attention else {"features": given.features}
    return cosegment(**options, context=torch.stack(context) if context else None).reference


def test_context_first_then_categories_with_all_of_it() -> None:
    found, asked = build(["car", "sky", "vegetation", "bus"])
    assert asked == ["tree", "sky", "road", "car", "bus"]  # no picture of vegetation, and sky once
    tree = expected("tree", [])
    sky = expected("sky", [tree])
    road = expected("road", [tree, sky])
    assert torch.equal(found.context, torch.stack([tree, sky, road]))
    around = [tree, sky, road]
    assert torch.equal(found.vectors, torch.stack([expected("car", around), sky, tree, expected("bus", around)]))
    assert (found.names, found.context_names) == (("car", "sky", "vegetation", "bus"), ("tree", "sky", "road"))


def test_without_elimination_every_category_is_computed_by_itself() -> None:
    settings = dataclasses.replace(SETTINGS, context_elimination=False)
    found, asked = build(["vegetation", "sky"], settings)
    assert asked == ["vegetation", "sky"]
    assert torch.equal(found.vectors, torch.stack([expected("vegetation", []), expected("sky", [])]))
    assert found.context.shape == (0, 8)


def test_vegetation_is_computed_where_tree_is_no_context_and_text_can_be_off() -> None:
    settings = dataclasses.replace(SETTINGS, context_categories=("sky",), text_attention=False)
    found, asked = build(["vegetation", "tree"], settings)
    assert asked == ["sky", "vegetation", "tree"]
    sky = expected("sky", [], settings)
    assert torch.equal(found.vectors[0], expected("vegetation", [sky], settings))


def test_watcher_and_repeated_names() -> None:
    seen = []
    names = needed_categories(["car"], SETTINGS)
    build_references(["car"], map(features_of, names), SETTINGS, watcher=lambda name, found: seen.append(name))
    assert seen == ["tree", "sky", "road", "car"]
    with pytest.raises(ConfigError, match="categories: 'car' is listed more than once"):
        build(["car", "bus", "car"])
    with pytest.raises(ConfigError, match="context_categories: 'sky' is listed more than once"):
        build(["car"], dataclasses.replace(SETTINGS, context_categories=("sky", "sky")))


@pytest.fixture
def saved(tmp_path):
    found, _ = build(["car", "vegetation"])
    write_references(tmp_path / "r.safetensors", found, SETTINGS)
    return tmp_path / "r.safetensors", found


def test_our_file_gives_back_everything(saved) -> None:
    path, found = saved
    again = read_references(path, categories=["car", "vegetation"], width=8, settings=SETTINGS)
    assert (again.names, again.context_names) == (found.names, found.context_names)
    assert torch.equal(again.vectors, found.vectors)
    assert torch.equal(again.context, found.context)
    turned = read_references(path, categories=["vegetation"])  # by name, whatever the order in the file
    assert torch.equal(turned.vectors, found.vectors[1:])


def test_files_that_do_not_fit_are_refused(saved, tmp_path) -> None:
    path, _ = saved
    with pytest.raises(DataError, match=r"(?s)1 of 2 are not in it:\n  missing: 'cars' \(did you mean 'car'\?\)"):
        read_references(path, categories=["cars", "vegetation"])
    with pytest.raises(DataError, match=r"holds references of 8 channels, but the image encoder has 384.*encoder_arch"):
        read_references(path, width=384)
    other = dataclasses.replace(SETTINGS, encoder="dino_small", num_images=50, templates=("a {}.",))
    with pytest.raises(DataError) as caught:
        read_references(path, settings=other)
    text = str(caught.value)
    assert "encoder: made with 'DeiT-S/16-SIN', now 'dino_small'" in text
    assert "num_images: made with 3, now 50" in text
    assert "templates: made with 85 such as 'a bad photo of a {}.', now ['a {}.']" in text
    assert "temperature" not in text
    with pytest.raises(DataError, match=r"none\.safetensors: reference embeddings not found"):
        read_references(tmp_path / "none.safetensors")


def test_settings_without_influence_are_not_compared(tmp_path) -> None:
    settings = dataclasses.replace(SETTINGS, text_attention=False, context_elimination=False)
    found, _ = build(["car"], settings)
    write_references(tmp_path / "r.safetensors", found, settings)
    other = dataclasses.replace(settings, dense_clip="RN50", temperature=1.0, context_categories=("cat",))
    assert read_references(tmp_path / "r.safetensors", settings=other).names == ("car",)
    with pytest.raises(DataError, match="context_elimination: made with False, now True"):
        read_references(tmp_path / "r.safetensors", settings=dataclasses.replace(settings, context_elimination=True))


def test_damaged_and_foreign_files(saved, tmp_path) -> None:
    path, found = saved
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="these reference embeddings are damaged"):
        read_references(path)
    save_file({"references": found.vectors}, path)
    with pytest.raises(DataError, match=r"expected reference embeddings \(unmasked-references-1\), found others"):
        read_references(path)
    metadata = {"format": "unmasked-references-1", "names": json.dumps(["a"]), "context_names": "[]", "settings": "{}"}
    save_file({"references": found.vectors, "context": found.vectors[:0]}, path, metadata)
    with pytest.raises(DataError, match="holds 2 vectors for 1 names"):
        read_references(path)
    save_file({"references": found.vectors}, path, metadata)
    with pytest.raises(DataError, match="damaged"):
        read_references(path)


def test_published_pickles(tmp_path) -> None:
    path = tmp_path / "deit_cat_to_img_feature_k50.pkl"
    vectors = {name: F.normalize(torch.randn(8), dim=0) for name in ("road", "car", "sky")}
    path.write_bytes(pickle.dumps(vectors))
    found = read_references(path)
    assert found.names == ("road", "car", "sky")
    chosen = read_references(path, categories=["sky", "road"], settings=SETTINGS)  # it tells nothing of its settings
    assert torch.equal(chosen.vectors, torch.stack([vectors["sky"], vectors["road"]]))
    path.write_bytes(pickle.dumps(vectors | {"bus": torch.ones(7)}))
    with pytest.raises(DataError, match=r"one vector per category, all of one length; found shapes \(7,\), \(8,\)"):
        read_references(path)
    path.write_bytes(pickle.dumps(vectors | {"bus": torch.ones(8)}))
    with pytest.raises(DataError, match="the vector of 'bus' has no unit length"):
        read_references(path)
    path.write_bytes(pickle.dumps(vectors | {"bus": torch.full((8,), torch.nan)}))
    with pytest.raises(DataError, match="the vector of 'bus' has no unit length"):
        read_references(path)
    path.write_bytes(pickle.dumps({"x": print}))
    with pytest.raises(DataError, match="nothing in it was executed"):
        read_references(path)
