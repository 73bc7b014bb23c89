"""ReCo's two long stages, with networks of the published sizes: references of a category, and label PNGs of a split.

Weights are random, which changes no time. A category: retrieved JPEGs to its reference, against the bare forward passes
of both encoders. Label PNGs: JPEG to `dt` and `dt_crf`, against the slowest of the parts; the CRF has one thread beside
the network's.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from torch import Tensor

from benchmarks.bilateral import make_picture
from benchmarks.cosegmentation import plain_seeds
from benchmarks.harness import Context, Measurement, benchmark
from datasets.picture_folder import PictureFolder
from networks.dense_clip import DenseClipResNet
from networks.patch_encoders import PatchEncoder
from networks.patch_features import VitPatchFeatures
from networks.reco import Reco
from networks.vit import VisionTransformer
from pseudo_labels.dense_crf import DenseCrfSettings, dense_crf_labels
from pseudo_labels.label_maps import LabelWriter
from pseudo_labels.reference_pictures import make_references, picture_batch
from pseudo_labels.references import ReferenceSettings
from systems.reco_labels import LabelFolder, write_pseudo_labels
from systems.reco_predict import CrfRefiner, RecoSegmenter, crf_input
from utils.images import read_rgb
from utils.normalisation import normalise_images

NUM_RETRIEVED, SIZE = 50, (375, 500)
NUM_CLASSES, SIDE, BATCH_SIZE, SHORT, LONG = 27, 320, 4, 8, 24
KINDS = ("dt", "dt_crf")


@benchmark("reco_pipeline")
def measure(context: Context) -> Iterator[Measurement]:
    """Seconds of a category's reference, and of a picture's label PNGs."""
    torch.manual_seed(context.seed)
    encoder = PatchEncoder(
        VitPatchFeatures(VisionTransformer(width=384, patch_size=16, native_grid=14, distilled=True)), fit="drop"
    )
    tower = DenseClipResNet(ModifiedResNet([6, 8, 18, 8], 768, heads=48, image_size=384, width=96))
    networks = [network.to(context.device).eval().requires_grad_(False) for network in (encoder, tower)]
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        yield _measure_category(context, *networks, Path(name))
        yield _measure_labels(context, *networks, Path(name))


# ---- a category -----------------------------------------------------------------------------------------------------


def _measure_category(context: Context, encoder: PatchEncoder, tower: DenseClipResNet, folder: Path) -> Measurement:
    paths = _write_pictures(folder / "retrieved", NUM_RETRIEVED, SIZE)
    text = F.normalize(torch.randn(tower.width, generator=context.generator()), dim=0).to(context.device)
    settings = ReferenceSettings(num_images=NUM_RETRIEVED, context_elimination=False)
    images = normalise_images(picture_batch([read_rgb(path) for path in paths])).to(context.device)

    def ours() -> None:
        options = {"encoder": encoder, "tower": tower, "text": {"sky": text}, "settings": settings}
        make_references(["sky"], {"sky": paths}, **options, device=context.device, num_workers=0)

    timing, plain = context.time_pair(ours, lambda: _plain_category(encoder, tower, text, paths), plain_repeats=1)
    forward = context.time(lambda: (encoder(images), tower(images)), min_seconds=0)
    return Measurement(
        name="reco_pipeline",
        workload=f"a category: {NUM_RETRIEVED} JPEGs of {SIZE[0]}x{SIZE[1]} to its reference, DeiT-S/16 and RN50x16",
        seconds=timing.seconds,
        spread=timing.spread,
        plain_seconds=plain.seconds,
        limit="the bare forward passes of both encoders",
        limit_seconds=forward.seconds,
        peak_mib=context.peak_memory(ours),
        note=f"a category takes {timing.seconds / forward.seconds - 1:.1%} longer than its forward passes",
    )


def _plain_category(encoder: PatchEncoder, tower: DenseClipResNet, text: Tensor, paths: list[Path]) -> Tensor:
    """One picture at a time through both networks, then the plain seeds, and the mean of the seeds' features."""
    features, weights = [], []
    for path in paths:
        image = normalise_images(picture_batch([read_rgb(path)])).to(text.device)
        features.append(encoder(image))
        cosines = torch.einsum("bdhw,d->bhw", F.normalize(tower(image), dim=1), text)
        grid = features[-1].shape[-2:]
        weights.append(F.interpolate(torch.sigmoid(10 * cosines)[:, None], grid, mode="bilinear")[:, 0])
    stacked = torch.cat(features)
    seeds = plain_seeds(stacked, torch.cat(weights))
    unit = F.normalize(stacked, dim=1).flatten(2)
    return F.normalize(unit[torch.arange(len(unit)), :, seeds].mean(dim=0), dim=0)


# ---- label PNGs -----------------------------------------------------------------------------------------------------


def _measure_labels(context: Context, encoder: PatchEncoder, tower: DenseClipResNet, folder: Path) -> Measurement:
    generator = context.generator()
    vectors, text = (
        F.normalize(torch.randn(NUM_CLASSES, width, generator=generator), dim=1).to(context.device)
        for width in (encoder.width, tower.width)
    )
    network = Reco(encoder, vectors, tower=tower, text=text, temperature=10.0).to(context.device).eval()
    segmenter = RecoSegmenter(network, context.device)
    pictures = _write_pictures(folder / "pictures", LONG, (SIDE, SIDE))
    names = [f"category {i}" for i in range(NUM_CLASSES)]
    split = PictureFolder([pictures[0].parent], names, shorter_side=SIDE, ignore_index=255)
    parts = _time_parts(context, segmenter, split, folder / "parts")
    slowest = max(parts, key=parts.__getitem__)
    seconds = _steady_seconds(context, segmenter, split, folder / "labels")
    return Measurement(
        name="reco_pipeline",
        workload=f"label PNGs: JPEG {SIDE}x{SIDE} to dt and dt_crf, {NUM_CLASSES} classes, one CRF thread",
        seconds=seconds,
        plain_seconds=sum(parts.values()),
        limit=f"its slowest part alone ({slowest})",
        limit_seconds=parts[slowest],
        note="plain: one part after the other; alone, per picture: "
        + ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in parts.items()),
    )


def _time_parts(context: Context, segmenter: RecoSegmenter, split: PictureFolder, folder: Path) -> dict[str, float]:
    """Seconds per picture of reading, network, CRF and writing, each alone."""
    images = torch.stack([torch.from_numpy(split[i].image) for i in range(BATCH_SIZE)]).to(context.device)
    predictions = segmenter(images, (SIDE, SIDE))
    maps = [prediction.labels.to("cpu", torch.uint8).numpy() for prediction in predictions]

    def write() -> None:
        with LabelWriter() as writer:
            for number, labels in enumerate(maps * len(KINDS)):
                writer.write(folder / f"{number}.png", labels)

    parts = {
        "reading": lambda: [split[i] for i in range(BATCH_SIZE)],
        "network": lambda: segmenter(images, (SIDE, SIDE)),
        "CRF": lambda: [dense_crf_labels(*crf_input(prediction.refinable)) for prediction in predictions],
        "writing": write,
    }
    return {name: context.time(part).seconds / BATCH_SIZE for name, part in parts.items()}


def _steady_seconds(context: Context, segmenter: RecoSegmenter, split: PictureFolder, folder: Path) -> float:
    """Seconds per picture once the stage runs: from runs of different lengths, so that its start cancels out."""
    refiner, seconds = CrfRefiner(DenseCrfSettings(), num_threads=1, num_waiting=BATCH_SIZE), []

    def run(number: int, num_pictures: int) -> float:
        labels = LabelFolder(folder / f"{number}_{num_pictures}", split, KINDS)
        options = {"device": context.device, "batch_size": BATCH_SIZE, "num_workers": 1, "num_pictures": num_pictures}
        start = time.perf_counter()
        write_pseudo_labels(labels, segmenter, refiner, **options)
        return time.perf_counter() - start

    for number in range(context.repeats):
        short = run(number, SHORT)
        seconds.append((run(number, LONG) - short) / (LONG - SHORT))
    return max(sorted(seconds)[len(seconds) // 2], 1e-9)


def _write_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number:03d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(make_picture(*size, seed=number)[0]).save(path, quality=90)
    return paths
