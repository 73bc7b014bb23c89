"""Predicted instances as records: run-length codes with score and category, for scoring and for COCO results files.

Masks stay on the device until only their run borders have to be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from pycocotools import mask as mask_api
from torch import Tensor

from utils.files import write_json

Record = dict[str, Any]


class PredictedInstances(Protocol):
    """Instances of one picture, all the same number n."""

    masks: Tensor  # bool, (n, H, W)
    scores: Tensor  # float32, (n,)
    category_ids: Tensor  # int64, (n,), training ids


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Run-length encode binary masks.

    Args:
        masks: bool or 0/1, (n, H, W), on any device.

    Returns:
        One COCO code per mask: {"size": [H, W], "counts": text}.
    """
    height, width = masks.shape[-2:]
    if len(masks) == 0 or height * width == 0:
        return [{"size": [height, width], "counts": ""} for _ in masks]
    if masks.is_cuda:
        codes = mask_api.frPyObjects(_runs(masks), height, width)
    else:
        binary = masks.view(torch.uint8) if masks.dtype == torch.bool else masks.to(torch.uint8)
        columns = binary.transpose(1, 2).contiguous()
        codes = mask_api.encode(columns.numpy().transpose(2, 1, 0))  # (n, W, H) in memory is (H, W, n) column-major
    return [{"size": [height, width], "counts": code["counts"].decode("ascii")} for code in codes]


def _runs(masks: Tensor) -> list[dict[str, Any]]:
    """Uncompressed codes; only the borders of the runs leave the device."""
    num, height, width = masks.shape
    flat = masks.transpose(1, 2).reshape(num, height * width).bool()  # column by column
    before = torch.nn.functional.pad(flat[:, :-1], (1, 0))  # the first run is one of zeros, of length 0 if need be
    rows, places = (flat != before).nonzero(as_tuple=True)
    borders = torch.stack([rows, places]).cpu().numpy()
    codes = []
    for index, start in enumerate(np.searchsorted(borders[0], np.arange(num + 1))[:-1]):
        stop = np.searchsorted(borders[0], index, side="right")
        edges = np.concatenate([[0], borders[1, start:stop], [height * width]])
        codes.append({"size": [height, width], "counts": np.diff(edges).tolist()})
    return codes


def instances_to_records(
    masks: Tensor,
    scores: Tensor,
    category_ids: Tensor,
    *,
    image_id: int | None = None,
    raw_category_ids: Sequence[int] | Mapping[int, int] | None = None,
    category_names: Sequence[str] | None = None,
    with_box: bool = True,
) -> list[Record]:
    """Turn the instances of one picture into records.

    Args:
        masks: bool, (n, H, W), at the size that is scored.
        scores: (n,).
        category_ids: training ids, (n,).
        image_id: number of the picture in its annotations; 0 if not given.
        raw_category_ids: training id -> id in the annotations; training ids are kept if not given.
        category_names: training id -> name, added as `pred_class` if given.
        with_box: add `bbox`.

    Returns:
        One dict per instance: `category_id`, `segmentation` (run-length code), `score`, `image_id`, `image_size`
        [H, W], `bbox` [x0, y0, x1, y1] in inclusive pixel coordinates (*not* COCO's box: see `coco_results`).

    Source: ZUTIS, instance prediction.
    """
    codes = encode_masks(masks)
    boxes = mask_api.toBbox([_bytes(code) for code in codes]) if codes and with_box else np.zeros((len(codes), 4))
    records = []
    for code, (x, y, width, height), score, category in zip(
        codes, boxes.tolist(), scores.tolist(), category_ids.tolist(), strict=True
    ):
        record: Record = {
            "category_id": int(category if raw_category_ids is None else raw_category_ids[category]),
            "segmentation": code,
            "score": score,
            "image_id": 0 if image_id is None else int(image_id),
            "image_size": list(code["size"]),
        }
        if with_box:
            record["bbox"] = [x, y, x + max(width - 1, 0), y + max(height - 1, 0)]
        if category_names is not None:
            record["pred_class"] = category_names[category]
        records.append(record)
    return records


def coco_results(records: Iterable[Record]) -> list[Record]:
    """Records as the COCO results format wants them: `bbox` is [x, y, width, height], nothing but the five keys."""
    results = []
    for record in records:
        code = record["segmentation"]
        results.append(
            {
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "segmentation": code,
                "score": record["score"],
                "bbox": mask_api.toBbox(_bytes(code)).tolist(),
            }
        )
    return results


def write_coco_results(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as a COCO results JSON file, atomically."""
    write_json(path, coco_results(records), indent=False)


def _bytes(code: Mapping[str, Any]) -> dict[str, Any]:
    counts = code["counts"]
    return {"size": list(code["size"]), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
