"""The second journey through its two commands: names and a plain folder of pictures in, segmented pictures out."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest

import inference
import train
from datasets.shapes.world import World

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pictures(tiny_world: World, tmp_path: Path) -> Path:
    """Pictures of the world in a folder without any layout, one of them broken."""
    folder = tmp_path / "my pictures" / "2024"
    folder.mkdir(parents=True)
    for path in sorted((tiny_world.pass_dir / "images").iterdir()):
        shutil.copy(path, folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder.parent


def small(world: World) -> list[str]:
    """Words that make the recipe small and offline."""
    clip = world.root / "clip.pt"
    return [
        *("clip_arch=custom", f"clip_weights={clip}", f"retrieval_clip={clip}", "device=cpu"),
        *(f"selfmask_weights={world.root / 'selfmask.pt'}", "selfmask_shorter_side=48", "train_image_size=48"),
        *("n_images=4", "n_iters=2", "iter_log=1", "num_queries=4", "num_decoder_layers=2"),
        *(
            "embedding.num_workers=0",
            "saliency.num_workers=0",
            "train_dataloader_kwargs={batch_size: 2, num_workers: 0}",
        ),
    ]


def test_from_names_to_pictures(
    pictures: Path, tiny_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/zutis/custom.yaml")
    words = ["categories=[fish, house]", f"dir_train_dataset={pictures}", f"dir_ckpt={tmp_path / 'runs'}", "name=mine"]
    assert train.main(["--config", config, *words, *small(tiny_world)]) == 0
    run = tmp_path / "runs" / "mine"
    told = capfd.readouterr().err
    archive = "image archive: 2 categories, 8 images"
    for text in ("1 unreadable pictures", archive, "pseudo-masks: ", "trained for 2 iterations"):
        assert text in told
    (listed,) = run.rglob("unreadable.txt")
    assert "broken.jpg" in listed.read_text()
    assert (run / "report.html").is_file()
    assert inference.main(["--weights", str(run), "--images", str(pictures), "--output", str(tmp_path / "out")]) == 0
    told = capfd.readouterr().err
    assert "refused" in told
    assert "broken.jpg" in told
    document = orjson.loads((tmp_path / "out" / "instances.json").read_bytes())
    assert len(document["images"]) == len(list(pictures.rglob("*"))) - 2  # neither the folder nor the broken one
    assert [category["name"] for category in document["categories"]] == ["fish", "house"]
    assert train.main(["--config", config, *words, *small(tiny_world)]) == 0
    assert "all 2 iterations are done already" in capfd.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(
    pictures: Path, tiny_world: World, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    from training.run_folder import RunFolder
    from utils.files import RunLock

    words = ["categories=[fish, house]", f"dir_train_dataset={pictures}", f"dir_ckpt={tmp_path}", "name=mine"]
    with RunLock(RunFolder(tmp_path / "mine").path):
        status = train.main(["--config", str(ROOT / "configs/zutis/custom.yaml"), *words, *small(tiny_world)])
    assert status == 2
    told = capfd.readouterr().err
    assert "mine" in told
    assert "Traceback" not in told
