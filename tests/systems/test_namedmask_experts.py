"""Experts of categories and of clusters: training, masks, scores, and what users get wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets.shapes.world import World
from systems import experts, namedmask, stages
from tests.systems.tiny_namedmask import (
    EXPERTS,
    NAMES,
    ROOT,
    make_weights,
    times,
)
from tests.systems.tiny_world import tiny_namedmask_settings as tiny_settings
from training.run_folder import RunFolder
from utils.errors import ConfigError, WeightsError
from utils.files import read_json

# ---- experts --------------------------------------------------------------------------------------------------------


def test_clustered_experts(tiny_world: World, namedmask_run: Path, retrieved: list[str], tmp_path: Path) -> None:
    settings = tiny_settings(
        tiny_world, tmp_path, *retrieved, EXPERTS, "experts.n_clusters=2", "experts.n_iters=1", "n_iters=1"
    )
    run = namedmask.train(settings)
    clusters = read_json(run.path / "expert_clusters.json")["clusters"]
    assert sorted(name for members in clusters for name in members) == sorted(NAMES)
    folder = run.path / "experts" / "kmeans" / "n_experts_2"
    experiment = "deeplabv3plus_mobilenet_n3_sr50100"
    assert {path.name for path in folder.iterdir()} == {f"{experiment}_cid0_s0", f"{experiment}_cid1_s0"}
    groups = experts.expert_groups(settings, ["background", *NAMES], run)
    assert [group.categories for group in groups] == [tuple(members) for members in clusters]
    assert all((experts.expert_path(settings, group, run) / "final_model.pt").is_file() for group in groups)
    assert run.final_model_path.is_file()


def test_experts_are_found_by_every_run_of_a_benchmark(tiny_world: World, tmp_path: Path) -> None:
    """What `experts_voc_category.sh` trains is what `voc_val_n500_cp2_ex` looks for, and so on for each benchmark."""
    for stem in ("voc", "coco2017", "coca", "cityscapes", "imagenet_s50", "imagenet_s300", "imagenet_s919"):
        (whole,) = (ROOT / "configs" / "namedmask").glob(f"{stem}*_n500_cp2_ex.yaml")
        paths = []
        for config in (whole, ROOT / "configs" / "namedmask" / f"{stem}_category.yaml"):
            settings = namedmask.load_settings(config, [f"dir_ckpt={tmp_path}"])
            run = RunFolder(namedmask.run_path(settings))
            groups = experts.expert_groups(settings, stages.category_names(settings), run)
            paths.append([experts.expert_path(settings, group, run) for group in groups])
        assert paths[0] == paths[1]
        assert len(set(paths[0])) == len(paths[0])
    voc = tmp_path / "voc2012_category" / "train" / "deeplabv3plus_resnet50_n500_sr10100_tv_monitor_s0"
    settings = namedmask.load_settings(ROOT / "configs/namedmask/voc_category.yaml", [f"dir_ckpt={tmp_path}"])
    (group,) = experts.expert_groups(
        settings.model_copy(update={"single_category": ["tv_monitor"]}), stages.category_names(settings), run
    )
    assert experts.expert_path(settings, group, run) == voc


def test_categories_whose_file_names_are_alike_have_experts_of_their_own(tiny_world: World, tmp_path: Path) -> None:
    settings, run = tiny_settings(tiny_world, tmp_path), RunFolder(tmp_path)
    groups = experts.expert_groups(settings, ["background", "wall/brick", "wall brick", "tv/monitor"], run)
    paths = [experts.expert_path(settings, group, run) for group in groups]
    assert len(set(paths)) == 3
    assert "_wall_brick_s0" in paths[1].name
    assert "_tv_monitor_s0" in paths[2].name


def test_an_expert_of_voc_is_scored_while_it_is_trained_and_alone(tiny_world: World, tmp_path: Path) -> None:
    words = [
        *("categories=null", "dataset_name=voc2012_category", "split=train", f"dir_val_dataset={tiny_world.voc_dir}"),
        *("stop_after=experts", "n_images=1", "experts.n_iters=1"),
    ]
    benchmark = stages.open_benchmark(
        tiny_settings(tiny_world, tmp_path, *words[:4], "dataset_name=voc2012"), [], with_instances=False
    )
    labels = np.concatenate([np.unique(item.label) for item in benchmark])
    name = benchmark.category_names[int(labels[(labels > 0) & (labels < 255)][0])]
    settings = tiny_settings(tiny_world, tmp_path, *words, f"single_category=['{name}']")
    namedmask.train(settings)
    (expert,) = (tmp_path / "voc2012_category" / "train").iterdir()
    trained = read_json(expert / "results.json")
    assert trained["protocol"]["benchmark"] == "voc2012_category"
    settings = tiny_settings(tiny_world, tmp_path, *words, f"single_category=['{name}']", task="evaluate")
    result = namedmask.evaluate(settings, expert / "final_model.pt")
    assert result.scores() == pytest.approx(trained["scores"])
    assert result.protocol.category_names == ("background", name)


def test_experts_weights_that_lack_are_named_together(tiny_world: World, retrieved: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    make_weights(folder / "expert_house.pt", 2)
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, EXPERTS, f"experts.dir_weights={folder}")
    with pytest.raises(WeightsError, match=r"lacks the weights of 2 of 3 experts: expert_fish.pt, expert_car.pt\. Put"):
        namedmask.train(settings)
    for name in ("fish", "car"):
        shutil.copy(folder / "expert_house.pt", folder / f"expert_{name}.pt")
    settings = tiny_settings(tiny_world, tmp_path, *retrieved, "stop_after=experts", f"experts.dir_weights={folder}")
    run = namedmask.train(settings)
    assert len(times(tmp_path / "expert_masks")) == 9
    assert not (run.path / "experts").exists()
    make_weights(folder / "expert_car.pt", 4)
    shutil.rmtree(tmp_path / "expert_masks")
    with pytest.raises(WeightsError, match=r"expert_car.pt: these weights have 4 classes"):
        namedmask.train(settings)


def test_names_that_are_no_categories_are_refused(tiny_world: World, retrieved: list[str], tmp_path: Path) -> None:
    words = [*retrieved, "stop_after=experts"]
    with pytest.raises(
        ConfigError, match=r"single_category: 'whale' not among the 3 categories: 'fish', 'house', 'car'"
    ):
        namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "single_category=[fish, whale]"))
    with pytest.raises(ConfigError, match=r"experts.n_clusters: received 4, but there are only 3 categories"):
        namedmask.train(tiny_settings(tiny_world, tmp_path, *words, "experts.n_clusters=4"))
