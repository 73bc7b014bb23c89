"""Parity of SelfMask's network, of the bilateral solver and of the pseudo-mask files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from networks.resnet import dilated_resnet_from_state_dict
from networks.selfmask import SelfMask, selfmask_from_state_dict
from pseudo_labels.bilateral_solver import SolverSettings, solve
from pseudo_labels.finishing import FinishSettings, finish_mask
from pseudo_labels.network_input import normalise, predict_masks, rebuild_reference, reference_levels
from pseudo_labels.preparation import resize_image, resize_mask, working_size
from pseudo_labels.store import pseudo_mask_path, read_mask, write_mask
from tests.parity.compare import Case
from tests.parity.registry import adapter

Arrays = dict[str, np.ndarray]


def _selfmask(weights: Arrays) -> SelfMask:
    return selfmask_from_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})


@adapter("selfmask_forward")
@torch.inference_mode()
def run_forward(case: Case, weights: Arrays) -> Arrays:
    network, images = _selfmask(weights), torch.from_numpy(case.inputs["in_x"])
    tokens = network.encode(images)
    output = network(images)
    return {
        "out_tokens": tokens.numpy(),
        "out_queries": network.decode(tokens).numpy(),
        "out_mask_pred": output.mask_pred[:, -1].numpy(),
        "out_objectness": output.objectness[:, -1, :, 0].numpy(),
    }


@adapter("selfmask_inference")
@torch.inference_mode()
def run_inference(case: Case, weights: Arrays) -> Arrays:
    network, images = _selfmask(weights), torch.from_numpy(case.inputs["in_x"])
    prediction = network.predict(images)
    masks = prediction.mask.numpy()
    references = [rebuild_reference(image) for image in images]
    soft = [solve(reference, mask).soft for reference, mask in zip(references, masks, strict=True)]
    objectness = network(images).objectness[:, -1, :, 0]
    return {
        "out_index": prediction.query.numpy(),
        "out_objectness_top2": objectness.topk(2, dim=1).values.numpy(),
        "out_prob": prediction.probability.numpy(),
        "out_mask": masks,
        "out_reference": np.stack(references),
        "out_solver_soft": np.stack(soft),
        "out_mask_bilateral": np.stack(soft) > 0.5,
    }


@adapter("selfmask_bilateral")
def run_bilateral(case: Case, _: Arrays) -> Arrays:
    names = ("sigma_spatial", "sigma_luma", "sigma_chroma")
    settings = SolverSettings(**{name: case.settings[name] for name in names})
    result = solve(case.inputs["in_image"], case.inputs["in_target"], settings)
    return {
        "out_soft": result.soft,
        "out_binary": result.soft > 0.5,
        "out_n_vertices": np.array(result.num_vertices),
        "out_dn": result.diagonal_n,
        "out_dm": result.diagonal_m,
    }


@adapter("selfmask_pseudo_mask_file")
def run_pseudo_mask_file(case: Case, weights: Arrays) -> Arrays:
    network, outputs = _selfmask(weights), {}
    for index, image in enumerate(case.numbered("in_image")):
        resized = resize_image(image, case.settings["shorter_side"])
        [mask] = predict_masks(network, [torch.from_numpy(resized.copy())])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.json"
            finish_mask(FinishSettings(levels=reference_levels()), resized, mask.numpy(), image.shape[:2], path)
            outputs[f"out_resized{index}"] = resized
            outputs[f"out_mask{index}"] = read_mask(path)
            outputs[f"out_rle{index}"] = np.array(path.read_text())
    return outputs


@adapter("selfmask_dilated_resnet")
@torch.inference_mode()
def run_dilated_resnet(case: Case, weights: Arrays) -> Arrays:
    network = dilated_resnet_from_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    stages = network.stages(torch.from_numpy(case.inputs["in_x"]))
    return {
        "out_layer4_every_16th_channel": stages[3][:, ::16].numpy(),
        "out_layer4_mean": stages[3].mean(dim=(2, 3)).numpy(),
        "out_layer1_every_8th_channel": stages[0][:, ::8].numpy(),
    }


@adapter("zutis_selfmask_input")
def run_selfmask_input(case: Case, _: Arrays) -> Arrays:
    settings = case.settings
    resized = resize_image(case.inputs["in_image"], settings["shorter_side"])
    sizes = [working_size(*size, settings["sizes_shorter_side"]) for size in settings["sizes"]]
    return {
        "out_input": normalise(torch.from_numpy(resized.copy())).numpy(),
        "out_resized_sizes": np.array(sizes),
    }


@adapter("zutis_pseudo_mask_rle")
def run_pseudo_mask_rle(case: Case, _: Arrays) -> Arrays:
    outputs: Arrays = {"out_restored": resize_mask(case.inputs["in_small"], *case.settings["restore_size"])}
    with tempfile.TemporaryDirectory() as folder:
        for index, mask in enumerate(case.numbered("in_mask")):
            path = Path(folder) / f"{index}.json"
            write_mask(path, mask)
            outputs[f"out_rle{index}"] = np.array(json.dumps(json.loads(path.read_text())))
    return outputs


@adapter("zutis_pseudo_mask_paths")
def run_pseudo_mask_paths(case: Case, _: Arrays) -> Arrays:
    return {"out_paths": np.array([str(pseudo_mask_path(path)) for path in case.settings["images"]])}
