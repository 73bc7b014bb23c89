"""Where the masks of an index dataset lie: SelfMask's, one per picture, and the experts', one per picture and category.

Both can be sent to loader processes. The places themselves are those of `store.pseudo_mask_path`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pseudo_labels.store import SELFMASK, pseudo_mask_path, read_mask
from utils.naming import category_file_name, category_file_names


@dataclass(frozen=True)
class MaskStore:
    """SelfMask's masks: one per picture, whatever it was retrieved for.

    Attributes:
        index_dirs: folders of the index datasets.
        pseudo_mask_dir: root of the masks; None: the published places.
        maker: who made the masks, a part of the published places.
    """

    index_dirs: tuple[Path, ...]
    pseudo_mask_dir: Path | None = None
    maker: str = SELFMASK

    def path(self, image_path: Path, category: str | None = None) -> Path:
        """File of a picture's mask; the category does not matter."""
        index_dir = next((folder for folder in self.index_dirs if folder in image_path.parents), None)
        root = self.pseudo_mask_dir
        if root is not None and len(self.index_dirs) > 1 and index_dir is not None:
            root = root / _short_names(self.index_dirs)[index_dir]  # equal names in two datasets stay apart
        return pseudo_mask_path(image_path, index_dir=index_dir, pseudo_mask_dir=root, maker=self.maker)

    def read(self, image_path: Path, category: str | None = None) -> np.ndarray:
        """A picture's mask, uint8 {0, 1}, (H, W)."""
        return read_mask(self.path(image_path, category))


@dataclass(frozen=True)
class ExpertMaskStore:
    """The experts' masks: one per picture and category that it was retrieved for.

    A picture of one category has its mask at the published place. One of several categories has a mask per category
    below `by_category/<category>` in the same folder; where that is missing and a published archive brought one mask
    for the picture, that one serves all its categories (in the release the expert that ran last overwrites the others).

    Attributes:
        masks: the published places, with `experts/<benchmark>` as their maker.
        shared: pictures that were retrieved for more than one category.
        file_names: of the categories, distinct.
    """

    masks: MaskStore
    shared: frozenset[Path] = field(default_factory=frozenset)
    file_names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_archive(
        cls,
        archive: Mapping[str, Sequence[Path]],
        index_dirs: Iterable[Path],
        mask_dir: Path | None,
        *,
        benchmark: str,
    ) -> ExpertMaskStore:
        """The store of an image archive (category -> pictures); masks lie below `mask_dir`, or where published."""
        counts = Counter(path for paths in archive.values() for path in set(paths))
        shared = frozenset(path for path, count in counts.items() if count > 1)
        masks = MaskStore(tuple(index_dirs), mask_dir, f"experts/{benchmark}")
        return cls(masks, shared, category_file_names(archive))

    def path(self, image_path: Path, category: str) -> Path:
        """File of a picture's mask for a category: the one that exists, else the one to be written."""
        published = self.masks.path(image_path)
        if image_path not in self.shared:
            return published
        own = self.own_path(image_path, category)
        return published if published.is_file() and not own.is_file() else own

    def own_path(self, image_path: Path, category: str) -> Path:
        """File of a picture's mask that belongs to this category alone."""
        if image_path not in self.shared:
            return self.masks.path(image_path)
        name = self.file_names.get(category) or category_file_name(category)
        below, root = f"by_category/{name}", self.masks.pseudo_mask_dir
        masks = replace(
            self.masks, maker=f"{self.masks.maker}/{below}", pseudo_mask_dir=None if root is None else root / below
        )
        return masks.path(image_path)

    def read(self, image_path: Path, category: str) -> np.ndarray:
        """A picture's mask for a category, uint8 {0, 1}, (H, W)."""
        return read_mask(self.path(image_path, category))


def _short_names(folders: Sequence[Path]) -> dict[Path, str]:
    """A distinct, stable name for each of several folders: the last parts of its path that tell it from the others."""
    for depth in range(1, 1 + max(len(folder.parts) for folder in folders)):
        names = {folder: "_".join(folder.parts[-depth:]).strip("/") for folder in folders}
        if len(set(names.values())) == len(folders):
            return names
    return {folder: str(number) for number, folder in enumerate(folders)}
