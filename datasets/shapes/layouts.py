"""Writes scenes of the shapes world as real files: every layout is a few paths, a picture, and what goes beside it.

A layout works in chunks: a chunk's pictures are written, then its record file; complete chunks are never redone, so a
killed run goes on. Next: ``world.py`` chooses how many of which.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.metadata import bit_palette, category_table, imagenet_s_table
from datasets.shapes.captions import write_caption
from datasets.shapes.categories import CATEGORY_NAMES
from datasets.shapes.scenes import Scene, make_scene
from utils.files import atomic_write, write_json

#: Raw ids of the COCO-like set: like COCO's own they have gaps (12 is missing there too), in train-id order.
RAW_CATEGORY_IDS: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15)
#: Cities of the Cityscapes-like set, and the raw ids of what is no thing there: the ground, and the picture's border.
_CITIES = ("roundstadt", "squareville")
_GROUND_ID, _BORDER_ID = 22, 3
_NUM_INDEX_WNIDS = 20
_JPEG_QUALITY = 92


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode uint8 RGB (H, W, 3) as JPEG."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1].tobytes()


def encode_png(label: np.ndarray, palette: np.ndarray | None = None) -> bytes:
    """Encode a label map, uint8 (H, W) or (H, W, 3), as PNG; with uint8 (256, 3) colours as a palette PNG."""
    picture = Image.fromarray(label)
    if palette is not None:
        picture.putpalette(palette.astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def outline_things(scene: Scene, label: np.ndarray, value: int) -> np.ndarray:
    """A copy of a label map with `value` on the borders between things and what is around them."""
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return np.where(cv2.morphologyEx(scene.instances, cv2.MORPH_GRADIENT, cross) > 0, label.dtype.type(value), label)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a small file atomically (without waiting for the disk: it can be made again)."""
    with atomic_write(path, sync=False) as file:
        file.write(content)


def encode_instances(scene: Scene) -> list[dict[str, Any]]:
    """Describe a scene's things.

    Args:
        scene: picture and truth.

    Returns:
        One dict per thing: ``category`` (name), ``size`` [H, W], ``counts`` (COCO compressed RLE, ascii).
    """
    records = []
    for number, thing in enumerate(scene.things, start=1):
        code = coco_mask.encode(np.asfortranarray(scene.instances == number).astype(np.uint8))
        name = CATEGORY_NAMES[thing.category]
        records.append({"category": name, "size": list(code["size"]), "counts": code["counts"].decode("ascii")})
    return records


def write_coco_annotations(
    path: Path, records: Sequence[Mapping[str, Any]], ids: Mapping[str, int], kinds: Mapping[str, str]
) -> None:
    """Write COCO's instance annotations of a set.

    Args:
        path: the JSON file.
        records: per picture its ``file`` (the stem is its id), ``size`` (H, W) and ``codes`` as of `encode_instances`.
        ids: category name -> id.
        kinds: category name -> supercategory.
    """
    images, annotations = [], []
    for record in records:
        image_id, (height, width) = int(Path(record["file"]).stem), record["size"]
        images.append({"id": image_id, "file_name": record["file"], "height": height, "width": width})
        for code in record["codes"]:
            rle = {"size": code["size"], "counts": code["counts"].encode("ascii")}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[code["category"]],
                    "segmentation": {"size": code["size"], "counts": code["counts"]},
                    "area": float(coco_mask.area(rle)),
                    "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name, "supercategory": kinds[name]} for name, number in ids.items()]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    write_json(path, content, indent=False)


@dataclass(frozen=True)
class Layout:
    """One dataset to write; subclasses say where files go.

    Attributes:
        root: folder of the world.
        num_images: pictures in the set.
        image_size: shorter side in pixels.
        seed: number of the world.
    """

    root: Path
    num_images: int
    image_size: int = 128
    seed: int = 0

    name: ClassVar[str] = ""
    kind: ClassVar[str] = "web"
    first_index: ClassVar[int] = 0

    def scene(self, index: int) -> Scene:
        """Make picture ``index`` of this set."""
        index += self.first_index
        return make_scene(self.kind, index, image_size=self.image_size, seed=self.seed)

    def paths(self, index: int) -> list[Path]:
        """Files of picture ``index``."""
        raise TypeError(f"{type(self).__name__} does not say where its files go")

    def write(self, index: int) -> Any:
        """Write the files of picture ``index`` and return its record."""
        scene = self.scene(index)
        write_bytes(self.paths(index)[0], encode_jpeg(scene.image))
        return {"file": self.paths(index)[0].name, "instances": encode_instances(scene)}

    def finish(self, records: Sequence[Any]) -> None:
        """Write what describes the whole set; index datasets have only their truth, outside their own folder."""
        truth = {record["file"]: record["instances"] for record in records}
        write_json(self.root / "truth" / f"{self.name}.json", truth, indent=False)

    def hash(self, index: int) -> str:
        """Hexadecimal name that tells nothing about the picture."""
        return hashlib.md5(f"{self.name} {self.seed} {index}".encode(), usedforsecurity=False).hexdigest()


class ImageNetLayout(Layout):
    """``ImageNet2012/train/<wnid>/<wnid>_<n>.JPEG``; folders are drawn at random and tell nothing."""

    name = "ImageNet2012"

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        wnid = f"n{80000000 + 1009 * (int(self.hash(index)[:8], 16) % _NUM_INDEX_WNIDS):08d}"
        return [self.root / self.name / "train" / wnid / f"{wnid}_{index}.JPEG"]


class PassLayout(Layout):
    """``pass/images/<hash>.jpg``."""

    name = "pass"
    first_index = 1_000_000

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        return [self.root / self.name / "images" / f"{self.hash(index)}.jpg"]


class CocoLayout(Layout):
    """``coco2017/val2017``, ``annotations/instances_val2017.json``, ``annotations/semantic_segmentation_masks``."""

    name = "coco2017"
    kind = "scene"

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        stem = f"{7 * index + 139:012d}"
        folder = self.root / self.name
        masks_dir = folder / "annotations" / "semantic_segmentation_masks"
        return [folder / "val2017" / f"{stem}.jpg", masks_dir / f"{stem}.png"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        write_bytes(label_path, encode_png(scene.category_map))
        write_bytes(image_path, encode_jpeg(scene.image))
        return {"file": image_path.name, "size": scene.instances.shape, "codes": encode_instances(scene)}

    def finish(self, records: Sequence[Any]) -> None:
        """See ``Layout``."""
        ids = dict(zip(CATEGORY_NAMES, RAW_CATEGORY_IDS, strict=True))
        path = self.root / self.name / "annotations" / "instances_val2017.json"
        write_coco_annotations(path, records, ids, dict.fromkeys(ids, "shape"))


class VocLayout(Layout):
    """``VOC2012/JPEGImages``, ``SegmentationClass`` (palette PNG, 255 on outlines), ``ImageSets/Segmentation``.

    Category i is VOC's class i. Every third picture belongs to the train split, the others to val.
    """

    name = "VOC2012"
    kind = "scene"
    first_index = 1_000_000

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        stem = f"2012_{index + 1:06d}"
        folder = self.root / self.name
        return [folder / "JPEGImages" / f"{stem}.jpg", folder / "SegmentationClass" / f"{stem}.png"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        write_bytes(label_path, encode_png(outline_things(scene, scene.category_map, 255), bit_palette(256)))
        write_bytes(image_path, encode_jpeg(scene.image))
        return image_path.stem

    def finish(self, records: Sequence[Any]) -> None:
        """See ``Layout``."""
        splits = {"train": records[2::3], "val": [s for i, s in enumerate(records) if i % 3 != 2], "trainval": records}
        for split, stems in splits.items():
            listing = "".join(f"{stem}\n" for stem in stems)
            write_bytes(self.root / self.name / "ImageSets" / "Segmentation" / f"{split}.txt", listing.encode())


class CityscapesLayout(Layout):
    """``cityscapes/leftImg8bit/val/<city>/*_leftImg8bit.png`` and ``gtFine/val/<city>/*_gtFine_labelIds.png``.

    Labels are raw ids: category i is the i-th of the 14 object classes, the ground is terrain, a border of one pixel
    lies outside the region of interest.
    """

    name = "cityscapes"
    kind = "scene"
    first_index = 2_000_000

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        city = _CITIES[index % len(_CITIES)]
        folder, stem = self.root / self.name, f"{city}_{index:06d}_000019"
        return [
            folder / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png",
            folder / "gtFine" / "val" / city / f"{stem}_gtFine_labelIds.png",
        ]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        raw_ids = category_table("cityscapes_object").stored_values()
        raw_ids[0] = _GROUND_ID
        label = np.array(raw_ids, np.uint8)[scene.category_map]
        label[[0, -1]], label[:, [0, -1]] = _BORDER_ID, _BORDER_ID
        write_bytes(label_path, encode_png(label))
        write_bytes(image_path, encode_png(scene.image))
        return image_path.name

    def finish(self, records: Sequence[Any]) -> None:
        """Nothing describes the whole set."""


class SingleClassLayout(Layout):
    """A set whose pictures lie in folders by class; category i takes the place of the benchmark's category i."""

    kind = "single"

    def label(self, index: int) -> int:
        """Label of the class that picture ``index`` was made for."""
        return 1 + index % len(CATEGORY_NAMES)

    def scene(self, index: int) -> Scene:
        """See ``Layout``."""
        category = self.label(index) - 1
        index += self.first_index
        return make_scene(self.kind, index, image_size=self.image_size, seed=self.seed, category=category)

    def finish(self, records: Sequence[Any]) -> None:
        """Nothing describes the whole set."""


class CocaLayout(SingleClassLayout):
    """``CoCA/image/<class>/*.jpg`` and ``CoCA/binary/<class>/*.png`` (255 on the class); one class per folder."""

    name = "CoCA"

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        folder, name = self.root / self.name, category_table("coca").names[self.label(index)]
        return [folder / "image" / name / f"{index:06d}.jpg", folder / "binary" / name / f"{index:06d}.png"]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        shown = scene.category_map == self.label(index)
        write_bytes(label_path, encode_png(np.where(shown, np.uint8(255), np.uint8(0))))
        write_bytes(image_path, encode_jpeg(scene.image))
        return image_path.name


@dataclass(frozen=True)
class ImageNetSLayout(SingleClassLayout):
    """``ImageNetS/ImageNetS<n>``: ``validation/<wnid>`` and ``validation-segmentation`` (R + 256·G, 1000 ignored).

    Attributes:
        num_categories: of the benchmark that is imitated: 50, 300 or 919.
    """

    num_categories: int = 50

    name = "ImageNetS"
    first_index = 1_000_000

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        folder = self.root / self.name / f"ImageNetS{self.num_categories}"
        folders = imagenet_s_table(self.num_categories).folders
        wnid = next(wnid for wnid, label in folders.items() if label == self.label(index))
        stem = f"ILSVRC2012_val_{index + 1:08d}"
        return [
            folder / "validation" / wnid / f"{stem}.JPEG",
            folder / "validation-segmentation" / wnid / f"{stem}.png",
        ]

    def write(self, index: int) -> Any:
        """See ``Layout``."""
        scene = self.scene(index)
        image_path, label_path = self.paths(index)
        label = outline_things(scene, scene.category_map.astype(np.int32), 1000)
        red_green = np.stack([label % 256, label // 256, np.zeros_like(label)], axis=-1).astype(np.uint8)
        write_bytes(label_path, encode_png(red_green))
        write_bytes(image_path, encode_jpeg(scene.image))
        return image_path.name


class CaptionLayout(Layout):
    """``captions/NNNNN.tar``, webdataset shards of ``<key>.jpg`` and ``<key>.txt``; an index is a whole shard."""

    name = "captions"
    kind = "caption"
    pictures_per_shard: ClassVar[int] = 500

    def paths(self, index: int) -> list[Path]:
        """See ``Layout``."""
        return [self.root / self.name / f"{index:05d}.tar"]

    def write(self, index: int) -> Any:
        """See ``Layout``; ``num_images`` counts shards here."""
        with atomic_write(self.paths(index)[0], sync=False) as file, tarfile.open(fileobj=file, mode="w") as archive:
            for number in range(index * self.pictures_per_shard, (index + 1) * self.pictures_per_shard):
                scene = self.scene(number)
                caption = write_caption(scene.things, np.random.default_rng([self.seed, 78, number]))
                for suffix, content in (("jpg", encode_jpeg(scene.image)), ("txt", caption.encode())):
                    entry = tarfile.TarInfo(f"{number:08d}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        return self.paths(index)[0].name

    def finish(self, records: Sequence[Any]) -> None:
        """Nothing describes the whole set."""
