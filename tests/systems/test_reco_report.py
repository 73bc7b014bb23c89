"""Drawings and report of ReCo: every name has its own drawing, and is called as the user called it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.protocol import Protocol, write_results
from pseudo_labels.cosegmentation import Cosegmentation
from systems import reco_places
from systems.reco_report import NUM_SHOWN, SeedPictures, seed_section, write_reco_report
from systems.reco_results import DENSE_CLIP, RECO, RECO_PLUS, keep_results, results_files
from systems.run_report import results_sections
from training.run_folder import RunFolder
from utils.annotated_png import read_annotated
from utils.config import settings_from_dict
from utils.files import read_json


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


# ---- scores of several methods --------------------------------------------------------------------------------------


def score(run: RunFolder, method: str, value: float) -> None:
    """Leave scores as a method does."""
    keep_results(run, method)
    protocol = Protocol(
        benchmark="toy",
        split="val",
        num_images=2,
        category_names=("sky", "road"),
        extra={"references": "none" if method == DENSE_CLIP else "3 pictures", "segmenter": f"net of {method}"},
    )
    extra = {"iteration": 4} if method == RECO_PLUS else {}
    extra["class_iou_crf"] = {"sky": value, "road": None}
    write_results(run.path / "results.json", {"mean_iou": value, "mean_iou_crf": -1.0}, protocol,
                  class_iou=[value / 2, 0.25], extra=extra)  # fmt: skip


def scores_of(run: RunFolder) -> dict[str, float]:
    return {method: read_json(path)["scores"]["mean_iou"] for method, path in results_files(run).items()}


def test_every_method_keeps_its_scores_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert scores_of(run) == {}
    score(run, RECO, 0.3)
    score(run, RECO, 0.31)
    assert {path.name for path in tmp_path.iterdir()} == {"results.json"}
    score(run, RECO_PLUS, 0.4)
    assert read_json(tmp_path / "results_reco.json")["scores"]["mean_iou"] == 0.31
    score(run, RECO_PLUS, 0.45)
    assert scores_of(run) == {RECO: 0.31, RECO_PLUS: 0.45}
    score(run, DENSE_CLIP, 0.1)
    score(run, RECO, 0.35)
    assert scores_of(run) == {DENSE_CLIP: 0.1, RECO: 0.35, RECO_PLUS: 0.45}


def test_scores_side_by_side(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    score(run, RECO, 0.3)
    score(run, RECO_PLUS, 0.4)
    (section,) = results_sections(results_files(run))
    scores, classes, protocol = section.tables
    assert scores.header == ["score", "ReCo, %", "ReCo+, %"]
    assert scores.rows == [["mean IoU", "30.00", "40.00"], ["mean IoU, CRF", "-", "-"]]
    assert classes.header == ["category, IoU", "ReCo, %", "ReCo, CRF, %", "ReCo+, %", "ReCo+, CRF, %"]
    assert classes.rows == [["sky", "15.0", "30.0", "20.0", "40.0"], ["road", "25.0", "-", "25.0", "-"]]
    assert ["segmenter", "net of ReCo", "net of ReCo+"] in protocol.rows
    told = [row[0] for row in protocol.rows]
    assert "classes" in told
    assert not {"extra", "suppression", "category_names", "instances"} & set(told)


def test_scores_of_one_method_and_of_label_pngs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "mine")
    score(run, RECO, 0.3)
    (run.path / "results.json").rename(run.path / "results_pseudo_labels.json")
    settings = settings_from_dict(
        {"system": "reco", "categories": ["sky"], "dir_ckpt": str(tmp_path), "name": "mine"}, source="test"
    )
    write_reco_report(run, settings, title="t", subtitle="s")
    page = run.report_path.read_text(encoding="utf-8")
    assert "Label PNGs, compared with the truth" in page
    assert "mean IoU" in page
    assert "30.00" in page
    assert results_sections({"": tmp_path / "none.json"}) == []
