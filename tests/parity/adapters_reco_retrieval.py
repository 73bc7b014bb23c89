"""Parity adapters of ReCo's retrieval: the image embeddings as a file, the nearest pictures, and names of files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from networks.clip import clip_from_state_dict
from networks.clip_resolution import set_resolution
from pseudo_labels.reference_pictures import picture_batch
from retrieval.archive import retrieve_images
from retrieval.convert import write_embedding_pickle
from retrieval.embed import embed_images
from retrieval.index import ArrayIndex, open_index
from retrieval.unpickle import read_tensor_dict
from tests.parity.adapters_zutis_networks import as_tensors
from tests.parity.compare import Case
from tests.parity.registry import adapter
from utils.naming_reco import embedding_file_name, reco_folder, reference_file_name, reference_name
from utils.normalisation import normalise_images

Arrays = dict[str, np.ndarray]


@adapter("reco_retrieval")
def run_retrieval(case: Case, weights: Arrays) -> Arrays:
    """Text and image embeddings to file names, and pictures to network input."""
    settings, (rows, columns) = case.settings, case.settings["batch_steps"]
    index = ArrayIndex(case.inputs["in_embeddings"], settings["file_names"], layout="flat")
    found = retrieve_images(settings["categories"], case.inputs["in_text"], [index], settings["k"])
    given = case.numbered("in_retrieved")
    batch = normalise_images(picture_batch([given[number % len(given)] for number in range(settings["k"])]))
    return {
        "out_order": np.array([[Path(path).name for path in found[name]] for name in settings["categories"]]),
        "out_batch_sub": batch[: len(given), :, ::rows, ::columns].numpy(),
        "out_batch_shape": np.array(batch.shape),
    }


@adapter("reco_image_embedding")
@torch.inference_mode()
def run_image_embedding(case: Case, weights: Arrays) -> Arrays:
    """A folder of pictures to the file of their embeddings."""
    settings, (rows, columns) = case.settings, case.settings["preprocessed_steps"]
    clip = clip_from_state_dict(as_tensors(weights), towers=("image",))
    set_resolution(clip, settings["size"])
    images = case.numbered("in_image")
    with tempfile.TemporaryDirectory() as folder:
        for file, image in zip(settings["files"], images, strict=True):
            path = Path(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path, "PNG")
        embeddings, split = Path(folder, "embeddings"), Path(folder, settings["split"])
        embed_images([split], embeddings, clip, num_workers=0, dtype=torch.float32)
        pickle = Path(folder, embedding_file_name(settings["clip_arch"], settings["split"]))
        write_embedding_pickle(open_index(embeddings), pickle)
        found = read_tensor_dict(pickle)
    return {
        "out_embeddings": torch.stack([found[Path(file).name] for file in settings["files"]]).numpy(),
        "out_key_order": np.array(list(found)),
        "out_preprocessed0": clip.preprocess(images[0])[:, ::rows, ::columns].numpy(),
    }


@adapter("reco_names")
def run_names(case: Case, weights: Arrays) -> Arrays:
    """Configuration values to the names of reference file, output folder and embedding archive."""
    table = []
    for row in case.settings["rows"]:
        keys = ("encoder_arch", "imagenet_split", "context_elimination", "text_attention", "suffix")
        name, num_images = reference_name(**{key: row[key] for key in keys}), row["n_imgs"]
        folder = reco_folder(
            dataset=row["dataset"],
            split=row["split"],
            name=name,
            num_images=num_images,
            dense_clip_inference=row["dense_clip_inference"],
        )
        archive = embedding_file_name(row["clip_arch"], row["imagenet_split"])
        table.append([reference_file_name(name, num_images), folder.as_posix(), archive])
    return {"out_names": np.array(table)}
