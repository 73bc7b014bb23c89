"""Settings of ReCo: the published keys beside those of all systems, and what cannot work together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.config import dump_settings, load_settings
from utils.errors import ConfigError
from utils.setting_types import Block
from utils.settings import SETTINGS, RecoSettings

SMALL = "system: reco\ncategories: [road, sky]\n"
NEEDS_NAMES = dict.fromkeys(("zutis", "namedmask", "reco"), "categories: [cat]\n")


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def blocks_of(block: Block, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Block]]:
    """All blocks inside settings, at any depth."""
    for name in type(block).model_fields:
        value = getattr(block, name)
        if isinstance(value, Block):
            yield (*path, name), value
            yield from blocks_of(value, (*path, name))


def load(tmp_path: Path, text: str, *words: str, task: str | None = None) -> RecoSettings:
    (tmp_path / "c.yaml").write_text(text)
    settings = load_settings(tmp_path / "c.yaml", words, task=task)
    assert isinstance(settings, RecoSettings)
    return settings


def problems(tmp_path: Path, text: str, *words: str, task: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *words, task=task)
    return [line.strip().replace(f"{tmp_path}/", "") for line in str(caught.value).splitlines()[1:]]


BENCHMARK = "a benchmark (dataset_name) and its folder (dir_val_dataset)"


def test_what_needs_a_benchmark_is_refused_without(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    text = f"{SMALL}dir_train_dataset: own\nretrieval_clip: RN50\n"
    plus = [*("method=reco_plus", "backbone_weights=null"), *("select_on=val", "validate_with_crf=true")]
    assert problems(tmp_path, text, *plus, task="train") == [
        f"command line: select_on: val, but the training has no scores to choose by; expected {BENCHMARK}",
        f"command line: validate_with_crf: true, but the training has no scores; expected {BENCHMARK}",
    ]
    load(tmp_path, text, *plus, "stop_after=prediction", task="train")
    reason = f"but there is no benchmark whose pictures ReCo could label; expected {BENCHMARK}, or method=reco_plus"
    for word in ("write_pseudo_labels=true", "split=train", "split=test"):
        key, value = word.split("=")
        for words in ((), ("dataset_name=kitti_step", "categories=null")):
            (line,) = problems(tmp_path, text, word, *words, task="train")
            assert line.startswith(f"command line: {key}: {value}, {reason}")
        load(tmp_path, text, word, "stop_after=references", task="train")


@pytest.mark.parametrize("words", [(), ("dataset_name=voc2012_category", "stop_after=experts", "categories=null")])
def test_namedmask_needs_a_benchmark_for_its_best_weights(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "c.yaml").write_text("system: namedmask\ncategories: [cat]\ndir_train_dataset: own\n")
    with pytest.raises(ConfigError, match="select_on: val, but the training has no scores to choose by"):
        load_settings(tmp_path / "c.yaml", ["select_on=val", "backbone_weights=null", *words], task="train")


PUBLISHED = """system: reco
dataset_name: cityscapes
dir_ckpt: runs
dir_dataset: cityscapes
dir_imagenet: ImageNet2012
clip_arch: ViT-L/14@336px
dense_clip_arch: RN50x16
dense_clip_inference: true
encoder_arch: DeiT-S/16-SIN
patch_size: 16
batch_size: 12
n_workers: 7
context_categories: [tree, sky, building, road, person]
context_elimination: true
text_attention: true
imagenet_split: train
n_imgs: 50
"""


def test_the_published_keys_are_understood(tmp_path: Path, log_text) -> None:
    found = load(tmp_path, PUBLISHED)
    assert (found.benchmark_dir, found.index_dirs) == (tmp_path / "cityscapes", [tmp_path / "ImageNet2012"])
    assert (found.num_images, found.retrieval_clip) == (50, "ViT-L/14@336px")
    assert (found.val_loader.batch_size, found.val_loader.num_workers) == (12, 7)
    assert "patch_size: this key of the published files has no effect" in log_text.text
    (tmp_path / "again.yaml").write_text(dump_settings(found))
    assert load_settings(tmp_path / "again.yaml") == found


def test_the_published_keys_of_the_trained_variant(tmp_path: Path) -> None:
    more = "method: reco_plus\niter_val: 500\nsegmentor_name: deeplabv3plus_resnet50\ndir_pseudo_masks: masks\n"
    found = load(tmp_path, PUBLISHED.replace("batch_size: 12", "batch_size: 8") + more)
    assert (found.train_loader.batch_size, found.train_loader.num_workers, found.val_loader.batch_size) == (8, 7, 16)
    assert (found.eval_interval, found.segmenter) == (500, "deeplabv3plus_resnet50")
    assert found.pseudo_label_dir == tmp_path / "masks"


def test_of_two_names_of_a_setting_the_last_counts(tmp_path: Path) -> None:
    text = f"{SMALL}n_imgs: 3\nval_dataloader_kwargs: {{batch_size: 4}}\n"
    assert load(tmp_path, text, "n_images=5").num_images == 5
    assert load(tmp_path, f"{SMALL}n_images: 3\n", "n_imgs=5").num_images == 5
    assert load(tmp_path, text, "batch_size=6").val_loader.batch_size == 6
    assert load(tmp_path, f"{SMALL}batch_size: 6\n", "val_dataloader_kwargs.batch_size=4").val_loader.batch_size == 4
    found = load(tmp_path, text, "batch_size=6", "val_dataloader_kwargs.num_workers=0").val_loader
    assert (found.batch_size, found.num_workers) == (6, 0)


def test_partial_blocks_keep_the_defaults_of_the_recipe(tmp_path: Path) -> None:
    found = load(tmp_path, f"{SMALL}photometric: {{hue: 0.1}}\n", "val_dataloader_kwargs={num_workers: 2}")
    assert (found.photometric.hue, found.photometric.greyscale_probability) == (0.1, 0.0)
    assert (found.val_loader.batch_size, found.val_loader.num_workers) == (16, 2)
    assert load(tmp_path, SMALL, "batch_size=2").val_loader.num_workers == 16
    assert load(tmp_path, f"{SMALL}crf: {{iterations: 5}}\n").crf.bilateral_sxy == 67


@pytest.mark.parametrize("system", SETTINGS)
def test_no_block_of_any_system_loses_a_default_to_a_partial_one(tmp_path: Path, system: str) -> None:
    settings = load_settings(write(tmp_path / "c.yaml", f"system: {system}\n{NEEDS_NAMES.get(system, '')}"))
    for path, block in blocks_of(settings):
        assert block == type(block)(), f"{'.'.join(path)} has defaults that its class does not have"


def test_two_names_in_one_place_are_refused(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"{SMALL}n_imgs: 3\nn_images: 4\n")
    assert line == "c.yaml:3: n_imgs: the same setting as 'n_images', which is also given; keep one"
    (line,) = problems(tmp_path, f"{SMALL}n_imgs: many\n")
    assert line == "c.yaml:3: n_images: received 'many', expected a whole number"


def test_what_the_trained_variant_needs(tmp_path: Path) -> None:
    for name in ("index", "labels"):
        (tmp_path / name).mkdir()
    text = f"{SMALL}method: reco_plus\ndir_train_dataset: index\n"
    assert load(tmp_path, text, task="train").trains
    lines = problems(tmp_path, text, "batch_size=1", "split=train", f"dir_pictures={tmp_path}/none", task="train")
    assert [line.split(": ")[1] for line in lines] == ["train_dataloader_kwargs", "split", "dir_pictures"]
    (line,) = problems(tmp_path, f"{SMALL}method: reco_plus\ndataset_name: cityscapes\ndir_pseudo_masks: labels\n"
                       .replace("categories: [road, sky]\n", ""), task="train")  # fmt: skip
    assert line.endswith("dir_val_dataset: not set; expected the folder of the benchmark cityscapes")
    (line,) = problems(tmp_path, f"{SMALL}method: reco_plus\ndir_pseudo_masks: labels\n", task="train")
    assert "dir_pictures: not set; expected pictures to learn from" in line


def test_an_index_is_needed_only_where_references_are_computed(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, SMALL, task="train")
    assert "dir_train_dataset: expected at least one folder of index images" in line
    (tmp_path / "r.pkl").write_bytes(b"")
    assert load(tmp_path, f"{SMALL}reference_path: r.pkl\n", task="train").reference_path == tmp_path / "r.pkl"
    assert problems(tmp_path, f"{SMALL}reference_path: s.pkl\n", task="train") == [
        "c.yaml: dir_train_dataset: expected at least one folder of index images "
        "(or category_to_p_images_fp, an existing file)",
        "c.yaml:3: reference_path: s.pkl does not exist; expected a file",
    ]


def test_the_split_of_imagenet_decides_what_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNMASKED_DATA", str(tmp_path))
    monkeypatch.setenv("UNMASKED_CACHE", str(tmp_path / "cache"))
    for config in ("cityscapes", "plus_kitti_step"):
        path = Path(__file__).parents[2] / f"configs/reco/{config}.yaml"
        for words, split in (((), "train"), (("imagenet_split=val",), "val")):
            found = load_settings(path, words)
            assert found.index_dirs == [tmp_path / "ImageNet2012" / split]
            name = f"filename_to_ViT_L_14_336px_{split}_img_embedding.pkl"
            assert found.embedding_paths == [tmp_path / "cache/zutis/imagenet2012" / name]


def test_another_split_than_the_one_that_is_named_is_refused(tmp_path: Path) -> None:
    for name in ("ImageNet2012/train", "own/val", "both/train", "both/val"):
        (tmp_path / name).mkdir(parents=True)
    file = tmp_path / "filename_to_ViT_L_14_336px_train_img_embedding.pkl"
    file.touch()
    for folder in ("ImageNet2012/train", "ImageNet2012"):
        assert problems(tmp_path, f"{SMALL}imagenet_split: val\ndir_train_dataset: {folder}\n", task="train") == [
            f"c.yaml:3: imagenet_split: val, but {folder} holds ImageNet's split train; expected imagenet_split=train, "
            "another dir_train_dataset, or imagenet_split=null for pictures that are no split"
        ]
    (line,) = problems(tmp_path, f"{SMALL}imagenet_split: train\ndir_train_dataset: own/val\n", task="train")
    assert "train, but own/val holds ImageNet's split val; expected imagenet_split=val" in line
    text = f"{SMALL}dir_train_dataset: both\np_filename_to_image_embedding: {file.name}\n"
    (line,) = problems(tmp_path, text, "imagenet_split=val", task="train")
    assert f"val, but {file.name} holds embeddings of train; expected imagenet_split=train" in line
    for word in ("imagenet_split=train", "imagenet_split=null"):
        load(tmp_path, text, word, task="train")


def test_names_that_label_pngs_cannot_hold_are_told_before_anything_is_made(tmp_path: Path) -> None:
    names = [f"name {number}" for number in range(255)]
    text = f"system: reco\ndataset_name: coco_layout\ndir_val_dataset: .\ncategories: {names}\n"
    assert problems(tmp_path, text, task="evaluate") == [
        "c.yaml:4: categories: received 255 names, expected 254 at most: label PNGs hold bytes, of which 0 and 255 "
        "stand for no name"
    ]
    load(tmp_path, text.replace(", 'name 254'", ""), task="evaluate")
    text = f"system: reco\nmethod: reco_plus\ndir_train_dataset: .\ncategories: {[*names, 'one more']}\n"
    assert problems(tmp_path, text, task="train") == [
        "c.yaml:4: categories: received 256 names, expected 255 at most: label PNGs hold bytes, of which 255 stands "
        "for no name"
    ]
    load(tmp_path, text, "method=reco", task="train")
    load(tmp_path, text.replace(", 'one more'", ""), task="train")


@pytest.mark.parametrize("benchmark", ["null", "coco_layout"])
def test_the_index_of_ignored_pixels_is_no_category(tmp_path: Path, benchmark: str) -> None:
    text = f"{SMALL}method: reco_plus\ndir_train_dataset: .\ndataset_name: {benchmark}\ndir_val_dataset: .\n"
    for index, name in enumerate(("road", "sky")):
        (line,) = problems(tmp_path, text, f"ignore_index={index}", task="train")
        assert line == (
            f"command line: ignore_index: {index} is the label of '{name}', which would not be learnt; expected a "
            "number that is no label, such as 255"
        )
        for word in ("method=reco", "stop_after=prediction"):
            load(tmp_path, text, f"ignore_index={index}", word, task="train")
    load(tmp_path, text, "ignore_index=2", task="train")


def test_dense_clip_alone_needs_a_benchmark_and_nothing_else(tmp_path: Path) -> None:
    text = "system: reco\nmethod: dense_clip\ndataset_name: cityscapes\ndir_val_dataset: city\n"
    (tmp_path / "city").mkdir()
    nowhere = "dir_train_dataset: nowhere\nreference_path: none.pkl\nencoder_weights: none.pth\n"
    found = load(tmp_path, text + nowhere, task="train")
    assert not found.uses_references
    assert not found.trains
    (line,) = problems(tmp_path, text, "split=train", task="train")
    assert "dense_clip writes no label PNGs (method=reco does); expected another split" in line
    load(tmp_path, text, "split=train", "write_pseudo_labels=false", task="train")
    (line,) = problems(tmp_path, text, "stop_after=references", task="train")
    assert "dense_clip has no stage references; expected prediction" in line
    (line,) = problems(tmp_path, text, "dir_val_dataset=null", task="train")
    assert "dir_val_dataset" in line
    (line,) = problems(tmp_path, text, "dataset_name=null", "categories=[a, b]", task="train")
    assert "dense_clip is scored on a benchmark, expected one of cityscapes" in line


def test_values_that_cannot_be(tmp_path: Path) -> None:
    text = f"{SMALL}scale_range: [2, 1]\npseudo_label_folders: [dt_crt]\ncrf: {{iterations: 0}}\n"
    lines = dict(line.split(": ", 2)[1:] for line in problems(tmp_path, text))
    assert lines["scale_range"] == "expected [smallest, largest] with 0 < smallest <= largest"
    assert lines["pseudo_label_folders"] == "received 'dt_crt', expected one of dt, dt_crf (did you mean 'dt_crf'?)"
    assert lines["crf.iterations"] == "received 0, expected at least 1"
    assert load(tmp_path, f"{SMALL}crf: off\n").crf is None
    block = "expected off, or a block `key: value` (left out: on)"
    assert problems(tmp_path, SMALL, "crf=of") == [f"command line: crf: received 'of', {block} (did you mean 'off'?)"]
    assert problems(tmp_path, SMALL, "crf=yes") == [f"command line: crf: received 'yes', {block}"]
    assert problems(tmp_path, SMALL, "crf=true") == [f"command line: crf: received true, {block}"]
    (line,) = problems(tmp_path, SMALL, "embedding=of")
    assert line == "command line: embedding: received 'of', expected a block `key: value`"
