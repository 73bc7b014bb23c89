"""A trained ZUTIS network with names: pictures in, label maps and instances out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.batch import normalise_images
from evaluation.evaluate import Prediction
from evaluation.instances import coco_results, instances_to_records
from evaluation.pictures import Segmentation
from networks.zutis import Zutis
from networks.zutis_prediction import predict_instances, predict_semantic
from utils.device import autocast
from utils.images import shrink_to


@dataclass(frozen=True)
class Segmenter:
    """A trained network with names: pictures in, label maps and instances out.

    Attributes:
        network: in evaluation mode, on the device.
        text: unit text embeddings, background first, (N, D), on the same device.
        nms: kind of non-maximum suppression, None for none.
        precision: "fp32", "bf16" or "fp16".
    """

    network: Zutis
    text: Tensor
    nms: str | None = "hard"
    precision: str = "fp32"

    def __call__(self, images: Tensor, size: tuple[int, int], *, with_instances: bool = True) -> list[Prediction]:
        """Segment pictures of one size.

        Args:
            images: RGB, uint8, (B, h, w, 3), on the device.
            size: (H, W) of the results.
            with_instances: also predict instances.

        Returns:
            One prediction per picture: labels int64 (H, W), instances with masks at (H, W).
        """
        pixels = self._enlarge(normalise_images(images.permute(0, 3, 1, 2)))  # (B, h, w, 3) -> (B, 3, h, w)
        with autocast(pixels.device, self.precision):
            output = self.network(pixels, all_layers=False)
        labels = predict_semantic(output.patch_tokens, self.text, size)
        if not with_instances:
            return [Prediction(label) for label in labels]
        found = predict_instances(output.mask_proposals, output.patch_tokens, self.text, size, nms=self.nms)
        return [Prediction(*pair) for pair in zip(labels, found, strict=True)]

    def _enlarge(self, pixels: Tensor) -> Tensor:
        """Pictures with at least one patch along each side; smaller ones are stretched."""
        patch = self.network.encoder.patch_size
        height, width = pixels.shape[2:]
        if min(height, width) >= patch:
            return pixels
        return torch.nn.functional.interpolate(pixels, (max(height, patch), max(width, patch)), mode="bilinear")


@torch.inference_mode()
def segment_picture(segmenter: Segmenter, picture: np.ndarray, *, long_edge: int | None = None) -> Segmentation:
    """Segment one picture at its own size.

    Args:
        segmenter: network and names.
        picture: RGB, uint8, (H, W, 3).
        long_edge: pictures with a longer side are shrunk to it for the network; results keep the picture's size.
    """
    small = shrink_to(picture, long_edge)
    images = torch.from_numpy(np.ascontiguousarray(small))[None].to(segmenter.text.device)
    (prediction,) = segmenter(images, picture.shape[:2])
    found = prediction.instances
    records = coco_results(instances_to_records(found.masks, found.scores, found.category_ids))
    keys = ("category_id", "segmentation", "bbox", "score")
    labels = prediction.labels.to(torch.int16).cpu().numpy()
    return Segmentation(labels, [{key: record[key] for key in keys} for record in records])
