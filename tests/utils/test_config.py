"""Settings: precedence, base files, references, and the words for everything that can be wrong with them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from utils.config import dump_settings, load_settings, settings_from_dict
from utils.errors import ConfigError
from utils.settings import SETTINGS, SelfMaskSettings, SolverSettings, ZutisSettings, yaml_values

SMALL = "system: zutis\ncategories: [cat, dog]\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str, *words: str, task: str | None = None) -> ZutisSettings:
    settings = load_settings(write(tmp_path / "c.yaml", text), words, task=task)
    assert isinstance(settings, ZutisSettings)
    return settings


def problems(tmp_path: Path, text: str, *words: str, task: str | None = None) -> list[str]:
    """The lines of the error, without the folder of the test."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *words, task=task)
    head, *lines = str(caught.value).replace(f"{tmp_path}/", "").splitlines()
    assert head == f"{len(lines)} problem{'s' if len(lines) != 1 else ''} in the settings:"
    return [line.strip() for line in lines]


def test_precedence_is_command_line_then_file_then_base_then_default(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "n_iters: 1\niter_eval: 1\niter_log: 1\nsolver: {sigma_luma: 1, sigma_chroma: 1}\n")
    text = f"base: base.yaml\n{SMALL}n_iters: 2\niter_eval: 2\nsolver: {{sigma_luma: 2}}\n"
    found = load(tmp_path, text, "n_iters=3")
    assert (found.num_iterations, found.eval_interval, found.log_interval, found.num_images) == (3, 2, 1, 500)
    assert found.solver == SolverSettings(sigma_spatial=16.0, sigma_luma=2.0, sigma_chroma=1.0)


def test_bases_of_bases_and_later_bases_win(tmp_path: Path) -> None:
    write(tmp_path / "a" / "root.yaml", "seed: 1\nn_iters: 1\nsuffix: root\n")
    write(tmp_path / "a" / "x.yaml", "base: root.yaml\nseed: 2\n")
    write(tmp_path / "y.yaml", "n_iters: 3\n")
    found = load(tmp_path, f"base: [a/x.yaml, y.yaml]\n{SMALL}")
    assert (found.seed, found.num_iterations, found.suffix) == (2, 3, "root")


def test_lists_are_replaced_and_not_joined(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "system: zutis\ncategories: [a, b, c]\n")
    assert load(tmp_path, "base: base.yaml\ncategories: [d]\n").categories == ["d"]


def test_relative_paths_are_relative_to_the_file_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a" / "root.yaml", "dir_ckpt: runs\npaths: {data: ../data}\nclip_weights: w/clip.pt\n")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    text = f"base: a/root.yaml\n{SMALL}dir_val_dataset: ${{paths.data}}/coco\ndir_train_dataset: [x, /y, ~/z]\n"
    found = load(tmp_path, text, "category_to_p_images_fp=a.json")
    assert found.output_dir == tmp_path / "a" / "runs"
    assert found.clip_weights == tmp_path / "a" / "w" / "clip.pt"
    assert found.benchmark_dir == tmp_path / "data" / "coco"
    assert found.index_dirs == [tmp_path / "x", Path("/y"), Path("~/z").expanduser()]
    assert found.archive_path == tmp_path / "here" / "a.json"
    assert load(tmp_path, SMALL).output_dir == tmp_path / "here" / "runs"


def test_references_to_keys_environment_and_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBER", "7")
    monkeypatch.setenv("FOLDER", "/data")
    monkeypatch.delenv("ABSENT", raising=False)
    text = (
        f"{SMALL}n_iters: ${{NUMBER}}\niter_eval: ${{n_iters}}\nseed: ${{ABSENT:-5}}\n"
        "suffix: n${n_images}_${clip_arch}_${solver.sigma_luma}\nsolver: {sigma_luma: 4}\n"
        "dir_val_dataset: ${FOLDER}/coco\nname: $${kept}\nprompts: ['${ABSENT:-a photo of} {}']\n"
    )
    found = load(tmp_path, text)
    assert (found.num_iterations, found.eval_interval, found.seed) == (7, 7, 5)
    assert found.suffix == "n500_ViT-B/16_4"
    assert found.benchmark_dir == Path("/data/coco")
    assert found.name == "${kept}"
    assert found.prompts == ["a photo of {}"]


def test_values_of_the_command_line_are_yaml(tmp_path: Path) -> None:
    words = (
        "categories=[red panda, 'no', \"12\"]",
        "nms=null",
        "scale_range=[0.2, 0.5]",
        "solver.sigma_luma=3",
        "name=",
    )
    found = load(tmp_path, SMALL, *words, "optimiser.encoder_lr=1e-4", "random_duplicate=true", "precision=bf16")
    assert found.categories == ["red panda", "no", "12"]
    assert (found.nms, found.scale_range, found.name) == (None, (0.2, 0.5), None)
    assert found.solver is not None
    assert found.solver.sigma_luma == 3.0
    assert found.optimiser.encoder_lr == 1e-4
    assert found.random_duplicate
    assert load(tmp_path, SMALL, "categories=cat, red panda").categories == ["cat", "red panda"]
    assert load(tmp_path, SMALL, "solver=off", "nms=none").solver is None


def test_one_value_where_a_list_is_wanted(tmp_path: Path) -> None:
    found = load(tmp_path, f"{SMALL}dir_train_dataset: x\np_filename_to_image_embedding: y\nprompts: a {{}}\n")
    assert (found.index_dirs, found.embedding_paths) == ([tmp_path / "x"], [tmp_path / "y"])
    assert found.prompts == ["a {}"]


def test_partial_loader_blocks_keep_the_other_defaults(tmp_path: Path) -> None:
    found = load(tmp_path, SMALL, "train_dataloader_kwargs.batch_size=2")
    assert (found.train_loader.batch_size, found.train_loader.num_workers) == (2, 8)
    assert (found.val_loader.batch_size, found.val_loader.num_workers) == (1, 4)


def test_every_problem_is_told_at_once_with_place_key_and_nearest_match(tmp_path: Path) -> None:
    text = (
        "system: zutis\nn_imags: 5\nn_iters: many\niter_log: 0\ncategories: [cat, Cat]\n"
        "clip_arch: ViT-B16\nsolver: {sigma_lumma: 3}\nnms: herd\nscale_range: [0.9, 0.1]\nsuffix: ${nope_at_all}\n"
        "train_dataloader_kwargs: {batch_size: '8'}\ndataset_name: coco2071\n"
    )
    found = problems(tmp_path, text, "device=gpu", "decoder", "val_dataloader_kwargs.num_workers=-1", task="train")
    expected = {
        "c.yaml:2: n_imags: not a setting (did you mean 'n_images'?)",
        "c.yaml:3: n_iters: received 'many', expected a whole number",
        "c.yaml:4: iter_log: received 0, expected at least 1",
        "c.yaml:5: categories: expected each name once, but given more than once: 'Cat'",
        "c.yaml:7: solver.sigma_lumma: not a setting of 'solver' (did you mean 'sigma_luma'?)",
        "c.yaml:8: nms: received 'herd', expected one of hard, linear, gaussian, off (did you mean 'hard'?)",
        "c.yaml:9: scale_range: expected [smallest, largest] with 0 < smallest <= largest <= 1",
        "c.yaml:10: suffix: refers to 'nope_at_all', which is neither a key nor an environment variable",
        "c.yaml:11: train_dataloader_kwargs.batch_size: received '8', expected a whole number",
        "command line: device: received 'gpu', expected auto, cpu, cuda or cuda:<number>",
        "command line: 'decoder': expected key=value",
        "command line: val_dataloader_kwargs.num_workers: received -1, expected at least 0",
        "c.yaml: dir_train_dataset: expected at least one folder of index images "
        "(or category_to_p_images_fp, an existing file)",
    }
    assert expected <= set(found)
    rest = sorted(set(found) - expected)
    assert len(rest) == 2
    assert rest[0].startswith("c.yaml:12: dataset_name: received 'coco2071', expected one of coca, coco2017")
    assert rest[0].endswith("(did you mean 'coco2017'?)")
    assert rest[1].startswith("c.yaml:6: clip_arch: received 'ViT-B16', expected one of ViT-B/32, ViT-B/16")
    assert rest[1].endswith("(did you mean 'ViT-B/16'?)")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("n_iters: 1.5\n", "c.yaml:3: n_iters: received 1.5, expected a whole number"),
        ("n_iters: null\n", "c.yaml:3: n_iters: received nothing (null), expected a whole number"),
        ("compile: 1\n", "c.yaml:3: compile: received 1, expected true or false"),
        ("compile: yes\n", "c.yaml:3: compile: received 'yes', expected true or false"),
        ("weight_ce_loss: .inf\n", "c.yaml:3: weight_ce_loss: received inf, expected a finite number"),
        ("weight_ce_loss: -1\n", "c.yaml:3: weight_ce_loss: received -1, expected at least 0"),
        ("suffix: 5\n", "c.yaml:3: suffix: received 5, expected text; put it in quotes to make it text"),
        ("scale_range: 0.5\n", "c.yaml:3: scale_range: received 0.5, expected a list"),
        ("scale_range: [0, 1]\n", "c.yaml:3: scale_range[0]: received 0, expected more than 0"),
        ("scale_range: [0.5, 2]\n", "c.yaml:3: scale_range[1]: received 2, expected at most 1"),
        ("solver: 5\n", "c.yaml:3: solver: received 5, expected off, or a block `key: value` (left out: on)"),
        ("precision: fp8\n", "c.yaml:3: precision: received 'fp8', expected one of fp32, bf16, fp16"),
        ("dir_ckpt: ''\n", "c.yaml:3: dir_ckpt: expected a path, received an empty text"),
        ("dir_val_dataset: 5\n", "c.yaml:3: dir_val_dataset: received 5, expected a path"),
        ("prompts: [a photo]\n", "c.yaml:3: prompts: expected templates with {} where the name goes; without it: 'a p"),
        ("prompts: []\n", "c.yaml:3: prompts: expected at least one prompt template"),
        ("num_images: 5\n", "c.yaml:3: num_images: not a setting (did you mean 'n_images'?)"),
        ("zzzzzzzz: 5\n", "c.yaml:3: zzzzzzzz: not a setting; it has system, name, suffix"),
        ("n_categories: 5\n", "c.yaml:3: n_categories: 5 does not fit the 2 names in categories"),
        ("seed: 1\nseed: 2\n", "c.yaml:4: seed: given twice (first at c.yaml:3)"),
        ("solver: {sigma_luma: 1, sigma_luma: 2}\n", "c.yaml:3: solver.sigma_luma: given twice (first at c.yaml:3)"),
        ("suffix: ${suffix}\n", "c.yaml:3: suffix: refers to itself (suffix)"),
        ("name: ${suffix}\nsuffix: ${name}\n", "c.yaml:4: suffix: refers to itself"),
        ("name: a${solver}\nsolver: {}\n", "c.yaml:3: name: refers to 'solver', which is a block or list"),
        ("name: !!python/name:os.system x\n", "c.yaml:3: name: the YAML tag tag:yaml.org,2002:python/name:os.system"),
        ("base: other.yaml\n", "c.yaml:3: base: other.yaml does not exist"),
        ("base: [5]\n", "c.yaml:3: base: expected a file name, received 5"),
    ],
)
def test_each_problem_in_words(tmp_path: Path, text: str, line: str) -> None:
    found = problems(tmp_path, SMALL + text)
    assert any(problem.startswith(line) for problem in found), found


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ("[]", "categories: expected at least one category name, received an empty list"),
        ("[cat, '', dog, ' ']", "categories: expected names, but number 2, 4 of 4 is empty"),
        ("[cat, dog, CAT, cat ]", "categories: expected each name once, but given more than once: 'CAT', 'cat'"),
        ("[cat, 911]", "categories[1]: received 911, expected text; put it in quotes to make it text"),
        ("{a: b}", "categories: received {'a': 'b'}, expected a list"),
    ],
)
def test_bad_category_names(tmp_path: Path, names: str, line: str) -> None:
    assert problems(tmp_path, f"system: zutis\ncategories: {names}\n") == [f"c.yaml:2: {line}"]


def test_words_that_yaml_1_1_would_twist_stay_words(tmp_path: Path) -> None:
    found = load(tmp_path, "system: zutis\ncategories: [no, on, yes, 1:30, 2001-01-01, 0x1F, =]\n")
    assert found.categories == ["no", "on", "yes", "1:30", "2001-01-01", "0x1F", "="]


def test_system_missing_or_misspelt(tmp_path: Path) -> None:
    known = ", ".join(SETTINGS)
    assert problems(tmp_path, "seed: 1\n") == [f"c.yaml: system: not set; expected one of {known}"]
    (line,) = problems(tmp_path, "system: zuits\n")
    assert line == f"c.yaml:1: system: received 'zuits', expected one of {known} (did you mean 'zutis'?)"


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", SMALL)
    for name, text, message in [
        ("confg.yaml", None, f"confg.yaml: no such config file (did you mean {tmp_path}/config.yaml?)"),
        ("no/such.yaml", None, "(there is no folder"),
        ("list.yaml", "- a\n", "expected lines `key: value`, received a list"),
        ("bad.yaml", "a: [1\nb: 2\n", "bad.yaml:2: not valid YAML at column 2"),
        ("loop.yaml", "base: loop.yaml\n", "base files go in a circle"),
        ("self.yaml", "a: &x [*x]\n", "a block contains itself"),
        ("binary.yaml", None, "cannot be read as a config file"),
    ]:
        if text is not None:
            write(tmp_path / name, text)
        if name == "binary.yaml":
            (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError) as caught:
            load_settings(tmp_path / name)
        assert message in str(caught.value), name


def test_missing_files_are_told_together_with_the_rest(tmp_path: Path) -> None:
    text = (
        f"{SMALL}n_iters: 0\ndir_train_dataset: [a, b]\np_filename_to_image_embedding: e.pkl\nclip_weights: w.pt\n"
        "selfmask_weights: s.pt\ndataset_name: coco2017\ndir_val_dataset: coco\n"
    )
    assert set(problems(tmp_path, text, task="train")) == {
        "c.yaml:3: n_iters: received 0, expected at least 1",
        "c.yaml:4: dir_train_dataset: a does not exist; expected the folder of the index images to train from",
        "c.yaml:4: dir_train_dataset: b does not exist; expected the folder of the index images to train from",
        "c.yaml:5: p_filename_to_image_embedding: received 1, expected one for each of the 2 folders "
        "in dir_train_dataset",
        "c.yaml:5: p_filename_to_image_embedding: e.pkl does not exist; expected a file; with "
        "p_filename_to_image_embedding=null embeddings are made of the pictures",
        "c.yaml:6: clip_weights: w.pt does not exist; expected a file",
        "c.yaml:7: selfmask_weights: s.pt does not exist; expected a file",
        "c.yaml:9: dir_val_dataset: coco does not exist; expected the folder of the benchmark coco2017",
    }
    assert load_settings(tmp_path / "c.yaml", ["n_iters=1"]).num_iterations == 1


def test_published_downloads_are_named_when_they_are_missing(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, f"{SMALL}dir_train_dataset: .\nselfmask_weights: selfmask_nq20.pt\n", task="train")
    assert line.endswith("expected a file (bash scripts/download_weights.sh selfmask_nq20.pt)")


def test_evaluation_needs_a_benchmark_and_its_folder(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, SMALL, task="evaluate")
    assert line.startswith("c.yaml: dataset_name: expected a benchmark to evaluate on: coca, coco2017, coco20k")
    (line,) = problems(tmp_path, f"{SMALL}dataset_name: coca\n", task="evaluate")
    assert line == "c.yaml: dir_val_dataset: not set; expected the folder of the benchmark coca"


def test_categories_or_a_benchmark_are_needed(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "system: zutis\n")
    assert line == "c.yaml: categories: expected category names, or a benchmark (dataset_name) that has its own"
    assert load(tmp_path, "system: zutis\ndataset_name: coca\n").categories is None


@pytest.mark.parametrize(
    ("system", "stages"), [("zutis", ["pseudo_masks"]), ("namedmask", ["pseudo_masks", "experts"])]
)
def test_the_index_of_ignored_pixels_is_no_category(tmp_path: Path, system: str, stages: list[str]) -> None:
    text = f"system: {system}\ndir_train_dataset: .\ncategories: [cat, dog]\n"
    for index, name in enumerate(("background", "cat", "dog")):
        assert problems(tmp_path, text, f"ignore_index={index}", task="train") == [
            f"command line: ignore_index: {index} is the label of '{name}', which would not be learnt; expected a "
            "number that is no label, such as 255"
        ]
        for stage in stages:
            load_settings(tmp_path / "c.yaml", [f"ignore_index={index}", f"stop_after={stage}"], task="train")
    load_settings(tmp_path / "c.yaml", ["ignore_index=3"], task="train")
    (line,) = problems(tmp_path, text.replace("cat, dog", str([f"name {i}" for i in range(300)])[1:-1]), task="train")
    assert line.endswith("255 is the label of 'name 254', which would not be learnt; expected a number that is no "
                         "label, such as 301")  # fmt: skip


def test_keys_without_effect_are_accepted_with_a_warning(tmp_path: Path, log_text: pytest.LogCaptureFixture) -> None:
    load(tmp_path, f"{SMALL}use_archive_purifier: true\niter_label_update: 5\n")
    assert "c.yaml:3: use_archive_purifier: this key of the published files has no effect" in log_text.text
    assert "iter_label_update" in log_text.text


@pytest.mark.parametrize("system", SETTINGS)
def test_so_are_those_inside_blocks(tmp_path: Path, system: str, log_text: pytest.LogCaptureFixture) -> None:
    names = "" if system == "selfmask" else "categories: [cat]\n"
    block = "{batch_size: 2, shuffle: false, drop_last: true}"
    path = write(tmp_path / "c.yaml", f"system: {system}\n{names}train_dataloader_kwargs: {block}\n")
    settings = load_settings(path, ["val_dataloader_kwargs.shuffle=true"])
    assert settings.train_loader.batch_size == 2
    line = 2 if system == "selfmask" else 3
    for told in (
        f"c.yaml:{line}: train_dataloader_kwargs.shuffle: this key of the published files has no effect",
        f"c.yaml:{line}: train_dataloader_kwargs.drop_last: this key of the published files has no effect",
        "command line: val_dataloader_kwargs.shuffle: this key of the published files has no effect",
    ):
        assert told in log_text.text
    assert "shuffle" not in dump_settings(settings)


def test_our_own_configurations_have_no_keys_without_effect(log_text: pytest.LogCaptureFixture) -> None:
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*/*.yaml")):
        with contextlib.suppress(ConfigError):  # base files and those for users' own names lack something
            load_settings(path)
    assert "has no effect" not in log_text.text


def test_resolved_settings_can_be_written_and_read_again(tmp_path: Path) -> None:
    words = [
        "solver=null",
        "suffix='1e5'",
        "name='no'",
        "categories=['null', '3', 'a: b', '${x']",
        "scale_range=[0.1,1]",
    ]
    words += ["path_map={/old.x/a: /new}", "paths.mine=/x", "prompts=['a {}', \"it's {}\"]", "dir_train_dataset=[a, b]"]
    words[3] = "categories=['null', '3', 'a: b', '$${x}']"
    settings = load(tmp_path, SMALL, *words)
    assert settings.categories == ["null", "3", "a: b", "${x}"]
    again = load_settings(write(tmp_path / "other" / "config.yaml", dump_settings(settings)))
    assert again == settings
    assert settings_from_dict(yaml_values(settings), source="checkpoint") == settings
    changed = settings_from_dict(yaml_values(settings), source="checkpoint", overrides=["nms=gaussian"])
    assert isinstance(changed, ZutisSettings)
    assert changed.nms == "gaussian"


def test_stored_settings_with_problems_name_their_source() -> None:
    with pytest.raises(ConfigError, match=r"run/checkpoint\.pt: n_iterz: not a setting \(did you mean 'n_iters'\?\)"):
        settings_from_dict({"system": "zutis", "categories": ["a"], "n_iterz": 3}, source="run/checkpoint.pt")


def test_selfmask_has_settings_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "system: selfmask\nranking_sign: corrected\nlearning_rate: 1e-5\n")
    settings = load_settings(path)
    assert isinstance(settings, SelfMaskSettings)
    assert (settings.ranking_sign, settings.learning_rate, settings.num_queries) == ("corrected", 1e-5, 20)
    with pytest.raises(ConfigError, match="clip_arch: not a setting"):
        load_settings(path, ["clip_arch=RN50"])


def test_settings_cannot_be_changed_after_they_were_checked(tmp_path: Path) -> None:
    settings = load(tmp_path, SMALL)
    with pytest.raises(ValueError, match="frozen"):
        settings.seed = 3
