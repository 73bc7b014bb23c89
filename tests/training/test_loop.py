"""The loop: same losses however a run is split up, interrupted or shared out; errors that say what to do."""

from __future__ import annotations

import errno
import math
import os
import signal
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.processes import run_process, run_ranks
from tests.training.toy_run import PixelData, build_network, collate, toy_fit, toy_main, training_step
from training import checkpoint as checkpoints
from training.describe import describe_training
from training.loop_settings import LoopSettings, Step
from training.metric_log import read_metrics
from training.run_folder import RunFolder
from utils.errors import ConfigError, UserError, WeightsError
from utils.files import RunLock

TIMES = {"time", "seconds", "images_per_second", "data_wait_share"}


def history(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics lines without what depends on the clock."""
    rows = read_metrics(RunFolder(run_dir).metrics_path)
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in history(run_dir) if row["kind"] == "train"]


def same_weights(first: Path, second: Path) -> bool:
    one, two = (torch.load(RunFolder(path).final_model_path, weights_only=True) for path in (first, second))
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_run_folder_holds_what_the_readme_says(tmp_path: Path) -> None:
    result = toy_fit(tmp_path, category_names=["background", "cat"], extra_state={"text": torch.ones(2, 3)})
    run = RunFolder(tmp_path)
    weights = torch.load(run.final_model_path, weights_only=True)
    assert set(weights) == set(build_network().state_dict())  # bare, with the module's own names
    assert run.best_path.exists()
    assert "dropout" in run.config_path.read_text()
    assert list(run.tensorboard_dir.glob("events*"))
    state = torch.load(run.checkpoint_path, weights_only=True)
    assert state["category_names"] == ["background", "cat"]
    assert torch.equal(state["extra"]["text"], torch.ones(2, 3))
    assert state["config"] == {"toy": {"dropout": 0.0}}
    assert result.iteration == 12
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]


def test_killed_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    options = {"dropout": 0.3, "log_interval": 3, "eval_interval": 4}  # iteration 8 is saved, between two log lines
    toy_fit(tmp_path / "whole", **options)
    assert run_process(toy_main, [str(tmp_path / "cut"), "dropout=0.3", "die_at=10"]) == -signal.SIGKILL
    assert history(tmp_path / "cut")[-1]["iteration"] == 9  # logged after the checkpoint: will be written again
    result = toy_fit(tmp_path / "cut", **options)
    assert result.first_iteration == 8
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert same_weights(tmp_path / "cut", tmp_path / "whole")


def test_killed_before_the_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    def fail(done: int, *_: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        toy_fit(tmp_path / "cut", on_step=lambda done, *rest: fail(done), log_interval=1)
    assert history(tmp_path / "cut")
    toy_fit(tmp_path / "cut", log_interval=1)
    toy_fit(tmp_path / "whole", log_interval=1)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")


def test_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    def ask(done: int, *_: Any) -> None:
        if done == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        toy_fit(tmp_path / "cut", on_step=ask, dropout=0.3)
    assert stop.value.code == 143
    assert toy_fit(tmp_path / "cut", dropout=0.3).first_iteration == 5
    toy_fit(tmp_path / "whole", dropout=0.3)
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_finished_run_is_left_alone(tmp_path: Path) -> None:
    toy_fit(tmp_path)
    before = RunFolder(tmp_path).metrics_path.read_bytes()
    result = toy_fit(tmp_path, on_step=lambda *_: pytest.fail("trained again"))
    assert result.first_iteration == 12
    assert RunFolder(tmp_path).metrics_path.read_bytes() == before
    RunFolder(tmp_path).final_model_path.unlink()  # killed between the last checkpoint and the final weights
    toy_fit(tmp_path)
    assert RunFolder(tmp_path).final_model_path.exists()


def test_never_resume_overwrites_the_history(tmp_path: Path) -> None:
    toy_fit(tmp_path, seed=1)
    toy_fit(tmp_path, seed=2, resume="never")
    toy_fit(tmp_path / "other", seed=2)
    assert history(tmp_path) == history(tmp_path / "other")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    toy_fit(tmp_path / "one")
    assert run_ranks(toy_main, 2, [str(tmp_path / "two"), "accumulate_steps=2"]) == [0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    one, two = (torch.load(tmp_path / name / "final_model.pt", weights_only=True) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    state = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert len(state["random_states"]) == 2


def test_processes_change_between_start_and_resumption(tmp_path: Path) -> None:
    assert run_ranks(toy_main, 2, [str(tmp_path / "run"), "term_at=5"]) == [143, 143]
    assert toy_fit(tmp_path / "run").first_iteration == 10  # the ranks agree at every tenth iteration
    toy_fit(tmp_path / "one")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.parametrize("options", [{"accumulate_steps": 2}, {"accumulate_steps": 4}, {"num_workers": 2}])
def test_how_a_batch_is_made_does_not_matter(tmp_path: Path, options: dict[str, int]) -> None:
    toy_fit(tmp_path / "plain")
    toy_fit(tmp_path / "other", **options)
    assert losses(tmp_path / "other") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_bf16_trains_with_float32_weights(tmp_path: Path) -> None:
    seen = []

    def step(module: nn.Module, batch: Any, step: Step) -> dict[str, Tensor]:
        hook = module.module[3].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        outputs = training_step(module, batch, step)
        hook.remove()
        return outputs

    toy_fit(tmp_path / "bf16", precision="bf16", training_step=step)
    toy_fit(tmp_path / "fp32")
    assert set(seen) == {torch.bfloat16}
    weights = torch.load(tmp_path / "bf16" / "final_model.pt", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.02)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "fp32")


def test_channels_last_changes_nothing_but_the_memory(tmp_path: Path) -> None:
    toy_fit(tmp_path / "plain")
    toy_fit(tmp_path / "last", channels_last=True)
    assert losses(tmp_path / "last") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_compiled_network_leaves_plain_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))  # the compiler itself is slow
    toy_fit(tmp_path / "plain")
    toy_fit(tmp_path / "compiled", compile=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert set(torch.load(tmp_path / "compiled" / "best.pt", weights_only=True)) == set(build_network().state_dict())


def test_best_weights_are_those_of_the_highest_score(tmp_path: Path) -> None:
    scores = {2: 0.4, 4: 0.9, 6: math.nan, 8: 0.9, 10: 0.7, 12: 0.2}
    kept: dict[int, Tensor] = {}

    def evaluate(model: nn.Module, iteration: int) -> dict[str, float]:
        assert not model.training
        kept[iteration] = model[0].weight.clone()
        return {"score": scores[iteration]}

    result = toy_fit(tmp_path, eval_interval=2, evaluate=evaluate, better="score")
    assert result.best == {"metric": "score", "value": 0.9, "iteration": 4}
    assert torch.equal(torch.load(tmp_path / "best.pt", weights_only=True)["0.weight"], kept[4])
    assert result.metrics == {"score": 0.2}


def test_best_score_survives_an_interruption(tmp_path: Path) -> None:
    def evaluate(model: nn.Module, iteration: int) -> dict[str, float]:
        return {"score": 1.0 / iteration}

    with pytest.raises(SystemExit):
        toy_fit(tmp_path, evaluate=evaluate, better="score", on_step=lambda done, *_: _terminate(done, 6))
    assert toy_fit(tmp_path, evaluate=evaluate, better="score").best["iteration"] == 4


def _terminate(done: int, at: int) -> None:
    if done == at:
        os.kill(os.getpid(), signal.SIGTERM)


def test_losses_are_read_from_the_device_at_log_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = {"count": 0}
    for name in ("tolist", "item", "__float__", "__bool__", "cpu", "numpy"):
        original = getattr(Tensor, name)

        def counting(self: Tensor, *args: Any, _original: Any = original, **kwargs: Any) -> Any:
            reads["count"] += 1
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(Tensor, name, counting)
    model, counts = build_network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    toy_fit(tmp_path, model=model, optimizer=optimizer, evaluate=None, better=None, eval_interval=0, log_interval=6,
            checkpoint_interval=0, on_step=lambda *_: counts.append(reads["count"]))  # fmt: skip
    assert [after - before for before, after in pairwise(counts)] == [0] * 5 + [1] + [0] * 5


def test_gradients_are_clipped(tmp_path: Path) -> None:
    model, norms = build_network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
    )
    toy_fit(tmp_path, model=model, optimizer=optimizer, max_gradient_norm=0.01)
    assert max(norms) <= 0.01 * (1 + 1e-5)
    assert max(norms) > 0.009


# ---- errors -------------------------------------------------------------------------------------------------------


def test_divergence_is_told_and_not_saved(tmp_path: Path) -> None:
    def diverge(module: nn.Module, batch: Any, step: Step) -> dict[str, Tensor]:
        outputs = training_step(module, batch, step)
        return {**outputs, "loss": outputs["loss"] * (float("nan") if step.iteration == 7 else 1.0)}

    with pytest.raises(UserError, match=r"Training diverged: loss became .* up to 8.*lower learning rate"):
        toy_fit(tmp_path, training_step=diverge, log_interval=12)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 4


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=r"in use by process \d+.*another folder"):
        toy_fit(tmp_path)


def test_other_settings_are_named(tmp_path: Path) -> None:
    toy_fit(tmp_path)
    with pytest.raises(ConfigError) as error:
        toy_fit(tmp_path, seed=3, batch_size=8, settings={"dropout": 0.0, "clip_arch": "ViT-B/16"})
    text = str(error.value)
    assert "loop.batch_size: 4 in the checkpoint, 8 now" in text
    assert "loop.seed: 0 in the checkpoint, 3 now" in text
    assert "clip_arch: absent in the checkpoint, 'ViT-B/16' now" in text
    assert "--resume never" in text
    toy_fit(tmp_path, log_interval=1, num_workers=1)  # settings without influence on the losses may change


def test_other_network_is_told(tmp_path: Path) -> None:
    toy_fit(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), nn.Conv2d(9, 2, 1))
    with pytest.raises(WeightsError, match=r"0\.weight: shape \(8, 3, 3, 3\), the network has \(9, 3, 3, 3\)"):
        toy_fit(tmp_path, model=model)


def test_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    toy_fit(tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match=r"checkpoint\.pt: the checkpoint cannot be read .*--resume never"):
        toy_fit(tmp_path)


def test_bare_weights_are_no_checkpoint(tmp_path: Path) -> None:
    toy_fit(tmp_path / "one")
    with pytest.raises(WeightsError, match=r"not a full checkpoint .*give them as initial weights"):
        toy_fit(tmp_path / "two", resume=tmp_path / "one" / "final_model.pt")
    with pytest.raises(UserError, match=r"--resume .*nowhere: expected auto, never, a checkpoint or a run folder"):
        toy_fit(tmp_path / "two", resume=tmp_path / "nowhere")
    assert toy_fit(tmp_path / "two", resume=tmp_path / "one").first_iteration == 12


def test_full_disk_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoints.save_atomically(path, {"value": 1})

    def full(self: Any, data: bytes) -> int:
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise self.error

    monkeypatch.setattr(checkpoints._RememberingFile, "write", full)
    with pytest.raises(UserError, match=r"checkpoint\.pt: the disk is full"):
        checkpoints.save_atomically(path, {"value": 2})
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_batch_that_cannot_be_shared_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 4 .*3 accumulation step.*Use batch_size=3 or 6"):
        toy_fit(tmp_path, accumulate_steps=3)


def test_fp16_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision: fp16 needs a GPU"):
        toy_fit(tmp_path, precision="fp16")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_error_of_a_sample_arrives_as_it_was(tmp_path: Path, num_workers: int) -> None:
    class Broken(PixelData):
        def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
            if position == 9:
                raise UserError("cat.jpg: this picture is cut off")
            return super().__getitem__(position)

    with pytest.raises(UserError) as error:
        toy_fit(tmp_path, dataset=Broken(), num_workers=num_workers)
    assert str(error.value) == "cat.jpg: this picture is cut off"


def test_unknown_score_for_the_best_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="best weights are chosen by 'miou', but the scores are: accuracy"):
        toy_fit(tmp_path, better="miou")


def test_dry_run_describes_and_writes_nothing(tmp_path: Path) -> None:
    facts = describe_training(build_network(), PixelData(), collate, LoopSettings(num_iterations=10, batch_size=4))
    assert facts["parameters"] == "242, of which 242 are trained"
    assert facts["samples altogether"] == "40"
    assert facts["batch (two samples read)"] == "{images: float32[2, 3, 8, 8], labels: int64[2, 8, 8]}"
