"""Drawings and report of ReCo: every name has its own drawing, and is called as the user called it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from pseudo_labels.cosegmentation import Cosegmentation
from systems import reco_places
from systems.reco_report import NUM_SHOWN, SeedPictures, seed_section, write_reco_report
from training.run_folder import RunFolder
from utils.annotated_png import read_annotated
from utils.config import settings_from_dict


def draw(folder: Path, names: Sequence[str], num_pictures: int = 7) -> None:
    """A drawing per name, the n-th in shade 20 n."""
    for number, name in enumerate(names, start=1):
        pictures = torch.full((num_pictures, 3, 8, 8), 20 * number, dtype=torch.uint8)
        seeds = torch.zeros(num_pictures, dtype=torch.int64)
        SeedPictures(folder)(name, pictures, Cosegmentation(torch.ones(4), seeds, torch.ones(num_pictures, 2, 2)))


def captions(folder: Path, names: Sequence[str], context: Sequence[str] = ()) -> list[str]:
    section = seed_section(folder, names, context)
    return [] if section is None else [figure.caption for figure in section.figures]


def sources(page: str) -> list[str]:
    return [part.split('"')[0] for part in page.split('src="')[1:]]


ODD = ["wall/brick", "wall brick", "traffic light", "a:b*?", "../up", "100% #1", "Bäume"]


def test_every_name_has_a_drawing_of_its_own(tmp_path: Path) -> None:
    draw(tmp_path, ODD)
    draw(tmp_path, ODD)  # again: the same files
    files = {read_annotated(path)[1]["category"]: path.name for path in tmp_path.iterdir()}
    assert set(files) == set(ODD)
    assert len(list(tmp_path.iterdir())) == len(ODD)
    assert files["traffic light"] == "coseg_traffic_light.png"
    assert files["wall/brick"] == "coseg_wall_brick.png"
    assert files["wall brick"].startswith("coseg_wall_brick_")
    assert not any(set(name) & set(':*?"<>|') for name in files.values())
    shades = [int(figure.image[7, 7, 0]) for figure in seed_section(tmp_path, ODD).figures]
    assert shades == sorted(set(shades))  # the picture under a name is that name's


def test_the_page_finds_its_pictures(tmp_path: Path) -> None:
    values = {"system": "reco", "categories": ODD, "dir_ckpt": str(tmp_path), "name": "run #1 100%"}
    settings = settings_from_dict(values, source="test")
    run = RunFolder(reco_places.run_path(settings))
    draw(reco_places.seed_pictures(settings), ODD)
    write_reco_report(run, settings, title="t", subtitle="s")
    page = run.report_path.read_text(encoding="utf-8")
    assert len(set(sources(page))) == len(ODD)
    assert all((run.path / unquote(source)).is_file() for source in sources(page))
    assert "a:b*?" in page
    assert "../up" in page


def test_own_names_come_first_and_the_context_is_marked(tmp_path: Path) -> None:
    draw(tmp_path, ["building", "person", "tree", "sky", "road", "from an earlier run"], NUM_SHOWN)
    found = captions(tmp_path, ["road", "person", "sky"], ["building", "person", "tree"])
    names = ["road", "person", "sky", "building (context)", "tree (context)"]
    assert found == [f"{name}: {NUM_SHOWN} pictures" for name in names]
    assert "context" in seed_section(tmp_path, ["road"], ["tree"]).paragraphs[0]
    assert "context" not in seed_section(tmp_path, ["road"], ["road"]).paragraphs[0]


def test_a_name_that_shares_the_reference_of_the_context(tmp_path: Path) -> None:
    draw(tmp_path, ["tree", "sky"], 1)
    found = captions(tmp_path, ["vegetation", "sky"], ["tree"])
    assert found == ["vegetation (drawn as tree): 1 picture", "sky: 1 picture"]


@pytest.mark.parametrize(("number", "told"), [(4, "4 pictures"), (50, f"{NUM_SHOWN} of 50 pictures")])
def test_captions_count_what_is_shown(tmp_path: Path, number: int, told: str) -> None:
    draw(tmp_path, ["sky"], number)
    assert captions(tmp_path, ["sky"]) == [f"sky: {told}"]


def test_drawings_that_do_not_say_their_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "coseg_traffic_light.png")
    (tmp_path / "coseg_broken.png").write_bytes(b"no picture")
    assert captions(tmp_path, ["traffic light", "broken"]) == ["traffic light"]
    assert captions(tmp_path / "none", ["sky"]) == []
