"""The two commands and the scripts: arguments, exit statuses, and what the user sees."""

from __future__ import annotations

import errno
import os
import subprocess
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import inference
import systems
import train
from systems import find_system, get_system
from utils.cli import run_command, split_overrides
from utils.config import load_settings
from utils.errors import ConfigError, UserError, WeightsError

ROOT = Path(__file__).parents[1]
SMALL = "system: zutis\ncategories: [cat, dog]\n"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "c.yaml"
    path.write_text(f"{SMALL}dir_train_dataset: pictures\ndataset_name: coca\ndir_val_dataset: pictures\n")
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[object, ...], dict[str, object]]]:
    """What the commands ask of a system."""
    seen: list[tuple[str, tuple[object, ...], dict[str, object]]] = []

    def recorder(name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: seen.append((name, args, kwargs))

    names = ("train", "evaluate", "segment_pictures")
    system = types.SimpleNamespace(**{name: recorder(name) for name in names})
    monkeypatch.setattr(train, "get_system", lambda name: system)
    monkeypatch.setattr(inference, "get_system", lambda name: system)
    return seen


def test_train_passes_settings_on(config: Path, calls: list) -> None:
    assert train.main(["--config", str(config), "n_iters=5", "--dry-run", "seed=3"]) == 0
    ((name, (settings,), options),) = calls
    assert (name, settings.num_iterations, settings.seed) == ("train", 5, 3)
    assert options == {"resume": "auto", "dry_run": True}


def test_train_resume(config: Path, tmp_path: Path, calls: list, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", str(config), "--resume", "never"]) == 0
    assert train.main(["--config", str(config), "--resume", str(tmp_path)]) == 0
    assert [options["resume"] for _, _, options in calls] == ["never", str(tmp_path)]
    assert train.main(["--config", str(config), "--resume", "nowhere.pt"]) == 2
    message = "error: nowhere.pt: does not exist; expected auto, never, or a checkpoint to go on from (--resume).\n"
    assert capsys.readouterr().err.endswith(message)


def test_problems_end_with_status_2_and_no_traceback(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", str(config), "n_itres=5", "seed=x"]) == 2
    shown = capsys.readouterr().err
    assert "error: 2 problems in the settings:" in shown
    assert "command line: n_itres: not a setting (did you mean 'n_iters'?)" in shown
    assert "command line: seed: received 'x', expected a whole number" in shown
    assert "Traceback" not in shown


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: BaseException) -> Callable[[], None]:
        def command() -> None:
            raise error

        return command

    assert run_command(lambda: None) == 0
    assert run_command(fail(UserError("the picture is gone"))) == 2
    assert capsys.readouterr().err == "error: the picture is gone\n"
    assert run_command(fail(KeyboardInterrupt())) == 130
    assert "stopped" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        run_command(fail(ZeroDivisionError()))


def test_help_explains_precedence(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (train, inference):
        with pytest.raises(SystemExit) as caught:
            command.main(["--help"])
        assert caught.value.code == 0
        assert "key=value on the command line, then the YAML file, then its base files" in capsys.readouterr().out


def test_evaluation(config: Path, tmp_path: Path, calls: list) -> None:
    weights = tmp_path / "w.pt"
    weights.touch()
    assert inference.main(["--config", str(config), "--weights", str(weights), "nms=linear"]) == 0
    ((name, (settings, given), _),) = calls
    assert (name, settings.nms, given) == ("evaluate", "linear", weights)


def test_evaluation_without_weights_tells_everything_at_once(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main(["--config", str(config), "--weights", "none.pt", "dir_val_dataset=/none"]) == 2
    shown = capsys.readouterr().err
    assert "--weights: none.pt does not exist; expected a run folder or weight file" in shown
    assert "command line: dir_val_dataset: /none does not exist; expected the folder of the benchmark coca" in shown


def test_pictures(config: Path, tmp_path: Path, calls: list) -> None:
    (tmp_path / "config.yaml").write_text(SMALL)
    words = ["--weights", str(tmp_path), "--images", "a.jpg", "b", "nms=null", "--categories", "red panda, cat"]
    assert inference.main([*words, "--output", "out"]) == 0
    ((name, (weights, images), options),) = calls
    assert (name, weights, images) == ("segment_pictures", tmp_path, ["a.jpg", "b"])
    expected = {"categories": ["red panda", "cat"], "output_dir": Path("out"), "settings": None}
    assert options == {**expected, "overrides": ["nms=null"]}
    assert inference.main(["--config", str(config), *words]) == 0
    assert calls[1][2]["settings"].nms is None


def test_an_output_that_cannot_be_written_is_told_before_anything_is_read(
    tmp_path: Path, calls: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(inference, "find_system", never)
    in_the_way = tmp_path / "out.txt"
    in_the_way.touch()
    for output in (in_the_way, in_the_way / "deeper"):
        assert inference.main(["--weights", str(tmp_path), "--images", "a.jpg", "--output", str(output)]) == 2
        told = f"error: {output}: cannot be written (a file is in the way). Choose another --output.\n"
        assert capsys.readouterr().err == told
    assert calls == []


def test_weights_in_a_folder_that_may_not_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "stat", refuse)
        assert inference.main(["--weights", str(tmp_path / "a.pt"), "--images", "a.jpg"]) == 2
    assert f"error: {tmp_path / 'a.pt'}: cannot be read (Permission denied); expected a run" in capsys.readouterr().err


def test_inference_needs_a_config_or_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main(["--weights", str(tmp_path)]) == 2
    assert "expected --config FILE (score on a benchmark) or --images PATH... (segment pictures)" in (
        capsys.readouterr().err
    )
    assert inference.main(["--weights", str(tmp_path), "--config", "c.yaml", "--categories", "a"]) == 2
    assert "--categories belongs to --images" in capsys.readouterr().err


def test_files_with_an_equals_sign_are_files(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.jpg"
    odd.touch()
    assert split_overrides([str(odd), "x.jpg", "seed=3", "solver.sigma_luma=2"]) == (
        [str(odd), "x.jpg"],
        ["seed=3", "solver.sigma_luma=2"],
    )


def test_systems_are_found_by_name_and_by_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="system: received 'zuits', expected one of zutis, selfmask"):
        get_system("zuits")
    assert {get_system(name).__name__ for name in systems.SYSTEMS} == set(systems.SYSTEMS.values())
    torch.save({"query_embed": torch.zeros(1, 1), "ffn1.a": torch.zeros(1)}, tmp_path / "zutis.pt")
    torch.save({"query_embed": torch.zeros(1), "encoder.patch_embed.proj.weight": torch.zeros(1)}, tmp_path / "s.pt")
    torch.save({"text_projection": torch.zeros(1), "token_embedding.weight": torch.zeros(1)}, tmp_path / "clip.pt")
    assert find_system(tmp_path / "zutis.pt") == "zutis"
    assert find_system(tmp_path / "s.pt") == "selfmask"
    with pytest.raises(WeightsError, match=r"these look like CLIP weights; expected ZUTIS or SelfMask"):
        find_system(tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=r"not a run folder \(there is no config\.yaml in it\)"):
        find_system(tmp_path)


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("configs/*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_config_in_the_project_is_valid(path: Path) -> None:
    needs_names = path.parent.name != "selfmask" and ("base" in path.stem or path.stem == "custom")
    settings = load_settings(path, ["categories=[cat]", "n_categories=1"] if needs_names else [])
    assert settings.system == path.parent.name


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("coca_vit_b_16", ("coca", "ViT-B/16", 81, 255, 20000, 1000, 250, 2)),
        ("coco2017_vit_b_16", ("coco2017", "ViT-B/16", 81, 255, 20000, 1000, 250, 2)),
        ("coco2017_vit_b_32", ("coco2017", "ViT-B/32", 81, 255, 20000, 1000, 250, 2)),
        ("imagenet_s919_vit_b_16", ("imagenet-s", "ViT-B/16", 919, 1000, 80000, 4000, 250, 1)),
        ("imagenet_s919_vit_b_32", ("imagenet-s", "ViT-B/32", 919, 1000, 80000, 4000, 250, 1)),
    ],
)
def test_published_configurations(name: str, expected: tuple[object, ...]) -> None:
    s = load_settings(ROOT / "configs" / "zutis" / f"{name}.yaml")
    found = (s.dataset_name, s.clip_arch, s.num_categories, s.ignore_index, s.num_iterations)
    assert (*found, s.eval_interval, s.log_interval, len(s.index_dirs)) == expected
    assert len(s.embedding_paths) == len(s.index_dirs)
    assert (s.num_images, s.train_image_size, s.scale_range, s.random_duplicate) == (500, 384, (0.1, 1.0), True)
    assert (s.train_loader.batch_size, s.train_loader.num_workers, s.weight_ce_loss) == (8, 8, 1.0)
    assert s.index_dirs[0].parts[-2] == "ImageNet2012"


def run_script(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", *words], cwd=cwd, capture_output=True, text=True, timeout=250, env=os.environ)


def test_scripts_train_without_weights_and_evaluate_with_them(tmp_path: Path) -> None:
    """Seen from the problems they tell: each command checks its own files."""
    script = str(ROOT / "scripts" / "zutis" / "coco2017_vit_b_16.sh")
    trained = run_script(script, "dir_train_dataset=/none", "dir_val_dataset=/none", "n_iters=0", cwd=tmp_path)
    assert trained.returncode == 2, trained.stderr
    assert "command line: dir_train_dataset: /none does not exist" in trained.stderr
    assert "command line: n_iters: received 0, expected at least 1" in trained.stderr
    evaluated = run_script(script, "none.pt", "dir_val_dataset=none", cwd=tmp_path)
    assert evaluated.returncode == 2, evaluated.stderr
    assert "--weights: none.pt does not exist" in evaluated.stderr
    assert f"dir_val_dataset: {tmp_path}/none does not exist" in evaluated.stderr
    assert "dir_train_dataset" not in evaluated.stderr


def test_the_coco20k_script_needs_weights(tmp_path: Path) -> None:
    done = run_script(str(ROOT / "scripts" / "zutis" / "coco20k_vit_b_16.sh"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: this benchmark is for evaluation only: give a weight file or run folder as the first argument\n"
    )


def test_every_benchmark_script_names_a_config_that_exists() -> None:
    scripts = sorted((ROOT / "scripts" / "zutis").glob("*.sh"))
    names = {path.stem for path in scripts}
    assert {"coca_vit_b_16", "coco2017_vit_b_16", "coco2017_vit_b_32", "coco20k_vit_b_16"} <= names
    assert {"imagenet_s919_vit_b_16", "imagenet_s919_vit_b_32"} <= names
    for path in scripts:
        assert f"configs/zutis/{path.stem}.yaml" in path.read_text()
        assert (ROOT / "configs" / "zutis" / f"{path.stem}.yaml").is_file()


def test_setup_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_text("numpy>=1.0\nno-such-package-at-all>=2 # why\ntorch>=999.0\n")
    done = run_script("-c", f"python3 {ROOT}/scripts/check_environment.py r.txt", cwd=tmp_path)
    assert done.returncode == 1
    assert "missing: " in done.stderr
    assert "no-such-package-at-all" in done.stderr
