"""The whole pseudo-mask stage, from JPEG files to mask files, against the slowest of its parts alone.

The network is a small SelfMask, so that reading, solver and files weigh as much as they can: with the published one on
a CPU, the network would hide everything else. On a GPU (`--device cuda`) the published network runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from benchmarks.bilateral import make_picture, plain_solver
from benchmarks.harness import Context, Measurement, benchmark
from networks.selfmask import SelfMask
from pseudo_labels.finishing import FinishSettings, finish_mask
from pseudo_labels.mask_predictors import SaliencyPredictor
from pseudo_labels.mask_stage import make_pseudo_masks
from pseudo_labels.network_input import normalise, predict_masks, rebuild_reference, reference_levels
from pseudo_labels.picture_stream import MaskJob, Picture, PictureDataset
from pseudo_labels.preparation import resize_image, resize_mask
from pseudo_labels.store import write_mask
from utils.images import read_rgb

NUM_IMAGES, SIZES, SHORTER_SIDE, BATCH_SIZE = 12, ((375, 500), (500, 375)), 256, 4


@benchmark("pseudo_masks")
def measure(context: Context) -> Iterator[Measurement]:
    """Images per second of the stage in one process, and with workers where there are cores for them."""
    network = _make_network(context)
    with tempfile.TemporaryDirectory() as folder:
        jobs = _write_jobs(Path(folder))
        parts = _time_parts(context, network, jobs)
        slowest = max(parts, key=parts.__getitem__)
        note = "alone, per picture: " + ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in parts.items())
        _run_stage(context, network, jobs, 0)
        ours, plain = context.time_pair(
            lambda: _run_stage(context, network, jobs, 0), lambda: _run_plain(context, network, jobs), plain_repeats=2
        )
        one_process = Measurement(
            name="pseudo_masks",
            workload=f"JPEG 375x500 to mask file, {SHORTER_SIDE} px, one process",
            seconds=ours.seconds / NUM_IMAGES,
            spread=ours.spread / NUM_IMAGES,
            plain_seconds=plain.seconds / NUM_IMAGES,
            limit="its parts alone, one after the other",
            limit_seconds=sum(parts.values()),
            peak_mib=context.peak_memory(lambda: _run_stage(context, network, jobs, 0)),
            plain_peak_mib=context.peak_memory(lambda: _run_plain(context, network, jobs)),
            note=note,
        )
        yield one_process
        num_workers = max(1, torch.get_num_threads())
        yield replace(
            one_process,
            workload=f"the same, {num_workers} reading and {num_workers} refining workers",
            seconds=_steady_seconds(context, network, jobs, num_workers),
            spread=0.0,
            limit=f"its slowest part alone ({slowest})",
            limit_seconds=parts[slowest],
            peak_mib=None,
            plain_peak_mib=None,
            note="per picture once the workers run; starting them is left out",
        )


def _make_network(context: Context) -> SelfMask:
    torch.manual_seed(context.seed)
    on_gpu = context.device.type == "cuda"
    network = SelfMask() if on_gpu else SelfMask(width=128, num_layers=4, num_decoder_layers=2)
    return network.to(context.device).eval()


def _write_jobs(folder: Path) -> list[MaskJob]:
    jobs = []
    for number in range(NUM_IMAGES):
        image, _ = make_picture(*SIZES[number % len(SIZES)], seed=number)
        path = folder / f"{number}.jpg"
        Image.fromarray(image).save(path, quality=90)
        jobs.append(MaskJob(path, folder / "masks" / f"{number}.json"))
    return jobs


def _time_parts(context: Context, network: SelfMask, jobs: list[MaskJob]) -> dict[str, float]:
    """Seconds per picture of reading, network and finishing, each alone."""
    dataset = PictureDataset(jobs, SHORTER_SIDE)
    pictures = [dataset[number] for number in range(len(jobs))]
    batches = _equal_batches(pictures)
    settings = FinishSettings(levels=reference_levels())
    masks = [mask.cpu().numpy() for picture in pictures for mask in _predict(context, network, [picture])]

    def finish() -> None:
        for picture, mask in zip(pictures, masks, strict=True):
            path = jobs[picture.number].mask_path
            finish_mask(settings, picture.image.numpy(), mask, picture.original_size, path)

    parts = {
        "read and resize": lambda: [dataset[number] for number in range(len(jobs))],
        "network": lambda: [_predict(context, network, batch) for batch in batches],
        "solver and file": finish,
    }
    return {name: context.time(part).seconds / NUM_IMAGES for name, part in parts.items()}


def _equal_batches(pictures: list[Picture]) -> list[list[Picture]]:
    by_shape: dict[tuple[int, ...], list[Picture]] = {}
    for picture in pictures:
        by_shape.setdefault(tuple(picture.image.shape), []).append(picture)
    return [group[i : i + BATCH_SIZE] for group in by_shape.values() for i in range(0, len(group), BATCH_SIZE)]


def _predict(context: Context, network: SelfMask, pictures: list[Picture]) -> list[torch.Tensor]:
    return predict_masks(network, [picture.image for picture in pictures], device=context.device)


def _run_stage(context: Context, network: SelfMask, jobs: list[MaskJob], num_workers: int) -> float:
    """Make all masks anew; returns the seconds."""
    for job in jobs:
        job.mask_path.unlink(missing_ok=True)
    report = make_pseudo_masks(
        [job.image_path for job in jobs],
        [job.mask_path for job in jobs],
        SaliencyPredictor(network),
        shorter_side=SHORTER_SIDE,
        batch_size=BATCH_SIZE,
        num_workers=num_workers,
        device=context.device,
    )
    if report.made != len(jobs):
        raise RuntimeError(f"{report.made} of {len(jobs)} masks were made")
    return report.seconds


def _steady_seconds(context: Context, network: SelfMask, jobs: list[MaskJob], num_workers: int) -> float:
    """Seconds per picture with workers: from runs of different lengths, so that the workers' start cancels out."""
    many = [
        MaskJob(job.image_path, job.mask_path.with_name(f"{copy}-{job.mask_path.name}"))
        for copy in range(10)
        for job in jobs
    ]
    seconds = []
    for _ in range(max(1, context.repeats // 2)):
        short = _run_stage(context, network, many[: 2 * NUM_IMAGES], num_workers)
        long = _run_stage(context, network, many, num_workers)
        seconds.append((long - short) / (len(many) - 2 * NUM_IMAGES))
    return max(sorted(seconds)[len(seconds) // 2], 1e-9)


@torch.inference_mode()
def _run_plain(context: Context, network: SelfMask, jobs: list[MaskJob]) -> None:
    """One picture at a time: read, network, the plain solver with its discarded work, file."""
    for job in jobs:
        image = read_rgb(job.image_path)
        normalised = normalise(torch.from_numpy(resize_image(image, SHORTER_SIDE).copy()))
        mask = network.predict(normalised[None].to(context.device)).mask[0].cpu().numpy()
        soft, _ = plain_solver(rebuild_reference(normalised), mask)
        final = resize_mask(soft > 0.5, image.shape[0], image.shape[1])
        write_mask(job.mask_path, final)
