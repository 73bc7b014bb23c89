"""ZUTIS cases about data: training samples, labels of benchmarks, colours, folder names."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.batch import collate_samples
from datasets.geometric import GeometricDraws, crop_image, crop_mask, pad_crop, plan_crop
from datasets.index_dataset import IndexDataset
from datasets.photometric import Jitter, PhotometricDraws, PhotometricSettings, apply_photometric
from datasets.synthesis import find_objects, plan_pastes
from pseudo_labels.store import read_mask, write_mask
from tests.parity.compare import Case
from tests.parity.registry import adapter


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
            mask_path=lambda path: path.with_suffix(".json"),
            read_mask=read_mask,
            image_size=settings["crop"],
            scale_range=tuple(settings["scale_range"]),
            ignore_index=settings["ignore_index"],
            random_duplicate=settings["random_duplicate"],
            max_num_objects=settings["max_n_masks"],
            photometric=PhotometricSettings(blur_kernel=settings["blur_kernel"]),
        )
        picks = [dataset.pick(drawn["index"], draws["duplicate_category"]) for drawn in draws["instances"]]
        masks = [read_mask(dataset.mask_path(pick.path)) for pick in picks]
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
