"""ReCo's networks together: image encoder with reference embeddings, dense CLIP with names; pictures in, grids out.

``Reco`` is both, ``DenseNames`` the second alone, which ReCo is compared with.

Where references come from: ``pseudo_labels/references.py``. What the grids become: ``reco_prediction.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from networks.cosine_maps import TEMPERATURE, cosine_maps, text_attention
from networks.patch_encoders import PatchEncoder
from networks.reco_prediction import RecoGrids

if TYPE_CHECKING:
    from networks.dense_clip import DenseClip


class Reco(nn.Module):
    """Compares every place of a picture with one reference embedding and one name per category.

    Args:
        encoder: image encoder of the references.
        references: one row per category, (N, D), float32, used as they are.
        tower: dense CLIP; None: the references decide alone.
        text: unit text vectors of the same categories from the same CLIP, (N, D'); needed with ``tower``.
        temperature: factor of the text cosines inside the sigmoid.

    Raises:
        ValueError: if widths or numbers of categories differ.
    """

    def __init__(
        self,
        encoder: PatchEncoder,
        references: Tensor,
        *,
        tower: DenseClip | None = None,
        text: Tensor | None = None,
        temperature: float = TEMPERATURE,
    ) -> None:
        super().__init__()
        _check(encoder.width, references, "references")
        if (tower is None) != (text is None):
            raise ValueError("a dense CLIP and text vectors are given together or not at all")
        if tower is not None and text is not None:
            _check(tower.width, text, "text vectors")
            if len(text) != len(references):
                raise ValueError(f"{len(references)} references but {len(text)} text vectors")
        self.encoder, self.tower, self.temperature = encoder, tower, temperature
        self.register_buffer("references", references.float())
        self.register_buffer("text", None if text is None else text.float())

    @property
    def min_size(self) -> int:
        """Shortest side, in pixels, that both networks can look at."""
        return max(self.encoder.min_size, 1 if self.tower is None else self.tower.min_size)

    def forward(self, images: Tensor) -> RecoGrids:
        """Compare pictures with references and names.

        Args:
            images: ImageNet-normalised pictures (B, 3, H, W), float32. A side shorter than ``min_size`` is stretched
                to it.

        Returns:
            Scores of every category at both networks' grids.

        Source: ReCo, section 3.3. The cosine with a reference enters the sigmoid without a temperature.
        """
        images = _stretch(images, self.min_size)
        similarity = cosine_maps(self.encoder(images), self.references).sigmoid()
        if self.tower is None:
            return RecoGrids(similarity)
        attention = text_attention(self.tower(images), self.text, temperature=self.temperature)
        return RecoGrids(similarity, attention)


class DenseNames(nn.Module):
    """Dense CLIP alone: compares every place of a picture with one name per category.

    Args:
        tower: dense CLIP.
        text: unit text vectors of the categories from the same CLIP, (N, D).
        temperature: factor of the cosines inside the sigmoid.

    Raises:
        ValueError: if the widths differ.
    """

    def __init__(self, tower: DenseClip, text: Tensor, *, temperature: float = TEMPERATURE) -> None:
        super().__init__()
        _check(tower.width, text, "text vectors")
        self.tower, self.temperature = tower, temperature
        self.register_buffer("text", text.float())

    def forward(self, images: Tensor) -> RecoGrids:
        """Compare pictures with names.

        Args:
            images: as for ``Reco``.

        Returns:
            The attention to every name in place of the similarity.

        Source: the baseline of ReCo, section 4, of which the scores are published and little more. Here it is the part
        of dense CLIP in ReCo, as it is there: ImageNet's colours, and a sigmoid before the enlargement (it leaves the
        best category of a place as it is, and is what the CRF starts from).
        """
        features = self.tower(_stretch(images, self.tower.min_size))
        return RecoGrids(text_attention(features, self.text, temperature=self.temperature))


def _stretch(images: Tensor, min_size: int) -> Tensor:
    height, width = images.shape[-2:]
    if min(height, width) >= min_size:
        return images
    return F.interpolate(images, (max(height, min_size), max(width, min_size)), mode="bilinear", align_corners=False)


def _check(width: int, vectors: Tensor, what: str) -> None:
    if vectors.ndim != 2 or vectors.shape[1] != width or len(vectors) == 0:
        raise ValueError(f"{what}: expected (N, {width}), received {tuple(vectors.shape)}")
