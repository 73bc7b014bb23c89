"""Sample synthesis: whole training samples from JPEG files and pseudo-mask files, against the plain way.

The plain way follows the paper's code: every picture is decoded and augmented whole, labels are int64, pasting moves
normalised float pictures. Both ways are given the same random decisions, and their results are compared.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.transforms import functional as tv

from benchmarks.harness import Context, Measurement, benchmark
from datasets.batch import IMAGENET_MEAN, IMAGENET_STD, collate_samples
from datasets.geometric import GeometricDraws, draw_geometric
from datasets.index_dataset import IndexDataset, place_randomly
from datasets.photometric import PhotometricDraws, draw_photometric
from datasets.pictures import read_index_image
from pseudo_labels.store import read_mask, write_mask
from utils.files import read_json

NUM_IMAGES, NUM_CATEGORIES, NUM_SAMPLES, SIDE = 48, 8, 24, 384
RECIPES = {"samples": 10, "samples_namedmask": 2}  # stage -> objects per sample at most: ZUTIS, NamedMask
SIZES = ((375, 500), (500, 375), (333, 500), (768, 1024))  # as index pictures have them
SEED = 0


@benchmark("samples")
def measure(context: Context) -> Iterator[Measurement]:
    """Time and memory per sample of 384², as ZUTIS (1 to 10 objects) and as NamedMask (1 or 2) draw them."""
    with tempfile.TemporaryDirectory() as folder:
        for name, max_num_objects in RECIPES.items():
            dataset = make_dataset(Path(folder) / name, max_num_objects)
            check_equal(dataset)
            yield measure_samples(context, dataset, name)


def measure_samples(context: Context, dataset: IndexDataset, name: str) -> Measurement:
    """One dataset against the plain way and against decoding its pictures."""
    positions = range(NUM_SAMPLES)
    ours, plain = context.time_pair(
        lambda: [collate_samples([dataset[i]]) for i in positions],
        lambda: [plain_sample(dataset, i) for i in positions],
        plain_repeats=min(context.repeats, 3),
    )
    opened = opened_pictures(dataset, positions)
    decode = context.time(lambda: [read_index_image(path) for path in opened])
    return Measurement(
        name=name,
        workload=f"{SIDE}x{SIDE}, 1-{dataset.max_num_objects} objects, JPEG and mask files to uint8 sample",
        seconds=ours.seconds / NUM_SAMPLES,
        spread=ours.spread / NUM_SAMPLES,
        plain_seconds=plain.seconds / NUM_SAMPLES,
        limit="decoding the visible JPEGs",
        limit_seconds=decode.seconds / NUM_SAMPLES,
        peak_mib=context.peak_memory(lambda: dataset[1]),
        plain_peak_mib=context.peak_memory(lambda: plain_sample(dataset, 1)),
        note=f"equal results on {NUM_SAMPLES} samples; {len(opened)} pictures opened of {num_drawn(dataset)} drawn",
    )


def make_dataset(folder: Path, max_num_objects: int = 10) -> IndexDataset:
    """Pictures of natural smoothness and blob-shaped masks on disk, and the data set over them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    paths = []
    for number, size in zip(range(NUM_IMAGES), itertools.cycle(SIZES)):
        coarse = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.float32)
        image = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:03d}.jpg")
        Image.fromarray(image).save(paths[-1], quality=90)
        blob = cv2.resize(rng.random((6, 6), dtype=np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
        rows, columns = np.ogrid[: size[0], : size[1]]
        centre = np.hypot(rows / size[0] - 0.5, columns / size[1] - 0.5)
        write_mask(paths[-1].with_suffix(".json"), (blob - 2 * centre) > -0.1)
    categories = [f"category {number}" for number in range(NUM_CATEGORIES)]
    archive = {name: paths[number::NUM_CATEGORIES] for number, name in enumerate(categories)}
    return IndexDataset(
        archive,
        categories=categories,
        mask_path=lambda path, _: path.with_suffix(".json"),
        read_mask=read_mask,
        image_size=SIDE,
        random_duplicate=max_num_objects > 2,
        max_num_objects=max_num_objects,
        seed=SEED,
    )


def check_equal(dataset: IndexDataset) -> None:
    """Raises RuntimeError unless both ways give the same samples."""
    for position in range(NUM_SAMPLES):
        batch = collate_samples([dataset[position]]).normalised()
        image, semantic, masks = plain_sample(dataset, position)
        # Normalising bytes in another order of operations moves the last bit of a float.
        same = torch.allclose(batch.images[0], image, rtol=0, atol=1e-5)
        if not (
            same and torch.equal(batch.semantic[0].long(), semantic) and torch.equal(batch.instance_masks[0], masks)
        ):
            raise RuntimeError(f"sample {position} differs from the plain way")


def opened_pictures(dataset: IndexDataset, positions: range) -> list[Path]:
    """Every picture that making these samples opens, repetitions included."""
    opened: list[Path] = []
    original = dataset.read_image
    dataset.read_image = lambda pick, *rest: opened.append(pick.path) or original(pick, *rest)
    try:
        for position in positions:
            dataset[position]
    finally:
        del dataset.read_image
    return opened


def num_drawn(dataset: IndexDataset) -> int:
    """Number of pictures drawn for all samples."""
    return sum(len(dataset[position].category_ids) for position in range(NUM_SAMPLES))


def plain_sample(dataset: IndexDataset, position: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised image (3, S, S), semantic int64 (S, S), instance masks (n, S, S), made the plain way."""
    rng = np.random.default_rng((dataset.seed, position))
    picks = dataset.draw_picks(rng)
    sizes = [read_json(dataset.mask_path(pick.path, pick.category))["size"] for pick in picks]
    draws = [
        (draw_geometric(rng, size, SIDE, dataset.scale_range), draw_photometric(rng, dataset.photometric))
        for size in sizes
    ]
    place = partial(place_randomly, rng)
    kernel = dataset.photometric.kernel_width(SIDE)
    image = semantic = instance = None
    for number, (pick, (geometric, photometric)) in enumerate(zip(picks, draws, strict=True), start=1):
        picture = Image.open(pick.path).convert("RGB")
        mask = torch.from_numpy(coco_mask.decode(read_json(dataset.mask_path(pick.path, pick.category)))).long()
        picture, mask = _plain_geometric(picture, mask, geometric)
        pixels = tv.to_tensor(_plain_photometric(picture, photometric, kernel))
        pixels = tv.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD)
        labels = torch.where(mask == 1, dataset.image_label(pick.path), mask)
        numbers = torch.where(mask == 1, number, mask)
        if image is None:
            image, semantic, instance = pixels, labels, numbers
        else:
            _plain_paste((image, semantic, instance), (pixels, labels, numbers), place)
    return image, semantic, torch.stack([instance == number for number in range(1, len(picks) + 1)])


def _plain_geometric(picture: Image.Image, mask: Tensor, draws: GeometricDraws) -> tuple[Image.Image, Tensor]:
    height, width = int(mask.shape[0] * draws.scale), int(mask.shape[1] * draws.scale)
    picture = tv.resize(picture, [height, width], tv.InterpolationMode.BILINEAR)
    mask = torch.nn.functional.interpolate(mask[None, None].float(), size=(height, width), mode="nearest")[0].long()
    fill = tuple(np.array(picture).mean(axis=(0, 1)).astype(np.uint8).tolist())
    rows, columns = max(SIDE - height, 0), max(SIDE - width, 0)
    padding = [
        columns if draws.pad_left else 0,
        rows if draws.pad_top else 0,
        0 if draws.pad_left else columns,
        0 if draws.pad_top else rows,
    ]
    picture, mask = tv.pad(picture, padding, fill), tv.pad(mask, padding, 255)[0]
    picture = tv.crop(picture, draws.top, draws.left, SIDE, SIDE)
    mask = tv.crop(mask, draws.top, draws.left, SIDE, SIDE)
    return (tv.hflip(picture), tv.hflip(mask)) if draws.flip else (picture, mask)


def _plain_photometric(picture: Image.Image, draws: PhotometricDraws, kernel: int) -> Image.Image:
    if draws.jitter is not None:
        for step in draws.jitter.order:
            picture = getattr(tv, f"adjust_{step}")(picture, getattr(draws.jitter, step))
    if draws.greyscale:
        picture = tv.to_grayscale(picture, num_output_channels=3)
    if draws.blur_sigma is not None:
        picture = Image.fromarray(cv2.GaussianBlur(np.array(picture), (kernel, kernel), draws.blur_sigma))
    return picture


def _plain_paste(target: tuple[Tensor, ...], source: tuple[Tensor, ...], place: partial) -> None:
    pixels = (source[1] > 0) & (source[1] < 255)
    if not pixels.any():
        return
    rows, columns = torch.where(pixels)
    top, bottom, left, right = int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())
    y, x = place(SIDE - (bottom - top), SIDE - (right - left))
    pixels = pixels[top:bottom, left:right]
    for canvas, new in zip(target, source, strict=True):
        region = canvas[..., y : y + bottom - top, x : x + right - left]
        region[...] = torch.where(pixels, new[..., top:bottom, left:right], region)
