"""From an image archive to references: pictures of odd sizes, only the needed ones, and what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import functional as tv

from networks.dense_clip import dense_clip
from networks.patch_encoders import PatchEncoder, encoder_from_state_dict
from networks.vit import VisionTransformer
from pseudo_labels.cosegmentation import cosegment
from pseudo_labels.reference_pictures import make_references, picture_batch, square_picture
from pseudo_labels.references import ReferenceSettings
from tests.networks.tiny_clips import RESNET, tiny_clip
from utils.errors import DataError, UnreadableImageError
from utils.images import read_rgb
from utils.normalisation import normalise_images

SETTINGS = ReferenceSettings(context_categories=("tree",), num_images=3, image_size=64)


def picture(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(60, 90), (224, 224), (301, 224), (7, 5), (225, 500), (1, 1)])
def test_squares_are_those_of_the_library(size) -> None:
    image = picture(*size)
    expected = tv.center_crop(tv.resize(Image.fromarray(image), 224, tv.InterpolationMode.BILINEAR), 224)
    assert np.array_equal(square_picture(image), np.asarray(expected))


def test_very_narrow_pictures_show_their_middle() -> None:
    image = np.zeros((4, 4000, 3), np.uint8)
    image[:, 1990:2010] = 255
    square = square_picture(image, 32)
    assert square.shape == (32, 32, 3)
    assert square[:, 8:24].min() == 255
    assert picture_batch([image, picture(50, 40)], 32).shape == (2, 3, 32, 32)


@pytest.fixture
def encoder() -> PatchEncoder:
    torch.manual_seed(0)
    return encoder_from_state_dict(VisionTransformer(width=64, num_layers=1, patch_size=16, native_grid=4).state_dict())


@pytest.fixture
def archive(tmp_path) -> dict[str, list[Path]]:
    found = {}
    for number, name in enumerate(("tree", "car", "vegetation")):
        found[name] = [tmp_path / f"{name}{i}.png" for i in range(4)]
        for i, path in enumerate(found[name]):
            Image.fromarray(picture(40 + 7 * i, 80 + number)).save(path)
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_archive_to_references(archive, encoder, num_workers) -> None:
    tower = dense_clip(tiny_clip(RESNET))
    generator = torch.Generator().manual_seed(1)
    text = {name: F.normalize(torch.randn(32, generator=generator), dim=0) for name in ("tree", "car")}
    del archive["vegetation"]  # shares the reference of tree: none of its pictures is needed
    seen = {}
    found = make_references(
        ["car", "vegetation"],
        archive,
        encoder=encoder,
        tower=tower,
        text=text,
        settings=SETTINGS,
        num_workers=num_workers,
        watcher=lambda name, pictures, result: seen.update({name: (pictures, result)}),
    )

    def expected(name: str, context: torch.Tensor | None) -> torch.Tensor:
        images = normalise_images(picture_batch([read_rgb(path) for path in archive[name][:3]], 64))
        with torch.no_grad():
            given = {"features": encoder(images), "dense_features": tower(images), "text": text[name]}
        return cosegment(**given, context=context).reference

    tree = expected("tree", None)
    assert torch.allclose(found.vectors, torch.stack([expected("car", tree[None]), tree]), atol=1e-5)
    assert list(seen) == ["tree", "car"]
    assert seen["car"][0].shape == (3, 3, 64, 64)
    assert seen["car"][1].weights.shape == (3, 4, 4)


def test_few_pictures_are_a_warning(archive, encoder, log_text) -> None:
    plain = ReferenceSettings(context_elimination=False, text_attention=False, num_images=9, image_size=64)
    for num, level in ((4, "WARNING"), (5, "INFO")):
        pictures = {"car": [*archive["car"], *archive["car"]][:num]}
        make_references(["car"], pictures, settings=plain, encoder=encoder, num_workers=0)
        assert (level, f"car: only {num} pictures to co-segment, 9 were asked for") in {
            (record.levelname, record.getMessage()) for record in log_text.records
        }


def test_what_is_missing_is_named(archive, encoder) -> None:
    options = {"encoder": encoder, "num_workers": 0}
    plain = ReferenceSettings(context_elimination=False, text_attention=False, num_images=9, image_size=64)
    assert make_references(["car"], archive, settings=plain, **options).vectors.shape == (1, 64)  # fewer than wanted
    with pytest.raises(DataError, match=r"no picture was retrieved for 'bus'.*Add pictures of it to the index"):
        make_references(["car", "bus"], archive, settings=plain, **options)
    with pytest.raises(DataError, match="no picture was retrieved for 'car'"):
        make_references(["car"], archive | {"car": []}, settings=plain, **options)
    archive["car"][0].write_bytes(b"nothing")
    with pytest.raises(UnreadableImageError, match=r"car0\.png"):
        make_references(["car"], archive, settings=plain, **options)
    with pytest.raises(ValueError, match="text attention needs a dense CLIP"):
        make_references(["car"], archive, settings=SETTINGS, **options)
