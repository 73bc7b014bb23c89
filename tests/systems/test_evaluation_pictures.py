"""Panels of an evaluation say which picture they are of, and what their colours mean."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.base import EvaluationItem
from evaluation.evaluate import Prediction
from systems.evaluation_pictures import EvaluationPictures, last_panels
from training.run_folder import RunFolder
from utils.drawing import palette


class Pictures:
    palette, category_names = palette(3), ("background", "cat", "dog/wolf")
    image_paths = (Path("x/a.jpg"), Path("x/Bäume #1.png"))

    def __len__(self) -> int:
        return len(self.image_paths)


def test_panels_keep_what_they_show(tmp_path: Path) -> None:
    run, pictures = RunFolder(tmp_path), EvaluationPictures(tmp_path / "pictures", Pictures())
    image, labels = np.zeros((8, 8, 3), np.uint8), torch.ones(8, 8, dtype=torch.int64)
    truth = np.full((8, 8), 255)
    pictures.add(EvaluationItem(image, truth, (8, 8), 0, Pictures.image_paths[0]), Prediction(labels))
    refined = Prediction(labels, refined=2 * labels)
    pictures.add(EvaluationItem(image, None, (8, 8), 1, Pictures.image_paths[1]), refined)
    (tmp_path / "pictures" / "000002_damaged.png").write_bytes(b"no picture")
    Image.fromarray(image).save(tmp_path / "pictures" / "000003_my_old.png")
    first, second, old = last_panels(run)
    cat, dog = (tuple(map(int, colour)) for colour in Pictures.palette[1:])
    assert (first.name, first.parts) == ("a.jpg", ("picture", "truth", "prediction"))
    assert first.colours == {1: ("cat", cat)}
    assert (second.name, second.parts) == ("Bäume #1.png", ("picture", "prediction", "prediction with CRF"))
    assert second.colours == {1: ("cat", cat), 2: ("dog/wolf", dog)}
    assert (old.name, old.parts, old.colours) == ("my_old", (), {})
    assert second.image.shape == (192, 3 * 192 + 8, 3)
