"""Evaluation after the forward pass: label map, instances, counts and records of one picture; and COCO AP of many.

The plain way follows the paper's code: logits of all classes at full size, every query resized and stored, the vote as
one (Q, h, w, D) product, suppression as a loop over full-size masks, confusion and codes on the host, one by one.
"""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from benchmarks.harness import Context, Measurement, benchmark
from evaluation.coco import evaluate_coco
from evaluation.instances import Record, encode_masks, instances_to_records
from evaluation.semantic import SemanticScores
from networks.zutis_prediction import predict_instances, predict_semantic

SIZE, GRID, NUM_QUERIES, NUM_CATEGORIES, WIDTH = (480, 640), (60, 80), 100, 81, 512  # ViT-B/16 on a COCO picture
NUM_IMAGES, OBJECTS = 200, 7  # COCO has 7.3 objects per picture


class Outputs(NamedTuple):
    """What the network leaves of one picture, and its truth."""

    mask_proposals: Tensor  # (1, 1, Q, h, w), the last layer
    patch_tokens: Tensor  # (1, h, w, D)
    text: Tensor  # (N, D)
    label: Tensor  # int16, (H, W)


@benchmark("evaluation")
def measure(context: Context) -> Iterator[Measurement]:
    """Time and memory per picture, and seconds per COCO scoring."""
    outputs = Outputs(*(tensor.to(context.device) for tensor in make_outputs(context.generator())))
    scores = SemanticScores(NUM_CATEGORIES, context.device)
    confusion = np.zeros((NUM_CATEGORIES, NUM_CATEGORIES))
    num_records = check_equal(outputs)
    with torch.inference_mode():
        ours, plain = context.time_pair(
            lambda: process(outputs, scores), lambda: process_plainly(outputs, confusion), plain_repeats=2
        )
        logits = torch.rand(1, NUM_CATEGORIES, *GRID, device=context.device)
        resize = context.time(lambda: F.interpolate(logits, SIZE, mode="bilinear"))
        yield Measurement(
            name="evaluation",
            workload=f"{SIZE[0]}x{SIZE[1]}, {NUM_CATEGORIES} classes, {NUM_QUERIES} queries: to counts and records",
            seconds=ours.seconds,
            spread=ours.spread,
            plain_seconds=plain.seconds,
            limit="the library's bilinear resize of the logits alone",
            limit_seconds=resize.seconds,
            peak_mib=context.peak_memory(lambda: process(outputs, scores)),
            plain_peak_mib=context.peak_memory(lambda: process_plainly(outputs, confusion)),
            note=f"same counts and the same {num_records} records; forward pass excluded",
        )
    yield measure_coco(context)


def measure_coco(context: Context) -> Measurement:
    """COCO AP of many pictures, against pycocotools."""
    document, records = make_annotations(context.seed)
    difference = abs(evaluate_coco(document, records)["AP"] - score_plainly(document, records))
    if difference > 1e-9:
        raise RuntimeError(f"AP differs from pycocotools' by {difference}")
    ours, plain = context.time_pair(
        lambda: evaluate_coco(document, records), lambda: score_plainly(document, records), plain_repeats=2
    )
    return Measurement(
        name="coco_ap",
        workload=f"COCO mask AP of {len(records)} records on {NUM_IMAGES} pictures",
        seconds=ours.seconds,
        spread=ours.spread,
        plain_seconds=plain.seconds,
        note="AP equal to 1e-9; plain: pycocotools",
    )


def process(outputs: Outputs, scores: SemanticScores) -> list[Record]:
    """Our way, as `evaluate_semantic_and_instances` goes it for every picture."""
    labels = predict_semantic(outputs.patch_tokens, outputs.text, SIZE)[0]
    instances = predict_instances(outputs.mask_proposals, outputs.patch_tokens, outputs.text, SIZE)[0]
    scores.update(outputs.label, labels)
    return instances_to_records(*instances, image_id=1, with_box=False)


def process_plainly(outputs: Outputs, confusion: np.ndarray) -> list[Record]:
    """The plain way."""
    tokens, text = outputs.patch_tokens, outputs.text
    logits = F.interpolate(torch.einsum("nd,bhwd->bnhw", text, tokens), SIZE, mode="bilinear", align_corners=False)
    predicted, label = logits.argmax(1)[0].cpu().numpy(), outputs.label.cpu().numpy()
    counted = (label >= 0) & (label < NUM_CATEGORIES)
    index = NUM_CATEGORIES * label[counted].astype(int) + predicted[counted]
    confusion += np.bincount(index, minlength=NUM_CATEGORIES**2).reshape(NUM_CATEGORIES, NUM_CATEGORIES)
    proposals = outputs.mask_proposals[:, -1]
    inside = (proposals > 0.5).float()
    area = inside.sum((2, 3))
    confidence = (proposals * inside).sum((2, 3)) / (area + 1e-7)
    mean_token = (inside[..., None] * tokens[:, None]).sum((2, 3)) / (area[..., None] + 1e-7)  # (1, Q, h, w, D) held
    mean_token = mean_token / (mean_token.norm(dim=-1, keepdim=True) + 1e-7)
    probability, category = torch.sigmoid(5 * mean_token @ text.T).max(-1)
    scores = (confidence * probability)[0].cpu()
    masks = (F.interpolate(proposals, SIZE, mode="bilinear", align_corners=False)[0] > 0.5).cpu()
    return _suppress_plainly(masks, scores, category[0].cpu())


def _suppress_plainly(masks: Tensor, scores: Tensor, categories: Tensor) -> list[Record]:
    records = []
    for category in set(categories.tolist()):
        members = categories == category
        remaining, left = masks[members], scores[members]
        while len(left):
            order = left.argsort(stable=True)
            remaining, left = remaining[order], left[order]
            mask, score = remaining[-1], left[-1]
            if category != 0 and mask.any():
                records.append(_record_plainly(mask.numpy(), float(score), category))
            remaining, left = remaining[:-1], left[:-1]
            kept = []
            for number, other in enumerate(remaining):
                union = (mask | other).sum()
                if (mask & other).sum() / (union + 1e-7) <= 0.3 and left[number] > 0.001:
                    kept.append(number)
            remaining, left = remaining[kept], left[kept]
    return records


def _record_plainly(mask: np.ndarray, score: float, category: int) -> Record:
    code = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    code["counts"] = code["counts"].decode()
    return {
        "category_id": category,
        "segmentation": code,
        "score": score,
        "image_id": 1,
        "image_size": list(mask.shape),
    }


def score_plainly(document: dict[str, Any], records: list[Record]) -> float:
    """AP by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(document)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(records)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def check_equal(outputs: Outputs) -> int:
    """Number of records; RuntimeError unless both ways give the same counts and records."""
    scores, confusion = SemanticScores(NUM_CATEGORIES, outputs.label.device), np.zeros((NUM_CATEGORIES,) * 2)
    with torch.inference_mode():
        ours, plain = process(outputs, scores), process_plainly(outputs, confusion)
    moved = np.abs(scores.confusion() - confusion).sum() / confusion.sum()

    def key(record: Record) -> tuple[int, str]:
        return record["category_id"], record["segmentation"]["counts"]

    if moved > 1e-5 or sorted(map(key, ours)) != sorted(map(key, plain)):
        raise RuntimeError(
            f"results differ from the plain way: {moved:.2g} of the pixels, {len(ours)}/{len(plain)} records"
        )
    return len(ours)


def make_outputs(generator: torch.Generator) -> Outputs:
    """Regions of a few categories, and soft discs around random places as proposals."""
    text = F.normalize(torch.randn(NUM_CATEGORIES, WIDTH, generator=generator), dim=-1)
    present = torch.cat([torch.zeros(3), torch.randint(1, NUM_CATEGORIES, (5,), generator=generator)]).long()
    coarse = present[torch.randint(0, len(present), (4, 5), generator=generator)]
    labels = F.interpolate(coarse[None, None].float(), GRID, mode="nearest")[0, 0].long()
    noise = 0.03 * torch.randn(*GRID, WIDTH, generator=generator)
    tokens = F.normalize(text[labels] + noise, dim=-1)
    centres = torch.rand(NUM_QUERIES, 2, generator=generator) * torch.tensor(GRID)
    radii = GRID[0] * (0.07 + 0.23 * torch.rand(NUM_QUERIES, 1, 1, generator=generator))
    rows, columns = torch.meshgrid(torch.arange(GRID[0]), torch.arange(GRID[1]), indexing="ij")
    distance = ((rows - centres[:, 0, None, None]) ** 2 + (columns - centres[:, 1, None, None]) ** 2).sqrt()
    proposals = torch.sigmoid(radii - distance)
    label = F.interpolate(labels[None, None].float(), SIZE, mode="nearest")[0, 0].short()
    label[:10] = 255
    return Outputs(proposals[None, None], tokens[None], text, label)


def make_annotations(seed: int) -> tuple[dict[str, Any], list[Record]]:
    """A COCO document and records that find most of its objects, roughly."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    images = [{"id": number, "height": SIZE[0], "width": SIZE[1]} for number in range(NUM_IMAGES)]
    annotations: list[dict[str, Any]] = []
    records: list[Record] = []
    for image in images:
        for _ in range(OBJECTS):
            row, column, radius = rng.uniform(0, SIZE[0]), rng.uniform(0, SIZE[1]), rng.uniform(8, 120)
            category = int(rng.integers(1, NUM_CATEGORIES))
            shapes = [(row, column, radius)] + [tuple(x + rng.normal(0, radius / 5) for x in (row, column, radius))] * 2
            masks = np.stack([(rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in shapes])
            codes = encode_masks(torch.from_numpy(masks))
            facts = {"image_id": image["id"], "category_id": category}
            area = float(masks[0].sum())
            annotations.append(
                {"id": len(annotations) + 1, **facts, "iscrowd": 0, "area": area, "segmentation": codes[0]}
            )
            records += [{**facts, "score": float(rng.random()), "segmentation": code} for code in codes[1:]]
    categories = [{"id": number, "name": str(number)} for number in range(1, NUM_CATEGORIES)]
    return {"images": images, "annotations": annotations, "categories": categories}, records
