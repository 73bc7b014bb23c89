"""Training several experts at once: shared out over the ranks of `torchrun`, and side by side on each rank's device.

An expert is small and learns alone; it needs no other process. Each goes on by itself where it was cut off.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from networks.deeplab import DeepLabV3Plus
from pseudo_labels.finishing import end_with_parent
from pseudo_labels.mask_stores import MaskStore
from systems.experts import ExpertGroup, expert_settings, train_expert
from systems.stages import Archive
from utils.device import select_device
from utils.distributed import all_gather_objects, patient_group, shard, world_size
from utils.errors import UserError
from utils.log import get_logger, setup_logging
from utils.settings import NamedMaskSettings

logger = get_logger(__name__)
MAX_AT_ONCE = 4
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
_PROCESS_BYTES = 1 << 30  # what a process takes on a GPU before it does anything
_RESERVE = 1.3  # workspaces and fragmentation


@dataclass(frozen=True)
class ExpertJob:
    """One expert to be trained.

    Attributes:
        group: its categories.
        archive: their pictures.
        path: its run folder.
    """

    group: ExpertGroup
    archive: Archive
    path: Path


def train_experts(settings: NamedMaskSettings, jobs: Sequence[ExpertJob], masks: MaskStore) -> None:
    """Train all experts; every rank takes its share, and several of them side by side where memory allows.

    Args:
        settings: of the run that needs the experts.
        jobs: the experts.
        masks: SelfMask's masks of their pictures.

    Raises:
        UserError: on every rank, if an expert could not be trained on one of them; finished ones are kept.
    """
    group = patient_group()  # one rank may have an expert more to train than another
    own, device = shard(jobs), select_device(settings.device)
    at_once = min(experts_at_once(settings, device), max(len(own), 1))
    logger.info("experts: %d to train, %d at once on %s in %d processes", len(jobs), at_once, device, world_size())
    problem = None
    try:
        if world_size() == 1 and at_once == 1:
            for number, job in enumerate(own, start=1):
                train_expert(settings, job.group, job.archive, masks, job.path)
                _tell(number, len(own), job)
        elif own:
            _train_in_workers(settings, own, masks, device, at_once)
    except UserError as error:
        problem = str(error)
    problems = [text for text in all_gather_objects(problem, group) if text is not None]
    if problems:
        raise UserError(problems[0])


def _train_in_workers(
    settings: NamedMaskSettings, jobs: Sequence[ExpertJob], masks: MaskStore, device: torch.device, at_once: int
) -> None:
    settings = settings.model_copy(update={"device": str(device)})
    threads = max(1, torch.get_num_threads() // at_once)
    # Spawned, not forked: forking a process that holds a GPU and threads can hang the child.
    pool = ProcessPoolExecutor(
        at_once, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    )
    try:
        futures = {pool.submit(train_expert, settings, job.group, job.archive, masks, job.path): job for job in jobs}
        for number, future in enumerate(as_completed(futures), start=1):
            future.result()
            _tell(number, len(jobs), futures[future])
    except BrokenProcessPool as error:
        raise UserError(
            "A process that trains experts was killed, probably because memory ran out. Run the same command again "
            "with experts.at_once=1: finished experts are kept, the others go on from their checkpoints."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(num_threads: int) -> None:
    """A process that trains alone, whatever group its parent belongs to, and ends with it."""
    end_with_parent()
    for name in _RANK_VARIABLES:
        os.environ.pop(name, None)
    torch.set_num_threads(num_threads)
    setup_logging("WARNING")


def _tell(number: int, total: int, job: ExpertJob) -> None:
    logger.info("expert %d of %d is trained: %s, %s", number, total, job.group.name, job.path)


def experts_at_once(settings: NamedMaskSettings, device: torch.device) -> int:
    """How many experts are trained side by side: as set, or as many as cores and memory carry, up to 4."""
    if settings.experts.at_once != "auto":
        return settings.experts.at_once
    if device.type == "cpu":
        return min(torch.get_num_threads(), MAX_AT_ONCE)
    free, _ = torch.cuda.mem_get_info(device)
    own = expert_settings(settings)
    need = training_bytes(own.backbone, own.train_loader.batch_size // own.accumulate_steps, own.train_image_size)
    return max(1, min(MAX_AT_ONCE, int(free // (_PROCESS_BYTES + _RESERVE * need))))


def training_bytes(backbone: str, batch_size: int, image_size: int) -> int:
    """Memory that one training pass of an expert needs: weights, gradients, Adam, and what is kept for the gradients.

    It is counted, not guessed: a pass without data records the tensors that autograd would keep.

    Args:
        backbone: see `networks.deeplab.BACKBONES`.
        batch_size: samples in the pass.
        image_size: their side in pixels.
    """
    kept: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        tensors.append(tensor)  # a freed storage could lend its address to the next one
        return tensor

    tensors: list[torch.Tensor] = []
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        network = DeepLabV3Plus(backbone, 2)
        network(torch.empty(batch_size, 3, image_size, image_size))
    return sum(kept.values()) + 3 * _num_bytes(network)


def _num_bytes(network: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
