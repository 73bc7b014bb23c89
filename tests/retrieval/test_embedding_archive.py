"""The published file of image embeddings, made from pictures: its numbers and the order of its keys."""

from __future__ import annotations

import numpy as np
import torch

from retrieval.convert import write_embedding_pickle
from retrieval.embed import embed_images
from retrieval.index import ArrayIndex, open_index
from retrieval.unpickle import read_tensor_dict


def test_float32_embeddings_keep_what_the_network_gave(clip, make_pictures, tmp_path):
    folder = make_pictures(5)
    stored = {}
    for dtype in (torch.float16, torch.float32):
        embed_images([folder], tmp_path / str(dtype), clip, num_workers=0, dtype=dtype)
        index = open_index(tmp_path / str(dtype))
        stored[dtype] = torch.from_numpy(np.concatenate([block for _, block in index.blocks(2)]))
        assert stored[dtype].dtype == dtype
    norms = stored[torch.float32].double().norm(dim=1)
    assert (norms - 1).abs().max() < 1e-6
    assert torch.equal(stored[torch.float32].half(), stored[torch.float16])


def test_a_part_without_a_readable_picture_keeps_the_type(clip, make_pictures, tmp_path):
    folder = make_pictures(3)
    (folder / "picture_2.jpg").write_bytes(b"nothing")
    report = embed_images([folder], tmp_path / "e", clip, num_workers=0, part_size=1, dtype=torch.float32)
    assert (report.num_embedded, report.num_unreadable) == (2, 1)
    assert [block.dtype for _, block in open_index(tmp_path / "e").blocks(9)] == [np.float32] * 2


def test_keys_come_in_the_order_of_the_paths_as_text(tmp_path):
    names = ["b/x_10.JPEG", "b/x_9.JPEG", "a/y_2.JPEG", "a/y_1.JPEG", "c/z.JPEG"]
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    for block_size in (1, 2, 9):
        write_embedding_pickle(ArrayIndex(rows, names), tmp_path / "e.pkl", block_size=block_size)
        found = read_tensor_dict(tmp_path / "e.pkl")
        assert list(found) == ["y_1.JPEG", "y_2.JPEG", "x_10.JPEG", "x_9.JPEG", "z.JPEG"]
        assert torch.equal(torch.stack(list(found.values())), torch.from_numpy(rows[[3, 2, 0, 1, 4]]))
