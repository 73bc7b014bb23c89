"""The pseudo-mask stage as a process of its own, for tests that kill it or run several: PICTURES MASKS DELAY WORKERS.

Everything is imported inside `main`, as worker processes import this module again.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main(picture_dir: str, mask_dir: str, delay: str, num_workers: str) -> None:
    import torch
    import torch.distributed as dist

    from pseudo_labels.mask_predictors import SaliencyPredictor
    from pseudo_labels.mask_stage import make_pseudo_masks
    from pseudo_labels.store import pseudo_mask_path
    from tests.pseudo_labels.tiny_selfmask import tiny_selfmask
    from utils import distributed

    torch.set_num_threads(1)
    if distributed.world_size() > 1:
        dist.init_process_group("gloo")
    network = tiny_selfmask()
    predict = network.predict

    def slow_predict(images: torch.Tensor) -> object:
        time.sleep(float(delay))
        return predict(images)

    network.predict = slow_predict
    images = sorted(Path(picture_dir).glob("*.png"))
    masks = [pseudo_mask_path(image, index_dir=picture_dir, pseudo_mask_dir=mask_dir) for image in images]
    report = make_pseudo_masks(
        images,
        masks,
        SaliencyPredictor(network),
        shorter_side=32,
        batch_size=2,
        num_workers=int(num_workers),
        num_finishers=int(num_workers),
        refused_path=Path(mask_dir) / "refused.txt",
        preview_path=Path(mask_dir) / "preview.png",
        num_preview=3,
    )
    print(distributed.rank(), report.made, report.skipped, len(report.refused))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
