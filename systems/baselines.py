"""What is possible without training a segmenter; printed beside a recipe's scores so that these can be judged.

`DenseClip`: every patch of CLIP's own image tower is compared with the names. `score_named_masks`: SelfMask's mask of
each picture, named by CLIP from the part of the picture inside its box. ReCo's own: `reco_dense_clip.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.base import Benchmark
from datasets.batch import normalise_images
from evaluation.coco import evaluate_coco
from evaluation.evaluate import Prediction
from evaluation.instances import instances_to_records
from evaluation.regions import label_regions
from evaluation.semantic import SemanticScores
from networks.clip import ClipModel
from networks.text import encode_categories
from networks.zutis import Zutis
from networks.zutis_prediction import TEMPERATURE, Instances, predict_semantic, resize, semantic_logits


@dataclass(frozen=True)
class DenseClip:
    """CLIP's own dense labels, no training: nearest name of every patch token, connected regions as instances.

    Attributes:
        network: an untrained ZUTIS made of the CLIP; only its patch tokens are used.
        text: unit text embeddings, background first, (N, D).
    """

    network: Zutis
    text: Tensor

    @classmethod
    def from_clip(cls, clip: ClipModel, names: Sequence[str]) -> DenseClip:
        """Use a CLIP as it is."""
        return cls(Zutis.from_clip(clip).eval(), encode_categories(clip, names))

    def __call__(self, images: Tensor, size: tuple[int, int], *, with_instances: bool = True) -> list[Prediction]:
        """Predict pictures of one size, as `systems.zutis.Segmenter` does: uint8 RGB (B, h, w, 3) -> (H, W)."""
        tokens = self.network(normalise_images(images.permute(0, 3, 1, 2)), all_layers=False).patch_tokens
        labels = predict_semantic(tokens, self.text, size)
        if not with_instances:
            return [Prediction(label) for label in labels]
        scores = (TEMPERATURE * resize(semantic_logits(tokens, self.text), size)).sigmoid().amax(dim=1)
        return [Prediction(label, _regions(label, score)) for label, score in zip(labels, scores, strict=True)]


def _regions(labels: Tensor, scores: Tensor) -> Instances:
    """Connected regions of one label (background left out), scored by their mean probability."""
    found = list(label_regions(labels.cpu().numpy(), scores.cpu().numpy()))
    if not found:
        return Instances(torch.zeros(0, *labels.shape, dtype=torch.bool), torch.zeros(0), torch.zeros(0).long())
    masks, values, categories = zip(*found, strict=True)
    return Instances(torch.from_numpy(np.stack(masks)), torch.tensor(values), torch.tensor(categories))


@torch.inference_mode()
def score_named_masks(
    clip: ClipModel, names: Sequence[str], benchmark: Benchmark, read_mask: Callable[[Path], np.ndarray]
) -> dict[str, float]:
    """Score one salient mask per picture, named by CLIP.

    Args:
        clip: compares the picture inside the mask's box with the names.
        names: categories, background first (never chosen).
        benchmark: labels and, where there are any, instance annotations.
        read_mask: picture -> its mask, (H, W), non-zero is object.

    Returns:
        Fractions: `mean_iou`, `pixel_accuracy` and, with annotations, COCO AP by the names of `evaluate_coco`.
    """
    text = encode_categories(clip, list(names)[1:])
    scores, records = SemanticScores(len(names)), []
    for item in benchmark:
        mask = read_mask(item.path) > 0
        labels = np.zeros(item.size, np.int64)
        if mask.any():
            feature = clip.encode_image(clip.preprocess(crop_to_mask(item.image, mask))[None]).float()
            similarity = (feature / feature.norm()) @ text.T
            category = 1 + int(similarity.argmax())
            labels[mask] = category
            found = Instances(torch.from_numpy(mask)[None], similarity.max()[None], torch.tensor([category]))
            records += instances_to_records(*found, image_id=item.image_id, raw_category_ids=benchmark.raw_category_ids)
        scores.update(torch.from_numpy(item.label), torch.from_numpy(labels))
    result = scores.compute().scores()
    if benchmark.annotations_path is not None:
        result |= evaluate_coco(benchmark.annotations_path, records)
    return result


def crop_to_mask(image: np.ndarray, mask: np.ndarray, *, margin: float = 0.1) -> np.ndarray:
    """The part of a picture (H, W, 3) inside a mask's box, widened by a share of the box on every side."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    pad_y, pad_x = (round(margin * (line[-1] - line[0] + 1)) for line in (rows, columns))
    top, left = max(rows[0] - pad_y, 0), max(columns[0] - pad_x, 0)
    return np.ascontiguousarray(image[top : rows[-1] + pad_y + 1, left : columns[-1] + pad_x + 1])
