"""NamedMask cases about data: augmentation, labels of benchmarks, palettes, folder names, retrieval."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from datasets.batch import normalise_images
from datasets.build import build_benchmark
from datasets.label_files import relabel
from datasets.metadata import bit_palette, category_table
from networks.text import average_prompts
from retrieval.archive import retrieve_images
from retrieval.index import ArrayIndex
from tests.parity.adapters_zutis_data import copy_paste, geometric, photometric, write_png
from tests.parity.compare import Case
from tests.parity.registry import adapter
from training.schedules import poly_lr
from utils.naming import namedmask_experiment_name

Arrays = dict[str, np.ndarray]
adapter("namedmask_geometric")(geometric)


@adapter("namedmask_photometric")
def run_photometric(case: Case, weights: Arrays) -> Arrays:
    """Jittered, grey, blurred picture, and the network's input made of it."""
    outputs = photometric(case, weights)
    image = torch.from_numpy(np.array(outputs["out_image"])).permute(2, 0, 1)  # (H, W, 3) -> (3, H, W)
    return {**outputs, "out_normalised": normalise_images(image[None])[0].numpy()}


@adapter("namedmask_copy_paste")
def run_copy_paste(case: Case, weights: Arrays) -> Arrays:
    """The first sample with the objects of the others pasted in; as ZUTIS's, with one label map instead of two."""
    masks = case.inputs["in_masks"]
    outputs = copy_paste(replace(case, inputs={**case.inputs, "in_semantic": masks, "in_instance": masks}), weights)
    return {"out_image": outputs["out_image"], "out_mask": outputs["out_semantic"]}


@adapter("namedmask_poly_lr")
def run_poly_lr(case: Case, weights: Arrays) -> Arrays:
    """Rates of all groups at every step."""
    s = case.settings
    steps = range(s["steps"] + 1)
    rates = [[poly_lr(base, t, s["n_iters"], s["power"], s["min_lr"]) for base in s["base_lrs"]] for t in steps]
    return {"out_lr": np.array(rates)}


@adapter("namedmask_labels_cityscapes")
def run_labels_cityscapes(case: Case, weights: Arrays) -> Arrays:
    """Labels of raw ids; -1 is no value of a PNG, so the ids go straight to the reader's map."""
    table = category_table("cityscapes_object")
    return {"out_labels": relabel(case.inputs["in_raw"], table, Path(case.name))}


@adapter("namedmask_labels_voc_category")
def run_labels_voc_category(case: Case, weights: Arrays) -> Arrays:
    """Binary labels of the pictures that show a category, read from VOC's folders."""
    settings, ids = case.settings, case.settings["ids"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, raw in zip(ids, case.numbered("in_raw"), strict=True):
            write_png(root / "SegmentationClass" / f"{name}.png", raw)
            write_png(root / "JPEGImages" / f"{name}.jpg", np.zeros((*raw.shape, 3), np.uint8))
        listing = root / "ImageSets" / "Segmentation" / f"{settings['split']}.txt"
        listing.parent.mkdir(parents=True)
        listing.write_text("".join(f"{name}\n" for name in ids))
        benchmark = build_benchmark("voc2012_category", root, settings["split"], category=settings["category"])
        labels = {f"out_labels{i}": item.label for i, item in enumerate(benchmark)}
    return {**labels, "out_kept": np.array([ids.index(path.stem) for path in benchmark.image_paths])}


@adapter("namedmask_experiment_names")
def run_experiment_names(case: Case, weights: Arrays) -> Arrays:
    """Folder names of runs."""
    names = []
    for row in case.settings["rows"]:
        size = re.fullmatch(r"imagenet[-_]s(\d+)", row["dataset_name"])
        names.append(
            namedmask_experiment_name(
                segmenter_name=row["segmenter_name"],
                num_images=row["n_images"],
                scale_range=tuple(row["scale_range"]),
                max_num_masks=row["max_n_masks"],
                num_categories=None if size is None else int(size[1]),
                category="_".join(row["single_category"] or []),
                cluster_id=row.get("cluster_id"),
                use_expert_masks=row["use_expert_pseudo_masks"],
                suffix=row["suffix"],
                seed=row["seed"],
                debug=row["debug"],
            )
        )
    return {"out_names": np.array(names)}


@adapter("namedmask_retrieval")
def run_retrieval(case: Case, weights: Arrays) -> Arrays:
    """Text and image embeddings to image paths, one row per category."""
    s, text = case.settings, case.inputs["in_text"]
    folder = Path(s["dir_dataset"]) / s["split"]
    index = ArrayIndex(case.inputs["in_embeddings0"], s["file_names"], image_dir=folder, layout="imagenet")
    found = retrieve_images([f"category {row}" for row in range(len(text))], text, [index], s["n_images"])
    return {"out_paths": np.array(list(found.values()))}


@adapter("namedmask_text_ensemble")
def run_text_ensemble(case: Case, weights: Arrays) -> Arrays:
    """Raw features of prompts to one embedding per category."""
    return {"out_embedding": average_prompts(torch.from_numpy(case.inputs["in_raw"])).numpy()}


@adapter("namedmask_palettes")
def run_palettes(case: Case, weights: Arrays) -> Arrays:
    """Colours of labels."""
    names = {"voc2012": "voc2012", "cityscapes_object": "cityscapes_object", "imagenet_s": "imagenet_s919"}
    palettes = {f"out_{name}": category_table(table).palette for name, table in names.items()}
    return {**palettes, "out_coco2017": bit_palette(256), "out_coca": bit_palette(256)}
