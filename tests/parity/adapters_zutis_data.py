"""ZUTIS cases about data: training samples, labels of benchmarks, colours, folder names."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.batch import collate_samples, unnormalise_image
from datasets.build import build_benchmark
from datasets.coco20k import build_coco20k_subset, parse_coco20k_list
from datasets.geometric import GeometricDraws, crop_image, crop_mask, pad_crop, plan_crop
from datasets.imagenet_s import network_size
from datasets.index_dataset import IndexDataset
from datasets.metadata import benchmark_table
from datasets.photometric import Jitter, PhotometricDraws, PhotometricSettings, apply_photometric
from datasets.synthesis import find_objects, plan_pastes
from pseudo_labels.store import read_mask, write_mask
from tests.parity.compare import Case
from tests.parity.registry import adapter
from utils.drawing import colourise
from utils.naming import experiment_name


def read_geometric(draws: dict) -> GeometricDraws:
    """The geometric decisions of a case, in the project's words."""
    sides = draws["padding"]
    return GeometricDraws(draws["scale"], "top" in sides, "left" in sides, draws["top"], draws["left"], draws["flip"])


def read_photometric(draws: dict) -> PhotometricDraws:
    """The photometric decisions of a case, in the project's words."""
    jitter = draws["jitter"]
    if jitter is not None:
        jitter = Jitter(**{**jitter, "order": tuple(jitter["order"])})
    return PhotometricDraws(jitter, draws["greyscale"], draws["blur_sigma"])


@adapter("zutis_geometric")
def geometric(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Scaled, padded, cropped, flipped picture and mask."""
    image, mask = case.inputs["in_image"], case.inputs["in_mask"].astype(np.int16)
    plan = plan_crop(mask.shape, read_geometric(case.settings["draws"]), case.settings["crop"])
    content, fill = crop_image(image, plan)
    return {
        "out_image": pad_crop(np.asarray(content), plan, fill),
        "out_mask": pad_crop(crop_mask(mask, plan), plan, case.settings["ignore_index"]),
    }


@adapter("zutis_photometric")
def photometric(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Jittered, grey, blurred picture."""
    draws = read_photometric(case.settings["draws"])
    return {"out_image": apply_photometric(case.inputs["in_image"], draws, blur_kernel=case.settings["blur_kernel"])}


@adapter("zutis_copy_paste")
def copy_paste(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The first sample with the objects of the others pasted in."""
    ignore, background = case.settings["ignore_index"], case.settings["background_index"]
    images = np.moveaxis(case.inputs["in_images"], 1, -1)
    semantic, instance = case.inputs["in_semantic"], case.inputs["in_instance"]
    offsets = iter(case.settings["offsets"])
    objects = [find_objects(labels, ignore_index=ignore, background_index=background) for labels in semantic[1:]]
    pastes = plan_pastes(objects, lambda *free: tuple(next(offsets)))
    canvas = [maps[0].copy() for maps in (images, semantic, instance)]
    for number, paste in enumerate(pastes, start=1):
        if paste is not None:
            for target, maps in zip(canvas, (images, semantic, instance), strict=True):
                paste.stamp(target, maps[number])
    return {"out_image": np.moveaxis(canvas[0], -1, 0), "out_semantic": canvas[1], "out_instance": canvas[2]}


@adapter("zutis_index_sample")
def index_sample(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One whole training sample, read from pictures and pseudo-mask files."""
    settings, draws = case.settings, case.settings["draws"]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_pictures(Path(folder), case.numbered("in_image"))
        for path, mask in zip(paths, case.numbered("in_mask"), strict=True):
            write_mask(path.with_suffix(".json"), mask)
        archive = {name: [paths[i] for i in numbers] for name, numbers in settings["category_to_images"].items()}
        dataset = IndexDataset(
            archive,
            categories=list(archive),
            mask_path=lambda path, _: path.with_suffix(".json"),
            read_mask=read_mask,
            image_size=settings["crop"],
            scale_range=tuple(settings["scale_range"]),
            ignore_index=settings["ignore_index"],
            random_duplicate=settings["random_duplicate"],
            max_num_objects=settings["max_n_masks"],
            photometric=PhotometricSettings(blur_kernel=settings["blur_kernel"]),
        )
        picks = [dataset.pick(drawn["index"], draws["duplicate_category"]) for drawn in draws["instances"]]
        masks = [read_mask(dataset.mask_path(pick.path, pick.category)) for pick in picks]
        offsets = iter(draws["paste_offsets"])
        augmentations = [(read_geometric(drawn), read_photometric(drawn)) for drawn in draws["instances"]]
        sample = dataset.synthesise(picks, masks, augmentations, lambda *free: tuple(next(offsets)))
        labels = [dataset.image_label(path) for path in paths]
    batch = collate_samples([sample]).normalised()
    return {
        "out_image": batch.images[0].numpy(),
        "out_semantic": batch.semantic[0].numpy(),
        "out_instance": batch.instance_masks[0].numpy(),
        "out_category_ids": batch.category_ids[0].numpy(),
        "out_image_labels": np.array(labels),
    }


def write_pictures(folder: Path, images: list[np.ndarray]) -> list[Path]:
    """Write pictures as PNG and return their paths."""
    paths = [folder / f"{number}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


@adapter("zutis_label_coca")
def label_coca(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels of CoCA masks, read from the dataset's folders."""
    masks = case.numbered("in_mask")
    with tempfile.TemporaryDirectory() as folder:
        for name, mask in zip(case.settings["masks"], masks, strict=True):
            write_png(Path(folder, "binary", name), mask)
            write_png(Path(folder, "image", name).with_suffix(".jpg"), np.zeros((*mask.shape, 3), np.uint8))
        return {f"out_labels{i}": item.label for i, item in enumerate(build_benchmark("coca", folder))}


@adapter("zutis_label_imagenet_s")
def label_imagenet_s(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Labels of ImageNet-S label PNGs, read from the dataset's folders, and network sizes."""
    number = case.settings["n_categories"]
    with tempfile.TemporaryDirectory() as folder:
        for i, colours in enumerate(case.numbered("in_png")):
            base = Path(folder, f"ImageNetS{number}")
            write_png(base / f"validation-segmentation/n0/{i:04d}.png", colours)
            write_png(base / f"validation/n0/{i:04d}.JPEG", np.zeros_like(colours))
        benchmark = build_benchmark("imagenet-s", folder, "val", number)
        labels = {f"out_labels{i}": item.label for i, item in enumerate(benchmark)}
    limit = case.settings["long_edge_limit"]
    sizes = [network_size((height, width), limit) for height, width in case.settings["sizes"]]
    return {**labels, "out_network_sizes": np.array(sizes)}


@adapter("zutis_coco20k_subset")
def coco20k_subset(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The subset document of an annotation document and a file list."""
    annotations = json.loads(str(case.inputs["in_annotations"]))
    subset = build_coco20k_subset(annotations, parse_coco20k_list(str(case.inputs["in_list"])))
    return {"out_subset": np.array(json.dumps(subset))}


@adapter("zutis_visualise")
def visualise(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Label colours and a picture turned back to bytes."""
    table = benchmark_table(case.settings["dataset"], case.settings["n_categories"])
    return {
        "out_colour": colourise(case.inputs["in_label"], table.label_colours),
        "out_image": unnormalise_image(case.inputs["in_image"]),
    }


@adapter("zutis_experiment_names")
def experiment_names(case: Case, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Folder names of experiments."""
    names = [
        experiment_name(
            clip_arch=row["clip_arch"],
            index_dirs=row["dir_train_dataset"],
            num_images=row["n_images"],
            scale_range=tuple(row["scale_range"]),
            random_duplicate=row["random_duplicate"],
            stop_gradient=row["stop_gradient"],
            frozen_bn=row["frozen_bn"],
            suffix=row["suffix"],
            seed=row["seed"],
            debug=row["debug"],
        )
        for row in case.settings["rows"]
    ]
    return {"out_names": np.array(names)}


def write_png(path: Path, array: np.ndarray) -> None:
    """Write an array as PNG, whatever the file's name ends in; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, format="PNG")
