"""Label maps of DeepLabv3+: those of the full-size logits, whatever the batch and the size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from networks.deeplab import DeepLabV3Plus
from networks.deeplab_prediction import compute_logits, predict_labels, predict_logits
from utils.normalisation import normalise_images


@pytest.fixture(scope="module")
def network() -> DeepLabV3Plus:
    torch.manual_seed(0)
    return DeepLabV3Plus("mobilenet", 9).eval()


def pictures(num: int, height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (num, height, width, 3), dtype=torch.uint8)


@pytest.mark.parametrize(("picture", "size"), [((48, 64), (48, 64)), ((37, 50), (61, 29)), ((1, 2), (5, 3))])
def test_labels_are_the_arg_max_of_full_size_logits(
    network: DeepLabV3Plus, picture: tuple[int, int], size: tuple[int, int]
) -> None:
    torch.manual_seed(1)
    images = pictures(2, *picture)
    labels, logits = predict_labels(network, images, size), predict_logits(network, images, size)
    assert labels.dtype == torch.int64
    assert logits.dtype == torch.float32
    assert logits.shape == (2, 9, *size)
    pixels = normalise_images(images.permute(0, 3, 1, 2))
    with torch.no_grad():
        expected = F.interpolate(network(pixels), size=size, mode="bilinear", align_corners=False)
    assert torch.allclose(logits, expected, atol=1e-6)
    best, second = expected.topk(2, dim=1).values.unbind(1)
    assert torch.equal(labels[best - second > 1e-5], expected.argmax(dim=1)[best - second > 1e-5])


def test_a_batch_is_labelled_as_its_pictures_are(network: DeepLabV3Plus) -> None:
    torch.manual_seed(2)
    images = pictures(3, 40, 52)
    logits = compute_logits(network, images)
    for image, together in zip(images, logits, strict=True):
        assert torch.allclose(compute_logits(network, image[None])[0], together, atol=1e-5)


def test_no_gradient_is_kept_and_half_precision_gives_float32(network: DeepLabV3Plus) -> None:
    logits = predict_logits(network, pictures(1, 32, 32), (32, 32), precision="bf16")
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    exact = predict_logits(network, pictures(1, 32, 32), (32, 32))
    assert logits.shape == exact.shape
