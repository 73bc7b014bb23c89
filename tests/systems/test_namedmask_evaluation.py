"""NamedMask's scores and segmented pictures from weight files and runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image

from datasets.shapes.world import World
from systems import namedmask, scoring
from tests.systems.tiny_namedmask import (
    EXPERTS,
    NAMES,
    expert_dirs,
    make_weights,
    voc_settings,
)
from utils.errors import ConfigError, DataError, WeightsError

# ---- evaluation -----------------------------------------------------------------------------------------------------


def test_evaluation_reads_the_benchmark_and_the_weights_alone(
    tiny_world: World, voc_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_text
) -> None:
    monkeypatch.setattr("utils.download.download", lambda *_, **__: pytest.fail("something is downloaded"))
    words = ["dir_train_dataset=/none", "backbone_weights=dino", "retrieval_clip=ViT-B/16", EXPERTS]
    settings = voc_settings(
        tiny_world, tmp_path, *words, "selfmask_weights=/none", "segmenter_name=deeplabv3plus_resnet50"
    )
    result = namedmask.evaluate(settings, voc_weights)
    folder = scoring.evaluation_path(settings, voc_weights)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml", "voc2012"}
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "pictures", "results.json"}
    assert result.protocol.num_images == 4
    assert result.protocol.extra["segmenter"] == "deeplabv3plus_mobilenet"
    assert set(result.scores()) == {"mean_iou", "pixel_accuracy", "mean_accuracy", "frequency_weighted_iou"}


def test_evaluation_does_not_depend_on_batches_or_the_kind_of_file(
    tiny_world: World, voc_weights: Path, tmp_path: Path
) -> None:
    expected = namedmask.evaluate(voc_settings(tiny_world, tmp_path), voc_weights).scores()
    settings = voc_settings(tiny_world, tmp_path, "val_dataloader_kwargs={batch_size: 1, num_workers: 0}")
    assert namedmask.evaluate(settings, voc_weights).scores() == pytest.approx(expected)
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(voc_weights, run / "final_model.pt")
    (run / "config.yaml").write_text("system: namedmask\ndataset_name: voc2012\n")
    assert namedmask.evaluate(voc_settings(tiny_world, tmp_path), run).scores() == pytest.approx(expected)


def test_weights_of_other_classes_are_refused(
    tiny_world: World, voc_weights: Path, namedmask_run: Path, tmp_path: Path
) -> None:
    settings = voc_settings(tiny_world, tmp_path)
    with pytest.raises(WeightsError, match=r"have 4 classes, the benchmark asks for 21\. Use the script or config"):
        namedmask.evaluate(settings, namedmask_run)
    with pytest.raises(WeightsError, match=r"weights of a DeepLabv3\+ were expected.*look like SelfMask weights"):
        namedmask.evaluate(settings, tiny_world.root / "selfmask.pt")


def test_labels_and_files_that_do_not_fit_the_benchmark(tiny_world: World, voc_weights: Path, tmp_path: Path) -> None:
    folder = tmp_path / "VOC2012"
    shutil.copytree(tiny_world.voc_dir, folder)
    labels = sorted((folder / "SegmentationClass").iterdir())
    settings = voc_settings(tiny_world, tmp_path, f"dir_val_dataset={folder}")
    whole = labels[0].read_bytes()
    label = Image.open(labels[0])
    label.putpixel((3, 3), 77)
    label.save(labels[0])
    with pytest.raises(DataError, match=rf"{labels[0].name}.*77"):
        namedmask.evaluate(settings, voc_weights)
    labels[0].write_bytes(whole)
    shutil.copy(labels[0], labels[0].with_name("of_nothing.png"))
    with pytest.raises(DataError, match=r"1 .*of_nothing\.png"):
        namedmask.evaluate(settings, voc_weights)
    labels[0].with_name("of_nothing.png").unlink()
    labels[0].unlink()
    with pytest.raises(DataError, match=rf"1 .*{labels[0].name}"):
        namedmask.evaluate(settings, voc_weights)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_segmenting_pictures(namedmask_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "colour.jpg")
    Image.fromarray(rng.integers(0, 255, (1, 1, 3), dtype=np.uint8)).save(folder / "tiny.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    results = namedmask.segment_pictures(namedmask_run, [folder], categories=None, output_dir=tmp_path / "all")
    assert {result.path.name for result in results if result.refusal} == {"broken.jpg"}
    assert Image.open(tmp_path / "all" / "labels" / "colour.png").size == (60, 40)
    document = orjson.loads((tmp_path / "all" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == NAMES
    namedmask.segment_pictures(namedmask_run, [folder], categories=["car", "fish"], output_dir=tmp_path / "some")
    document = orjson.loads((tmp_path / "some" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == ["car", "fish"]
    whole, some = (np.asarray(Image.open(tmp_path / part / "labels" / "colour.png")) for part in ("all", "some"))
    # The network's labels 0, 1 (fish), 3 (car) become 0, 2, 1; where it says something else, the next best is taken.
    for label, number in ((0, 0), (1, 2), (3, 1)):
        assert (some[whole == label] == number).all()
    assert some.max() <= 2
    (expert, *_) = expert_dirs(namedmask_run).values()
    namedmask.segment_pictures(expert, [folder / "colour.jpg"], categories=None, output_dir=tmp_path / "expert")
    document = orjson.loads((tmp_path / "expert" / "instances.json").read_bytes())
    assert [category["name"] for category in document["categories"]] == ["object"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fish", "whale"], "trained for 3 categories, and 'whale' is not among them: fish, house, car"),
        (["Fish", "ship"], r"and 'Fish' \(did you mean 'fish'\?\), 'ship'.* are not among them: fish, house, car"),
        (["fish", ""], "one is empty"),
        (["fish", "fish"], "more than once: 'fish'"),
    ],
)
def test_names_that_the_network_does_not_know(
    namedmask_run: Path, tmp_path: Path, names: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        namedmask.segment_pictures(namedmask_run, [tmp_path], categories=names, output_dir=tmp_path)


def test_names_of_published_files(voc_weights: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), (200, 30, 30)).save(tmp_path / "a.png")

    def names(weights: Path, *overrides: str) -> list[str]:
        namedmask.segment_pictures(
            weights, [tmp_path / "a.png"], categories=None, output_dir=tmp_path / "out", overrides=overrides
        )
        document = orjson.loads((tmp_path / "out" / "instances.json").read_bytes())
        return [category["name"] for category in document["categories"]]

    assert names(voc_weights)[:2] == ["aeroplane", "bicycle"]
    both = make_weights(tmp_path / "namedmask_coca.pt", 81)
    with pytest.raises(DataError, match=r"names of its 81 classes cannot be told.*dataset_name=coca"):
        names(both)
    assert names(both, "dataset_name=coca")[0] == "Accordion"
    assert names(both, "dataset_name=coco2017")[0] == "person"
    with pytest.raises(WeightsError, match="have 81 classes with background, but the settings name 21"):
        names(both, "dataset_name=voc2012")
