"""The plain ways that the SelfMask benchmarks compare with give the same results, on tiny inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import pseudo_masks
from benchmarks.bilateral import make_picture, plain_solver
from benchmarks.harness import Context
from benchmarks.selfmask import plain_forward
from pseudo_labels.bilateral_solver import solve
from pseudo_labels.store import read_mask
from tests.pseudo_labels.tiny_selfmask import tiny_selfmask


@pytest.mark.parametrize("size", [(48, 64), (70, 33)])
def test_both_solvers_agree(size: tuple[int, int]):
    image, target = make_picture(*size)
    assert 0 < target.mean() < 1
    soft, region = plain_solver(image, target)
    np.testing.assert_allclose(solve(image, target).soft, soft, atol=1e-9)
    assert region.shape == size


@torch.inference_mode()
def test_both_forward_passes_agree():
    network, images = tiny_selfmask(), torch.randn(2, 3, 45, 70)
    torch.testing.assert_close(plain_forward(network, images), network.predict(images).probability, atol=1e-5, rtol=0)


def test_the_stage_and_the_plain_loop_write_the_same_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pseudo_masks, "SIZES", ((40, 56), (56, 40)))
    monkeypatch.setattr(pseudo_masks, "NUM_IMAGES", 3)
    monkeypatch.setattr(pseudo_masks, "SHORTER_SIDE", 32)
    context, network = Context(repeats=1), tiny_selfmask()
    jobs = pseudo_masks._write_jobs(tmp_path)
    assert pseudo_masks._run_stage(context, network, jobs, 0) > 0
    masks = [read_mask(job.mask_path) for job in jobs]
    for job in jobs:
        job.mask_path.unlink()
    pseudo_masks._run_plain(context, network, jobs)
    for job, mask in zip(jobs, masks, strict=True):
        np.testing.assert_array_equal(read_mask(job.mask_path), mask)
    batches = pseudo_masks._equal_batches([pseudo_masks.PictureDataset(jobs, 32)[i] for i in range(3)])
    assert sorted(len(batch) for batch in batches) == [1, 2]
