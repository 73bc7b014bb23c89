"""ReCo+'s training set: pictures with the label PNGs that ReCo left for them, paired by name.

Sample i is a pure function of (seed, i). What becomes of a picture: `datasets/labelled_sample.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from datasets.base import Benchmark
from datasets.central_square import SIDE, resize_square, sample_square
from datasets.label_files import check_labels, read_index_png
from datasets.labelled_sample import draw_labelled, make_labelled_sample
from datasets.pairing import require_files
from datasets.photometric import PhotometricSettings
from datasets.picture_folder import PictureFolder
from datasets.synthesis import Sample
from pseudo_labels.label_maps import is_complete
from training.samplers import ShuffledDataset
from utils.errors import DataError, UnreadableImageError
from utils.images import read_size
from utils.log import get_logger
from utils.spread import spread_rows

logger = get_logger(__name__)
NUM_ALL, NUM_SOME = 20000, 2000  # up to so many files are looked at; so many, evenly spread, where there are more
_NUM_THREADS, _SHOWN = 8, 3
REMEDY = "Make the label PNGs again, or give the right folder (dir_pseudo_masks)."


@dataclass(frozen=True)
class SampleSettings:
    """How pictures become samples; the defaults are the published ones (ReCo spec 12)."""

    image_size: int = 320
    scale_range: tuple[float, float] = (0.5, 2.0)
    ignore_index: int = 255
    photometric: PhotometricSettings = field(default_factory=lambda: PhotometricSettings(greyscale_probability=0.0))
    seed: int = 0


class LabelledPictures(Dataset[Sample]):
    """Augmented samples of pictures whose label PNGs lie in a folder; any position i >= 0 is valid.

    Args:
        pictures: reader of the pictures; its own labels are never looked at.
        label_dir: folder of label PNGs, each at `pictures.export_path(label_dir, picture)`: ReCo's own, or an unpacked
            archive of the release.
        settings: see there.
        left_out: pictures without a label, which are left out.

    Raises:
        DataError: label PNGs are missing; names the first.

    Pictures of the published benchmarks become central squares of 320 pixels, as published, their labels too unless
    they are such squares already. Others keep their shape.
    """

    def __init__(
        self,
        pictures: Benchmark,
        label_dir: str | Path,
        settings: SampleSettings | None = None,
        *,
        left_out: Sequence[Path] = (),
    ) -> None:
        self.pictures, self.settings = pictures, settings or SampleSettings()
        without = set(left_out)
        self.image_paths = [path for path in pictures.image_paths if path not in without]
        if not self.image_paths:
            raise DataError(
                f"{label_dir}: none of the {len(pictures)} pictures has a label PNG, nothing to train from."
            )
        self.label_dir = Path(label_dir)
        self.label_paths = [pictures.export_path(label_dir, path) for path in self.image_paths]
        require_files(
            self.label_paths,
            "label PNGs",
            f"Every picture of {pictures.name} {pictures.split} needs one: make the missing ones with ReCo (leave "
            "dir_pseudo_masks out), or give the folder that holds them all.",
        )
        self._order = ShuffledDataset(range(len(self.image_paths)), seed=self.settings.seed)

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, position: int) -> Sample:
        """The sample at any position >= 0.

        Raises:
            DataError: a picture or label is damaged, the two do not fit, or a label is none of the classes; names the
                files.
        """
        settings, row = self.settings, self._order[position]
        image, labels = self.read_pair(row)
        draws = draw_labelled(
            np.random.default_rng((settings.seed, position)),
            labels.shape,
            settings.image_size,
            scale_range=settings.scale_range,
            photometric=settings.photometric,
        )
        return make_labelled_sample(
            image,
            labels,
            draws,
            crop_size=settings.image_size,
            ignore_index=settings.ignore_index,
            blur_kernel=settings.photometric.kernel_width(settings.image_size),
        )

    def check_sizes(self) -> None:
        """Compare pictures and label PNGs by their headers, all or (of more than `NUM_ALL`) an even sample of them.

        Training would come to them one by one, after hours.

        Raises:
            DataError: files that cannot be opened, or sizes that do not fit; names the first and their number.
        """
        total = len(self.image_paths)
        rows = spread_rows(total, total if total <= NUM_ALL else NUM_SOME)
        if len(rows) < total:
            logger.info("label PNGs: the sizes of %d of the %d are looked at, evenly spread", len(rows), total)
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            problems = [problem for problem in pool.map(self._size_problem, rows) if problem]
        if problems:
            more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
            count = f"{len(problems)} of {len(rows)} pictures and label PNGs do not fit or cannot be read. {REMEDY}"
            raise DataError("\n  ".join([f"{self.label_dir}: {count}", *problems[:_SHOWN], *more]))

    def _size_problem(self, row: int) -> str:
        """What headers tell of a picture and its label PNG: what is wrong, or nothing."""
        path, label_path = self.image_paths[row], self.label_paths[row]
        try:
            size, found = read_size(path), read_size(label_path)
            if not is_complete(label_path):
                read_index_png(label_path)  # bytes behind a PNG's end do no harm
        except UnreadableImageError as error:
            return str(error)
        wanted = [self.pictures.fitted_size(size)]
        if self.pictures.trains_on_squares:
            wanted = [(SIDE, SIDE), size]
        elif isinstance(self.pictures, PictureFolder):
            wanted.append(self.pictures.fitted_size(size[::-1]))  # pictures that were taken upright are turned
        if found in wanted:
            return ""
        expected = " or ".join(f"{height}x{width}" for height, width in dict.fromkeys(wanted))
        return f"{label_path}: {found[0]}x{found[1]} (height x width), expected {expected} for {path}"

    def read_pair(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """A picture, RGB, uint8, (H, W, 3), and its labels, (H, W), as they are augmented."""
        path, label_path = self.image_paths[row], self.label_paths[row]
        image, labels = self.pictures.read_image(path), read_index_png(label_path, REMEDY)
        check_labels(labels, label_path, self.pictures.num_classes, self.settings.ignore_index, REMEDY)
        if self.pictures.trains_on_squares:
            wanted = resize_square(image, SIDE, Image.Resampling.BILINEAR)
            is_whole = labels.shape == image.shape[:2] and labels.shape != (SIDE, SIDE)
            fitted = sample_square(labels, SIDE) if is_whole else labels
        else:
            wanted, fitted = self.pictures.fit(image, None)[0], labels
        if wanted.shape[:2] != fitted.shape:
            raise DataError(
                f"{label_path}: this label PNG is {labels.shape[0]}x{labels.shape[1]}, but its picture {path} is "
                f"{image.shape[0]}x{image.shape[1]} (height x width) and is trained on at "
                f"{wanted.shape[0]}x{wanted.shape[1]}. {REMEDY}"
            )
        return wanted, fitted
