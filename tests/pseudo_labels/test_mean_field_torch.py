"""The updates for GPUs against the compiled ones for the CPU, on whatever device there is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pseudo_labels import crf_pool
from pseudo_labels import dense_crf as module
from pseudo_labels import mean_field_torch as on_device
from pseudo_labels.crf_pool import PictureToLabel, label_pictures
from pseudo_labels.dense_crf import DenseCrfSettings, dense_crf, dense_crf_labels, infer_on_device, is_on_gpu
from utils.errors import UserError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = [(2, 1, 1), (3, 1, 5), (21, 24, 32), (33, 17, 13), (70, 9, 9)]


def make_case(num_classes: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(num_classes)
    image = rng.integers(0, 40, (height, width, 3), dtype=np.uint8)
    image[:, width // 2 :] += 150
    return image, rng.normal(0, 2, (num_classes, height, width)).astype(np.float32)


@pytest.mark.parametrize("shape", SIZES)
def test_marginals_and_labels_are_those_of_the_cpu(shape: tuple[int, int, int]) -> None:
    image, scores = make_case(*shape)
    expected = dense_crf(image, scores)
    found = infer_on_device(image, torch.from_numpy(scores).to(DEVICE), None)
    np.testing.assert_allclose(found.probabilities().cpu().numpy().reshape(shape), expected, atol=1e-4)
    clear = np.sort(expected, axis=0)
    clear = clear[-1] - clear[-2] > 1e-3
    labels = found.labels().cpu().numpy().reshape(shape[1:])
    assert np.array_equal(labels[clear], expected.argmax(axis=0)[clear])
    assert clear.mean() > 0.9


def test_settings_count_and_half_precision_is_widened() -> None:
    image, scores = make_case(21, 24, 32)
    settings = DenseCrfSettings(gaussian_sxy=2, gaussian_weight=1, bilateral_sxy=20, bilateral_srgb=9, iterations=4)
    found = infer_on_device(image, torch.from_numpy(scores).to(DEVICE), settings).probabilities().cpu().numpy()
    np.testing.assert_allclose(found.reshape(scores.shape), dense_crf(image, scores, settings), atol=1e-4)
    half = infer_on_device(image, torch.from_numpy(scores).to(DEVICE, torch.float16), settings).probabilities()
    assert half.dtype == torch.float32
    assert np.abs(half.cpu().numpy() - found).max() < 0.05
    none = infer_on_device(image, torch.from_numpy(scores).to(DEVICE), DenseCrfSettings(iterations=0))
    np.testing.assert_array_equal(none.labels().cpu().numpy().reshape(24, 32), scores.argmax(axis=0))


def test_a_tensor_on_a_gpu_is_worked_on_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, tensors count as being on one here."""
    image, scores = make_case(21, 24, 32)
    expected = dense_crf(image, scores), dense_crf_labels(image, scores)
    assert not is_on_gpu(scores)
    assert not is_on_gpu(torch.from_numpy(scores))
    monkeypatch.setattr(module, "is_on_gpu", lambda scores: isinstance(scores, torch.Tensor))
    monkeypatch.setattr(crf_pool, "is_on_gpu", module.is_on_gpu)
    monkeypatch.setattr(module, "_infer", None)  # the compiled loops are not used
    tensor = torch.from_numpy(scores).to(DEVICE)
    np.testing.assert_allclose(dense_crf(image, tensor), expected[0], atol=1e-4)
    labels = dense_crf_labels(image, tensor)
    assert labels.dtype == np.int64
    assert (labels == expected[1]).mean() > 0.99
    jobs = [PictureToLabel(scores.shape, lambda: (image, tensor), on_gpu=True)] * 5
    assert all(np.array_equal(found, labels) for found in label_pictures(jobs, num_threads=2))


def test_errors_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    image, scores = make_case(21, 24, 32)
    with pytest.raises(ValueError, match=r"scores must be \(C, 24, 32\), received \(21, 32, 24\)"):
        infer_on_device(image, torch.from_numpy(scores).transpose(1, 2), None)
    scores[19, 3, 4] = np.inf
    with pytest.raises(UserError, match="scores of class 19 hold NaN or infinity"):
        infer_on_device(image, torch.from_numpy(scores).to(DEVICE), None)
    monkeypatch.setattr(on_device.torch.cuda, "mem_get_info", lambda device: (400 << 20, 0))
    for name in ("memory_reserved", "memory_allocated"):
        monkeypatch.setattr(on_device.torch.cuda, name, lambda device: 0)
    on_device.check_device_memory(27, 320, 320, torch.device("cuda"))
    with pytest.raises(UserError, match=r"171 classes on 320x320 pixels needs about .* of the GPU's .*crf\.device=cpu"):
        on_device.check_device_memory(171, 320, 320, torch.device("cuda"))
    on_device.check_device_memory(171, 320, 320, torch.device("cpu"))
