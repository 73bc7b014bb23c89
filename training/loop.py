"""The training loop that all systems share: iterations, not epochs.

A system hands over its network, a function from batch to losses, an optimiser and a dataset; `fit` runs them on a CPU,
a GPU or many GPUs, logs, evaluates, keeps the best weights and a full checkpoint, and goes on after an interruption.

    one step = `accumulate_steps` forward and backward passes on each of `world_size` processes, `batch_size` samples
    altogether; sample positions and the schedule depend on the iteration alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from training import checkpoint as checkpoints
from training.launch import make_fabric
from training.loop_settings import FitResult, LoopSettings, Step
from training.metric_log import MetricLog
from training.run_folder import RunFolder, plain
from training.running_losses import RunningLosses
from training.samplers import MapDataset, PositionBatches, local_batch_size
from training.stop_signal import StopSignal
from utils.distributed import all_gather_objects, all_reduce_sum, barrier
from utils.errors import UserError
from utils.loader import load_batches
from utils.log import format_seconds, get_logger, progress
from utils.seeds import seed_everything

if TYPE_CHECKING:
    from lightning.fabric import Fabric

logger = get_logger(__name__)


TrainingStep = Callable[[nn.Module, Any, Step], dict[str, Any]]


@dataclass
class _Parts:
    """The pieces of one run, as handed to `fit`."""

    model: nn.Module
    training_step: TrainingStep
    optimizer: Optimizer
    schedule: Callable[[int], Sequence[float]]
    dataset: MapDataset
    collate: Callable[[list[Any]], Any]
    loop: LoopSettings
    run: RunFolder
    counts: Callable[[Any], Tensor] | None
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None
    better: str | None
    on_step: Callable[[int, nn.Module, Any, dict[str, Any]], None] | None
    settings: dict[str, Any]
    stored: dict[str, Any]


def fit(
    model: nn.Module,
    *,
    training_step: TrainingStep,
    optimizer: Optimizer,
    schedule: Callable[[int], Sequence[float]],
    dataset: MapDataset,
    collate: Callable[[list[Any]], Any],
    loop: LoopSettings,
    run: RunFolder,
    counts: Callable[[Any], Tensor] | None = None,
    evaluate: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
    better: str | None = None,
    on_step: Callable[[int, nn.Module, Any, dict[str, Any]], None] | None = None,
    resume: str | Path = "auto",
    config: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    category_names: Sequence[str] = (),
    extra_state: Mapping[str, Any] | None = None,
    fabric: Fabric | None = None,
) -> FitResult:
    """Train a network and leave its weights, checkpoint and metrics in a run folder.

    Args:
        model: the network, on any device; moved to the run's device in place. Its state dict's names are the files'.
        training_step: (module, batch on the device, step) -> losses: 0-dim tensors on the device, among them "loss",
            which is minimised. See `Step` for what it must be normalised by. Other entries (matchings, pictures) are
            only passed on to `on_step`. It calls `module(...)` for forward passes, so that DDP and autocast take part.
        optimizer: over the parameters of `model`.
        schedule: steps done -> learning rate of every parameter group, set before the step.
        dataset: sample = dataset[position], a pure function of (seed, position), for every position from 0.
        collate: list of samples -> batch, in the loader's workers.
        loop: see `LoopSettings`.
        run: where everything is written; held by a lock while training.
        counts: batch on the device -> 1-D float tensor of this part's counts (say, non-ignored pixels), or None.
        evaluate: (the bare network in evaluation mode, steps done) -> scores; called on all ranks without gradients.
        better: name of the score whose highest value selects `best.pt`; None: no best weights are kept.
        on_step: called after every step on all ranks with (steps done, bare network, last batch, its outputs).
        resume: "auto", "never", or a checkpoint / run folder.
        config: resolved settings, written to `config.yaml` and kept in the checkpoint.
        settings: the part of the settings that must not change between start and resumption.
        category_names: kept in the checkpoint.
        extra_state: tensors and plain values kept in the checkpoint (text embeddings).
        fabric: an engine made by `make_fabric`; made here from `loop` if not given.

    Returns:
        What the run came to, on every rank.

    Raises:
        UserError: folder in use, checkpoint of other settings or another network, non-finite loss, full disk.
        SystemExit: with status 143 after SIGTERM, once a checkpoint is written.
    """
    fabric = fabric or make_fabric(loop.device, loop.precision)
    local_batch_size(loop.batch_size, fabric.world_size, loop.accumulate_steps)
    parts = _Parts(
        model, training_step, optimizer, schedule, dataset, collate, loop, run, counts, evaluate, better, on_step,
        settings=plain({**(settings or {}), "loop": loop.decisive}),
        stored={
            "config": plain(config or {}),
            "category_names": list(category_names),
            "extra": dict(extra_state or {}),
        },
    )  # fmt: skip
    with run.locked():
        return _Training(parts, fabric).run(resume, config)


class _Training:
    """One run in progress: what `fit` does, phase by phase."""

    def __init__(self, parts: _Parts, fabric: Fabric) -> None:
        self.parts, self.loop, self.fabric = parts, parts.loop, fabric
        self.losses = RunningLosses()
        self.best: dict[str, Any] = {"metric": parts.better, "value": None, "iteration": 0}
        self.metrics: dict[str, float] = {}
        self.logged: dict[str, float] = {}
        self.log: MetricLog | None = None

    # ---- phases -----------------------------------------------------------------------------------------------------

    def run(self, resume: str | Path, config: Mapping[str, Any] | None) -> FitResult:
        """Set up, go through the iterations, and write the final weights."""
        path = checkpoints.find_checkpoint(self.parts.run, resume)
        state = None if path is None else self._read(path)
        self._set_up()
        first = 0 if state is None else self._restore(state, path)
        if config is not None:
            self.parts.run.write_config(config)
        batches = self._batches(first)
        with ExitStack() as stack:
            if self.fabric.is_global_zero:
                self.log = stack.enter_context(MetricLog(self.parts.run, first))
            stop = stack.enter_context(StopSignal(self.fabric.device))
            for iteration in progress(range(first, self.loop.num_iterations), description="training", unit="iteration"):
                self._iterate(iteration, batches)
                self._report(iteration + 1)
                if stop.requested(iteration + 1):
                    self._save(iteration + 1)
                    logger.warning("stopped by SIGTERM after %d iterations; go on with --resume auto", iteration + 1)
                    raise SystemExit(143)
        if first < self.loop.num_iterations or not self.parts.run.final_model_path.exists():
            self._save_weights(self.parts.run.final_model_path)
        else:
            logger.info("%s: all %d iterations are done already", self.parts.run.path, first)
        barrier()
        return FitResult(self.loop.num_iterations, first, self.logged, self.best, self.metrics)

    def _read(self, path: Path) -> dict[str, Any]:
        state = checkpoints.load_checkpoint(path)
        checkpoints.check_settings(state["settings"], self.parts.settings, path)
        checkpoints.check_model(state["model"], self.parts.model, path)
        self.parts.model.load_state_dict(state["model"])
        return state

    def _set_up(self) -> None:
        seed_everything(self.loop.seed + self.fabric.global_rank)
        model = self.parts.model.train()
        if self.loop.channels_last:
            model.to(memory_format=torch.channels_last)
        wrapped = torch.compile(model) if self.loop.compile else model
        self.module, self.optimizer = self.fabric.setup(wrapped, self.parts.optimizer)

    def _restore(self, state: dict[str, Any], path: Path) -> int:
        self.parts.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state.get("scaler", {}))
        self.losses.load_state_dict(state["running"], self.fabric.device)
        self.best, rank = dict(state["best"]), self.fabric.global_rank
        if len(state["random_states"]) == self.fabric.world_size:
            checkpoints.restore_random_state(state["random_states"][rank])
        else:
            seed_everything(self.loop.seed + rank + self.fabric.world_size * (state["iteration"] + 1))
            logger.warning(
                "%s was written by %d processes, now there are %d: random numbers of the network itself (dropout) "
                "start afresh", path, len(state["random_states"]), self.fabric.world_size,
            )  # fmt: skip
        logger.info("going on from %s after %d iterations", path, state["iteration"])
        return state["iteration"]

    def _batches(self, first: int) -> Iterator[Any]:
        sampler = PositionBatches(
            self.loop.batch_size,
            self.loop.num_iterations,
            first_iteration=first,
            rank=self.fabric.global_rank,
            world_size=self.fabric.world_size,
            accumulate_steps=self.loop.accumulate_steps,
        )
        return load_batches(
            self.parts.dataset,
            sampler,
            collate=self.parts.collate,
            num_workers=self.loop.num_workers,
            pin_memory=self.loop.pin_memory and self.fabric.device.type == "cuda",
        )

    # ---- one iteration ----------------------------------------------------------------------------------------------

    def _iterate(self, iteration: int, batches: Iterator[Any]) -> None:
        """One optimiser step; nothing here waits for the device."""
        start = time.perf_counter()
        micro_batches = [next(batches) for _ in range(self.loop.accumulate_steps)]
        self.losses.waited += time.perf_counter() - start
        micro_batches = [self.fabric.to_device(batch) for batch in micro_batches]
        self.learning_rates = list(self.parts.schedule(iteration))
        for group, rate in zip(self.parts.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = rate
        step = self._step(iteration, micro_batches)
        outputs: dict[str, Any] = {}
        for number, batch in enumerate(micro_batches, start=1):
            is_last = number == len(micro_batches)
            waits = self.fabric.world_size > 1 and not is_last
            with self.fabric.no_backward_sync(self.module) if waits else nullcontext():
                outputs = self.parts.training_step(self.module, batch, step)
                self.fabric.backward(outputs["loss"] / len(micro_batches))
            self.losses.add(outputs, 1 / len(micro_batches))
        if self.loop.max_gradient_norm is not None:
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=self.loop.max_gradient_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.losses.count += 1
        if self.parts.on_step is not None:
            self.parts.on_step(iteration + 1, self.parts.model, micro_batches[-1], outputs)

    def _step(self, iteration: int, micro_batches: list[Any]) -> Step:
        num_parts = self.fabric.world_size * len(micro_batches)
        if self.parts.counts is None:
            return Step(iteration, num_parts, None)
        total = torch.stack([self.parts.counts(batch).float() for batch in micro_batches]).sum(0)
        return Step(iteration, num_parts, all_reduce_sum(total) / num_parts)

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _is_due(self, done: int, interval: int) -> bool:
        return interval > 0 and (done % interval == 0 or done == self.loop.num_iterations)

    def _report(self, done: int) -> None:
        """Log, evaluate and save whatever is due after `done` iterations."""
        if self._is_due(done, self.loop.log_interval):
            self._log_losses(done)
        if self.parts.evaluate is not None and self._is_due(done, self.loop.eval_interval):
            self._evaluate(done)
        interval = self.loop.checkpoint_interval
        interval = self.loop.eval_interval if interval is None else interval
        if self._is_due(done, interval) or done == self.loop.num_iterations:
            self._save(done)

    def _log_losses(self, done: int) -> None:
        summary = self.losses.summarise()
        self._refuse_non_finite(summary.means, done)
        self.logged = summary.means
        rate = summary.count * self.loop.batch_size / summary.seconds
        remaining = (self.loop.num_iterations - done) * summary.seconds / summary.count
        if self.log is not None:
            values = {**summary.means, "images_per_second": rate, "data_wait_share": summary.wait_share}
            values |= {f"lr_{index}": rate for index, rate in enumerate(self.learning_rates)}
            self.log.write("train", done, values, time=time.time())
        logger.info(
            "iteration %d/%d  %s  %.1f images/s  waiting for data %.0f %%  %s left",
            done, self.loop.num_iterations, "  ".join(f"{name} {value:.4f}" for name, value in summary.means.items()),
            rate, 100 * summary.wait_share, format_seconds(remaining),
        )  # fmt: skip
        self.losses.reset()

    def _refuse_non_finite(self, means: Mapping[str, float], done: int) -> None:
        bad = [name for name, value in means.items() if not math.isfinite(value)]
        if bad:
            raise UserError(
                f"Training diverged: {', '.join(bad)} became infinite or not a number during the iterations up to "
                f"{done}. The last checkpoint in {self.parts.run.path} is from before that. Use a lower learning rate, "
                f"precision=fp32 (now {self.loop.precision}), or gradient clipping."
            )

    def _evaluate(self, done: int) -> None:
        start, model = time.perf_counter(), self.parts.model
        model.eval()
        with torch.no_grad():
            self.metrics = dict(self.parts.evaluate(model, done))
        model.train()
        seconds = time.perf_counter() - start
        if self.log is not None:
            numbers = {name: float(value) for name, value in self.metrics.items()}
            self.log.write("eval", done, numbers, time=time.time(), seconds=seconds)
        if self.parts.better is not None:
            if self.parts.better not in self.metrics:
                known = ", ".join(sorted(self.metrics))
                raise UserError(f"the best weights are chosen by {self.parts.better!r}, but the scores are: {known}")
            value = float(self.metrics[self.parts.better])
            if self.best["value"] is None or value > self.best["value"]:
                self.best |= {"value": value, "iteration": done}
                self._save_weights(self.parts.run.best_path)
        self.losses.skip(time.perf_counter() - start)

    # ---- files ------------------------------------------------------------------------------------------------------

    def _save_weights(self, path: Path) -> None:
        problem = None
        if self.fabric.is_global_zero:
            try:
                checkpoints.save_weights(path, self.parts.model)
            except UserError as error:
                problem = str(error)
        _raise_everywhere(problem)

    def _save(self, done: int) -> None:
        """Write the full checkpoint; all ranks take part."""
        start = time.perf_counter()
        self._refuse_non_finite(self.losses.peek(), done)
        random_states = all_gather_objects(checkpoints.random_state())
        running = self.losses.state_dict()
        problem = None
        if self.fabric.is_global_zero:
            content = {
                "version": checkpoints.VERSION,
                "iteration": done,
                "model": self.parts.model.state_dict(),
                "optimizer": self.parts.optimizer.state_dict(),
                "scaler": self.fabric.strategy.precision.state_dict(),
                "random_states": random_states,
                "settings": self.parts.settings,
                "running": running,
                "best": self.best,
                **self.parts.stored,
            }
            try:
                checkpoints.save_atomically(self.parts.run.checkpoint_path, content)
            except UserError as error:
                problem = str(error)
        _raise_everywhere(problem)
        self.losses.skip(time.perf_counter() - start)


def _raise_everywhere(problem: str | None) -> None:
    """Let a problem of rank zero end all ranks, so that none waits for it for ever."""
    problem = all_gather_objects(problem)[0]
    if problem is not None:
        raise UserError(problem)
