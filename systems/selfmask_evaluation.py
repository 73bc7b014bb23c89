"""SelfMask at work: scores on a benchmark, and masks of users' own pictures. Stages of the recipe: `selfmask.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from datasets.saliency import SaliencyBenchmark
from evaluation.pictures import Segmentation
from evaluation.saliency import SaliencyScores
from networks.selfmask import SelfMask
from networks.vit import pad_to_multiple
from pseudo_labels import rle
from pseudo_labels.bilateral_solver import SolverSettings, refine_mask
from pseudo_labels.network_input import normalise, predict_masks, rebuild_reference
from pseudo_labels.preparation import resize_image, resize_mask
from utils.device import autocast
from utils.distributed import shard
from utils.loader import load_batches
from utils.log import progress


@torch.inference_mode()
def predict_queries(network: SelfMask, images: Tensor, *, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """What every query of the last decoder layer proposes, and which one to trust.

    Args:
        network: in evaluation mode, on the device of ``images``.
        images: ImageNet-normalised pictures, (B, 3, H, W).
        precision: "fp32", "bf16" or "fp16".

    Returns:
        probabilities: (B, Q, H, W), float32, enlarged bilinearly.
        best: query with the highest objectness, (B,), int64.
    """
    with autocast(images.device, precision):
        tokens = network.encode(images)
        queries = network.decode(tokens)
        probabilities = network.mask_probabilities(queries, tokens, network.token_grid(images)).float()
        best = network.ffn(queries)[..., 0].argmax(dim=1)
    padded = pad_to_multiple(images, network.patch_size).shape[-2:]
    # Kept for released weights: probabilities are enlarged, not logits.
    probabilities = interpolate(probabilities, size=padded, mode="bilinear", align_corners=False)
    return probabilities[..., : images.shape[-2], : images.shape[-1]], best


def score_benchmark(
    network: SelfMask,
    benchmark: SaliencyBenchmark,
    *,
    device: torch.device | str,
    precision: str = "fp32",
    num_workers: int = 0,
) -> dict[str, float]:
    """Score a network on a salient-object benchmark, one picture at a time at its original size.

    Args:
        network: SelfMask; put on ``device`` and into evaluation mode.
        benchmark: pictures and masks; shared out over the ranks.
        device: where the network runs.
        precision: "fp32" as published, "bf16" or "fp16".
        num_workers: processes that read.

    Returns:
        Means over all pictures of all ranks, see `evaluation.saliency.SaliencyScores.means`.

    Source: SelfMask, section 4.1.
    """
    network.to(device).eval()
    scores = SaliencyScores()
    mine = shard(range(len(benchmark)))
    items = load_batches(benchmark, [[index] for index in mine], collate=_only, num_workers=num_workers)
    for item in progress(items, total=len(mine), description="evaluation", unit="picture"):
        images = normalise(torch.from_numpy(item.image).to(device))[None]
        probabilities, best = predict_queries(network, images, precision=precision)
        queries = probabilities[0].cpu().numpy()
        scores.add(queries[int(best)], item.truth, queries)
    return scores.gather().means()


def _only(items: list[Any]) -> Any:
    return items[0]


def segment_picture(
    network: SelfMask,
    picture: np.ndarray,
    *,
    shorter_side: int,
    solver: SolverSettings | None,
    device: torch.device | str,
    precision: str = "fp32",
) -> Segmentation:
    """Find the salient object of one picture, as the pseudo-mask stage does.

    Args:
        network: SelfMask in evaluation mode, on ``device``.
        picture: RGB, (H, W, 3), uint8.
        shorter_side: size at which the network sees it.
        solver: constants of the bilateral solver; None: no refinement.
        device: where the network is.
        precision: "fp32", "bf16" or "fp16".

    Returns:
        Labels 0 and 1 at the picture's size, and one record with the share of the picture as score.
    """
    small = torch.from_numpy(np.array(resize_image(picture, shorter_side)))
    (mask,) = predict_masks(network, [small], device=device, precision=precision)
    mask = mask.cpu().numpy()
    if solver is not None:
        mask = refine_mask(rebuild_reference(normalise(small)), mask, solver)
    mask = resize_mask(mask, *picture.shape[:2]).astype(bool)
    return Segmentation(mask.astype(np.int16), [_record(mask)] if mask.any() else [])


def _record(mask: np.ndarray) -> dict[str, Any]:
    """COCO result record of a mask; there is one object per picture, so it has the full score."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [int(columns[0]), int(rows[0]), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]
    return {"category_id": 1, "segmentation": rle.encode(mask), "bbox": box, "score": 1.0}
