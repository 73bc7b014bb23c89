"""Records of instances: codes, boxes and ids."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_api

from evaluation import instances
from evaluation.instances import encode_masks, instances_to_records, write_coco_results


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6), num=st.integers(0, 4), height=st.integers(1, 9), width=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)  # fmt: skip
def test_codes_decode_to_the_masks(seed: int, num: int, height: int, width: int, share: float) -> None:
    masks = torch.rand(num, height, width, generator=torch.Generator().manual_seed(seed)) < share
    codes = encode_masks(masks)
    assert [code["size"] for code in codes] == [[height, width]] * num
    for code, mask in zip(codes, masks, strict=True):
        assert np.array_equal(mask_api.decode(code), mask.numpy())
    # What a GPU does (only the borders of the runs are read) gives the same text.
    if num:
        packed = mask_api.frPyObjects(instances._runs(masks), height, width)
        assert [code["counts"].decode() for code in packed] == [code["counts"] for code in codes]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_any_type_of_binary_mask(dtype: torch.dtype) -> None:
    masks = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    assert encode_masks(masks.to(dtype)) == encode_masks(masks)


def test_records_carry_ids_names_and_inclusive_boxes() -> None:
    masks = torch.zeros(2, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 9, 11] = True
    records = instances_to_records(
        masks, torch.tensor([0.75, 0.5]), torch.tensor([2, 1]), image_id=9, raw_category_ids={1: 17, 2: 90},
        category_names=["background", "cat", "dog"],
    )  # fmt: skip
    assert [record["category_id"] for record in records] == [90, 17]
    assert [record["bbox"] for record in records] == [[3, 2, 8, 4], [11, 9, 11, 9]]
    assert [record["pred_class"] for record in records] == ["dog", "cat"]
    assert {record["image_id"] for record in records} == {9}
    assert records[0]["image_size"] == [10, 12]
    assert records[0]["score"] == 0.75
    json.dumps(records)


def test_records_without_an_image_id_are_of_image_0_and_keep_training_ids() -> None:
    records = instances_to_records(torch.ones(1, 2, 3), torch.ones(1), torch.tensor([4]), with_box=False)
    assert records[0].keys() == {"category_id", "segmentation", "score", "image_id", "image_size"}
    assert (records[0]["image_id"], records[0]["category_id"]) == (0, 4)
    assert instances_to_records(torch.ones(0, 2, 3), torch.ones(0), torch.ones(0)) == []


def test_results_file_has_cocos_own_boxes(tmp_path: Path) -> None:
    masks = torch.zeros(1, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    write_coco_results(tmp_path / "r.json", instances_to_records(masks, torch.ones(1), torch.ones(1).long()))
    results = json.loads((tmp_path / "r.json").read_text())
    assert results[0]["bbox"] == [3, 2, 6, 3]  # x, y, width, height
    assert results[0].keys() == {"image_id", "category_id", "segmentation", "score", "bbox"}
