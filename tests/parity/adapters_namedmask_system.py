"""NamedMask cases about whole stages: training samples, places of masks, experts' masks, evaluation of a checkpoint."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from datasets.base import EvaluationItem
from datasets.batch import collate_samples
from datasets.index_dataset import IndexDataset
from datasets.photometric import PhotometricSettings
from evaluation.evaluate import Prediction
from pseudo_labels.mask_stores import ExpertMaskStore, MaskStore
from pseudo_labels.store import SELFMASK, imagenet_mask_path, read_mask, write_mask
from systems import namedmask, stages
from systems.deeplab import OBJECT, SemanticSegmenter, read_deeplab
from systems.experts import ExpertGroup, missing_masks, write_expert_masks
from tests.parity.adapters_zutis_data import read_geometric, read_photometric, write_png
from tests.parity.adapters_zutis_evaluation import write_dataset
from tests.parity.compare import Case
from tests.parity.registry import adapter
from training.run_folder import RunFolder
from utils.config import settings_from_dict
from utils.files import write_text

Arrays = dict[str, np.ndarray]


@adapter("namedmask_mask_paths")
def run_mask_paths(case: Case, weights: Arrays) -> Arrays:
    """Places of pseudo-masks."""
    paths = []
    for row in case.settings["rows"]:
        maker = f"experts/{row['benchmark']}" if row["expert"] else SELFMASK
        paths.append(str(imagenet_mask_path(row["image"], maker=maker, dataset_dir=row["dir_dataset"])))
    return {"out_paths": np.array(paths)}


@adapter("namedmask_train_item")
def run_train_item(case: Case, weights: Arrays) -> Arrays:
    """Whole training samples, read from pictures and pseudo-mask files at the published places."""
    settings = case.settings
    with tempfile.TemporaryDirectory() as folder:
        train = Path(folder, "ImageNet2012", "train")
        paths = [train / name.split("_")[0] / f"{name}.JPEG" for name in settings["names"]]
        archive = {name: [paths[i] for i in numbers] for name, numbers in settings["category_to_images"].items()}
        store = MaskStore((train,))
        if settings["expert_masks"]:
            store = ExpertMaskStore.of_archive(archive, [train], None, benchmark="benchmark")
        for path, image, mask in zip(paths, case.numbered("in_image"), case.numbered("in_mask"), strict=True):
            write_png(path, image)
            write_mask((store.masks if settings["expert_masks"] else store).path(path), mask)
        expert = settings["single_category"]
        if expert is not None:
            archive = {OBJECT: ExpertGroup((expert,)).images(archive)}
        dataset = _index_dataset(case, archive, store)
        outputs = {}
        for i, drawn in enumerate(settings["samples"]):
            outputs |= _synthesise(dataset, drawn, i)
        if expert is None:
            outputs["out_image_labels"] = np.array([dataset.image_label(path) for path in paths])
    return outputs


def _index_dataset(case: Case, archive: stages.Archive, store: MaskStore | ExpertMaskStore) -> IndexDataset:
    settings = case.settings
    return IndexDataset(
        archive,
        categories=list(archive),
        mask_path=store.path,
        read_mask=read_mask,
        image_size=settings["crop"],
        scale_range=tuple(settings["scale_range"]),
        ignore_index=settings["ignore_index"],
        random_duplicate=False,
        max_num_objects=settings["max_n_masks"],
        photometric=PhotometricSettings(blur_kernel=settings["blur_kernel"]),
    )


def _synthesise(dataset: IndexDataset, drawn: dict, number: int) -> Arrays:
    """One sample by given draws."""
    picks = [dataset.pick(item["index"]) for item in drawn["items"]]
    masks = [read_mask(dataset.mask_path(pick.path, pick.category)) for pick in picks]
    augmentations = [(read_geometric(item), read_photometric(item)) for item in drawn["items"]]
    offsets = iter(drawn["paste_offsets"])
    sample = dataset.synthesise(picks, masks, augmentations, lambda *free: tuple(next(offsets)))
    batch = collate_samples([sample]).normalised()
    return {f"out_image{number}": batch.images[0].numpy(), f"out_mask{number}": batch.semantic[0].numpy()}


@adapter("namedmask_expert_masks")
def run_expert_masks(case: Case, weights: Arrays) -> Arrays:
    """Masks by an expert, in files at the published places."""
    s, group, outputs = case.settings, ExpertGroup((case.settings["category"],)), {}
    options = {"system": "namedmask", "categories": [s["category"]], "device": "cpu"}
    settings = settings_from_dict({**options, "experts": {"masks": {"num_workers": 0}}}, source=case.name)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "ImageNet2012")
        archive = {s["category"]: [root / name for name in s["images"]]}
        for path, image in zip(archive[s["category"]], case.numbered("in_image"), strict=True):
            write_png(path, image)
        index_dirs = {path.parents[1] for path in archive[s["category"]]}
        store = ExpertMaskStore.of_archive(archive, index_dirs, None, benchmark=s["benchmark"])
        missing = missing_masks([group], archive, store)
        write_expert_masks(settings, {group: _save(weights, folder)}, missing, RunFolder(Path(folder, "run")))
        for i, name in enumerate(s["masks"]):
            outputs[f"out_mask{i}"] = read_mask(root / name)
            outputs[f"out_rle{i}"] = np.array((root / name).read_text(encoding="utf-8"))
    return outputs


@adapter("namedmask_evaluate")
def run_evaluate(case: Case, weights: Arrays) -> Arrays:
    """Label maps and scores of a checkpoint on a benchmark's folders."""
    s, category = case.settings, case.settings["category"]
    predictions: dict[Path, np.ndarray] = {}

    def keep(item: EvaluationItem, prediction: Prediction) -> None:
        predictions[item.path] = prediction.labels.numpy()

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "benchmark")
        write_dataset(case, root)
        for name, text in s["text_files"].items():
            write_text(root / name, text)
        options = {"dataset_name": s["dataset"], "split": s["split"], "dir_val_dataset": str(root)}
        options |= {"system": "namedmask", "dir_ckpt": str(Path(folder, "runs")), "device": "cpu"}
        settings = settings_from_dict({**options, "val_dataloader_kwargs": {"num_workers": 0}}, source=case.name)
        names = stages.category_names(settings)
        benchmark = stages.open_benchmark(settings, names, category=category, with_instances=False)
        stored = read_deeplab(_save(weights, folder), s["n_classes"])
        segmenter = SemanticSegmenter(stored.network, torch.device("cpu"))
        result = namedmask.score(settings, segmenter, benchmark, visit=keep)
    in_order = [root / files["image"] for files in s["files"] if root / files["image"] in predictions]
    outputs = {f"out_pred{i}": predictions[path] for i, path in enumerate(in_order)}
    if result.binary is not None:
        return {**outputs, "out_iou": np.array(result.binary.iou)}
    semantic = result.semantic
    scores = (semantic.pixel_accuracy, semantic.mean_accuracy, semantic.frequency_weighted_iou, semantic.mean_iou)
    return {**outputs, "out_scores": np.array(scores), "out_class_iou": np.array(semantic.class_iou)}


def _save(weights: Arrays, folder: str) -> Path:
    """The checkpoint as a published file."""
    path = Path(folder, "weights.pt")
    torch.save({name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}, path)
    return path
