"""Writes scenes of the stuff world as real files: an unlabelled index, own categories in COCO's layout, and ReCo's
benchmarks, of which world category i takes the place of category i.

What a layout is: ``layouts.py``. Next: ``world.py`` chooses how many pictures of which.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pycocotools import mask as coco_mask

from datasets.metadata import CategoryTable, category_table
from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.layouts import Layout, encode_jpeg, encode_png, write_bytes, write_coco_annotations
from datasets.shapes.stuff_scenes import STUFF_CATEGORY_NAMES, VOID, StuffScene, make_stuff_scene

_CITIES = ("meadowbrook", "sandbeach")
_FRAMES_PER_VIDEO = 8
_NUM_INDEX_WNIDS = 20
_MAT_HEADER_BYTES = 116  # free text, in which SciPy writes the time


class StuffLayout(Layout):
    """A set of stuff scenes whose category i takes the place of the benchmark's category i.

    Pictures with even numbers belong to the val split, the others to train.
    """

    kind = "stuff_scene"
    shape: ClassVar[tuple[float, float] | None] = None

    def scene(self, index: int) -> StuffScene:
        """Make picture ``index`` of this set."""
        index += self.first_index
        return make_stuff_scene(self.kind, index, image_size=self.image_size, seed=self.seed, shape=self.shape)

    def split(self, index: int) -> str:
        """The split that picture ``index`` belongs to."""
        return "train" if index % 2 else "val"

    def finish(self, records: Sequence[Any]) -> None:
        """Nothing describes the whole set."""

    def write_lists(self, paths: Mapping[str, Path], names: Sequence[str]) -> None:
        """Write a list of picture names, one per line, for every split that has any."""
        for split, path in paths.items():
            listing = "".join(f"{name}\n" for index, name in enumerate(names) if self.split(index) == split)
            if listing:
                write_bytes(path, listing.encode())


def store(labels: np.ndarray, table: CategoryTable, void: int) -> np.ndarray:
    """Labels as a benchmark's files hold them: its own value for category i, ``void`` for void; uint8 (H, W)."""
    values = np.full(VOID + 1, void, np.uint8)
    values[: len(STUFF_CATEGORY_NAMES)] = table.stored_values()[: len(STUFF_CATEGORY_NAMES)]
    return values[labels]


def encode_regions(scene: StuffScene) -> list[dict[str, Any]]:
    """Describe all that a scene shows.

    Args:
        scene: picture and truth.

    Returns:
        One dict per ground, then one per thing: ``category`` (name), ``size`` [H, W], ``counts`` (COCO compressed RLE,
        ascii).
    """
    on_ground = scene.instances == 0
    regions = [
        (name, (scene.labels == row) & on_ground)
        for row, name in enumerate(STUFF_CATEGORY_NAMES)
        if name in scene.shares and name not in CATEGORY_NAMES
    ]
    regions += [(CATEGORY_NAMES[t.category], scene.instances == k) for k, t in enumerate(scene.things, start=1)]
    records = []
    for name, cover in regions:
        code = coco_mask.encode(np.asfortranarray(cover.astype(np.uint8)))
        records.append({"category": name, "size": list(code["size"]), "counts": code["counts"].decode("ascii")})
    return records


class StuffIndexLayout(StuffLayout):
    """``stuff_index/train/<wnid>/<wnid>_<n>.JPEG``, unlabelled; folders are drawn at random and tell nothing."""

    name = "stuff_index"
    kind = "stuff_web"

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        wnid = f"n{90000000 + 1009 * (int(self.hash(index)[:8], 16) % _NUM_INDEX_WNIDS):08d}"
        return [self.root / self.name / "train" / wnid / f"{wnid}_{index}.JPEG"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene, (image_path,) = self.scene(index), self.paths(index)
        write_bytes(image_path, encode_jpeg(scene.image))
        return {"file": image_path.name, "instances": encode_regions(scene)}

    def finish(self, records: Sequence[Any]) -> None:
        """Write the truth, outside the index's own folder."""
        Layout.finish(self, records)


class StuffValLayout(StuffLayout):
    """``stuff``: COCO's layout with the world's own categories: category i has label and id i + 1, no background.

    ``val2017``, ``annotations/instances_val2017.json`` (grounds as well as things), and label PNGs in
    ``annotations/semantic_segmentation_masks``, 255 where nothing has a name.
    """

    name = "stuff"
    folder: ClassVar[str] = "stuff"
    first_picture: ClassVar[int] = 139

    def split(self, index: int) -> str:
        """See ``StuffLayout``; a set is one split here."""
        return "val"

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        stem, base = f"{7 * index + self.first_picture:012d}", self.root / self.folder
        masks_dir = base / "annotations" / "semantic_segmentation_masks"
        return [base / f"{self.split(index)}2017" / f"{stem}.jpg", masks_dir / f"{stem}.png"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        write_bytes(label_path, encode_png(np.where(scene.labels == VOID, VOID, scene.labels + 1).astype(np.uint8)))
        write_bytes(image_path, encode_jpeg(scene.image))
        return {"file": image_path.name, "size": scene.labels.shape, "codes": encode_regions(scene)}

    def finish(self, records: Sequence[Any]) -> None:
        """See ``Layout``."""
        ids = {name: 1 + row for row, name in enumerate(STUFF_CATEGORY_NAMES)}
        kinds = {name: "thing" if name in CATEGORY_NAMES else "stuff" for name in ids}
        path = self.root / self.folder / "annotations" / f"instances_{self.split(0)}2017.json"
        write_coco_annotations(path, records, ids, kinds)


class StuffTrainLayout(StuffValLayout):
    """The training split of ``stuff``: other pictures, the same form."""

    name = "stuff_train"
    first_index = 1_000_000
    first_picture = 7_000_140

    def split(self, index: int) -> str:
        """See ``StuffLayout``; a set is one split here."""
        return "train"


class CityscapesStuffLayout(StuffLayout):
    """``cityscapes_stuff/leftImg8bit/<split>/<city>/*_leftImg8bit.png`` and ``gtFine/<split>/<city>/*_labelIds.png``.

    Labels are raw ids; unnamed things are unlabelled, a border of one pixel lies outside the region of interest.
    """

    name = "cityscapes_stuff"
    first_index = 2_000_000
    shape = (1.0, 2.0)

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        folder, split, city = self.root / self.name, self.split(index), _CITIES[index // 2 % len(_CITIES)]
        stem = f"{city}_{index:06d}_000019"
        return [
            folder / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png",
            folder / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png",
        ]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        label = store(scene.labels, category_table("cityscapes27"), 0)
        label[[0, -1]], label[:, [0, -1]] = 3, 3
        write_bytes(label_path, encode_png(label))
        write_bytes(image_path, encode_png(scene.image))
        return image_path.name


class KittiStepLayout(StuffLayout):
    """``kitti_step/<split>/<video>/<frame>.png`` and RGB maps of the same names in ``panoptic_maps``.

    Red is the class, 255 for void; green and blue hold the number of a thing. Sides are no multiples of 16.
    """

    name = "kitti_step"
    first_index = 3_000_000
    shape = (1.03, 2.46)

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        folder, split, number = self.root / self.name, self.split(index), index // 2
        place = Path(f"{number // _FRAMES_PER_VIDEO:04d}", f"{number % _FRAMES_PER_VIDEO:06d}.png")
        return [folder / split / place, folder / "panoptic_maps" / split / place]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        red = store(scene.labels, category_table("kitti_step19"), 255)
        write_bytes(label_path, encode_png(np.stack([red, np.zeros_like(red), scene.instances], axis=-1)))
        write_bytes(image_path, encode_png(scene.image))
        return str(image_path.relative_to(self.root))


class CocoStuffLayout(StuffLayout):
    """``coco_stuff`` (val: curated list, label PNGs) and ``coco_stuff10k`` (train: list, ``.mat`` files).

    Category i is the i-th of the 27 that are scored, by the first of the finer ids that count as it.
    """

    name = "coco_stuff"
    first_index = 4_000_000

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        if self.split(index) == "val":
            folder, stem = self.root / self.name, f"{7 * index + 285:012d}"
            return [folder / "images" / "val2017" / f"{stem}.jpg", folder / "annotations" / "val2017" / f"{stem}.png"]
        folder, stem = self.root / f"{self.name}10k", f"COCO_train2014_{7 * index + 77:012d}"
        return [folder / "images" / f"{stem}.jpg", folder / "annotations" / f"{stem}.mat"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        values = store(scene.labels, category_table("coco_stuff27"), 255)
        content = encode_png(values) if label_path.suffix == ".png" else encode_mat(values + np.uint8(1))
        write_bytes(label_path, content)
        write_bytes(image_path, encode_jpeg(scene.image))
        return image_path.stem

    def finish(self, records: Sequence[Any]) -> None:
        """See ``Layout``."""
        curated = self.root / self.name / "curated" / "val2017" / "Coco164kFull_Stuff_Coarse.txt"
        self.write_lists({"val": curated, "train": self.root / f"{self.name}10k" / "imageLists" / "train.txt"}, records)


def encode_mat(values: np.ndarray) -> bytes:
    """Encode a map ``S``, uint8 (H, W), as a compressed MATLAB file; the same map gives the same bytes."""
    from scipy.io import savemat  # slow to import, and needed for this layout only

    buffer = io.BytesIO()
    savemat(buffer, {"S": values}, do_compression=True)
    header = b"MATLAB 5.0 MAT-file, a label map of the shapes world".ljust(_MAT_HEADER_BYTES)
    return header + buffer.getvalue()[_MAT_HEADER_BYTES:]


class PascalContextLayout(StuffLayout):
    """``pascal_context/JPEGImages``, ``SegmentationClassContext`` (0 is void), ``ImageSets/SegmentationContext``."""

    name = "pascal_context"
    first_index = 5_000_000

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        folder, stem = self.root / self.name, f"2010_{index + 1:06d}"
        return [folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClassContext" / f"{stem}.png"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        write_bytes(label_path, encode_png(store(scene.labels, category_table("pascal_context59"), 0)))
        write_bytes(image_path, encode_jpeg(scene.image))
        return image_path.stem

    def finish(self, records: Sequence[Any]) -> None:
        """See ``Layout``."""
        folder = self.root / self.name / "ImageSets" / "SegmentationContext"
        self.write_lists({split: folder / f"{split}.txt" for split in ("train", "val")}, records)
