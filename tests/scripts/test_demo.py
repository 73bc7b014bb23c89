"""The demonstration in miniature: all stages with the shipped models, a page and numbers at the end."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from scripts import pretrain_world
from scripts.demonstrations import common, reco
from scripts.demonstrations.__main__ import main

SCORES = ("retrieval_precision", "pseudo_mask_iou", "miou", "pixel_accuracy", "ap", "ap50", "ap75")
STAGES = ["world", "retrieval", "pseudo-masks", "training", "evaluation", "baselines", "pictures"]


def test_the_demonstration_measures_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("UNMASKED_DEMO", "restored afterwards")
    for name, value in (("NUM_INDEX", 80), ("NUM_VALIDATION", 6), ("IMAGE_SIZE", 96)):
        monkeypatch.setattr(common, name, value)
    words = [
        "n_images=2",
        "n_iters=4",
        "iter_log=2",
        "iter_eval=4",
        "saliency.num_workers=0",
        "embedding.num_workers=0",
    ]
    assert main(["zutis", "--output", str(tmp_path), *words]) == 0
    results = orjson.loads((tmp_path / "results.json").read_bytes())
    assert all(0 <= results[name] <= 1 for name in SCORES)
    assert all(0 <= results["baseline"][name] <= 1 for name in SCORES)
    assert list(results["seconds"]) == STAGES
    assert results["retrieval_precision"] > 2 * results["baseline"]["retrieval_precision"]
    page = (tmp_path / "report.html").read_text()
    for text in ("SelfMask named by CLIP", "pseudo-mask IoU", 'alt="losses"', "bare category names", "butterfly"):
        assert text in page
    assert len(list((tmp_path / "pictures" / "labels").rglob("*.png"))) == 6
    told = capfd.readouterr().err
    assert "measured on 6 validation pictures" in told
    assert str(tmp_path / "report.html") in told


def test_namedmask_with_and_without_experts_beside_zutis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("UNMASKED_DEMO", "restored afterwards")
    for name, value in (("NUM_INDEX", 60), ("NUM_VALIDATION", 4), ("IMAGE_SIZE", 64)):
        monkeypatch.setattr(common, name, value)
    (tmp_path / "results.json").write_text('{"miou": 0.5, "pixel_accuracy": 0.9}')  # of a demonstration before
    words = [
        *("n_images=2", "n_iters=2", "iter_eval=2", "train_image_size=32", "train_dataloader_kwargs.batch_size=2"),
        *("saliency.num_workers=0", "embedding.num_workers=0", "selfmask_shorter_side=64"),
        *("experts.n_iters=1", "experts.train_image_size=32", "experts.at_once=1", "experts.n_clusters=2"),
        "experts.train_dataloader_kwargs={batch_size: 2, num_workers: 0}",
    ]
    assert main(["namedmask", "--output", str(tmp_path), *words]) == 0
    results = orjson.loads((tmp_path / "namedmask" / "results.json").read_bytes())
    assert set(results["methods"]) == {"NamedMask", "NamedMask, experts", "ZUTIS"}
    assert results["methods"]["ZUTIS"] == {"miou": 0.5, "pixel_accuracy": 0.9}
    ious = results["pseudo_mask_iou"]
    assert results["gain_of_experts"] == pytest.approx(ious["experts"] - ious["SelfMask"])
    page = (tmp_path / "namedmask" / "report.html").read_text()
    for text in ("IoU of SelfMask", "IoU of experts", "NamedMask, experts", "points of IoU", "deeplabv3plus_mobilenet"):
        assert text in page
    assert len(list((tmp_path / "namedmask" / "pictures" / "labels").rglob("*.png"))) == 4
    told = capfd.readouterr().err
    assert "ZUTIS was demonstrated before" in told
    assert "pseudo-masks against the truth: SelfMask" in told


def test_reco_and_reco_plus_with_and_without_the_crf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("UNMASKED_DEMO", "restored afterwards")
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reco, "IMAGE_SIZE", 96)
    monkeypatch.setattr(reco, "COUNTS", {"num_stuff_index": 90, "num_stuff_val": 6, "num_stuff_train": 6})
    loader = "{batch_size: 4, num_workers: 0}"
    words = [
        *("n_images=3", "embedding.num_workers=0", "n_iters=2", "iter_log=1", "iter_eval=2", "train_image_size=32"),
        *(f"val_dataloader_kwargs={loader}", f"train_dataloader_kwargs={loader}"),
        "crf={iterations: 1, num_threads: 1}",
    ]
    assert main(["reco", "--output", str(tmp_path), *words]) == 0
    results = orjson.loads((tmp_path / "reco" / "results.json").read_bytes())
    assert list(results["methods"]) == ["dense CLIP", "ReCo", "ReCo+"]
    stages = ["world", "references", "ReCo", "dense CLIP", "pseudo-labels", "ReCo+", "pictures"]
    assert list(results["seconds"]) == stages
    for method, scores in results["methods"].items():
        assert results["gain_of_crf"][method] == pytest.approx(scores["miou_crf"] - scores["miou"])
        assert all(0 <= scores[name] <= 1 for name in ("miou", "miou_crf", "pixel_accuracy", "pixel_accuracy_crf"))
    assert results["methods"]["ReCo"]["pixel_accuracy"] > 0.3  # by chance below 0.1
    assert results["pseudo_labels"]["pixel_accuracy"] > 0.3
    page = (tmp_path / "reco" / "report.html").read_text()
    for text in ("ReCo+, CRF", "without CRF", 'alt="losses"', "have in common", "cactus"):
        assert text in page
    assert len(list((tmp_path / "reco" / "pictures" / "labels").rglob("*.png"))) == 6
    told = capfd.readouterr().err
    assert "measured on 6 validation pictures" in told
    assert "labels ReCo+ learnt from" in told


@pytest.mark.parametrize("command", [main, pretrain_world.main])
def test_an_output_that_cannot_be_written_is_refused(command, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "out").touch()
    assert command(["--output", str(tmp_path / "out")]) == 2
    assert "out: cannot be written (a file is in the way). Choose another --output." in capfd.readouterr().err


def test_another_demonstration_is_refused(capfd: pytest.CaptureFixture) -> None:
    assert main(["pgseg"]) == 2
    assert "there are demonstrations of: zutis, namedmask, reco; received pgseg" in capfd.readouterr().err
