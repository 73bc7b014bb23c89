"""A small run for the tests, also started as a program of its own (killed, or by several processes).

python -m tests.training.toy_run RUN_DIR key=value ...
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.loop import fit
from training.loop_settings import FitResult, LoopSettings, Step
from training.run_folder import RunFolder

IGNORE = 255


class PixelData:
    """Endless pictures with label maps in which a varying part is ignored."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1000 + position)
        image = torch.rand(3, 8, 8, generator=generator)
        label = (image[0] > image[1]).long()
        label[: position % 5] = IGNORE
        return image, label


def collate(samples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    images, labels = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


def build_network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(dropout), nn.Conv2d(8, 2, 1))


def count_pixels(batch: dict[str, Tensor]) -> Tensor:
    return (batch["labels"] != IGNORE).sum()[None]


def training_step(module: nn.Module, batch: dict[str, Tensor], step: Step) -> dict[str, Tensor]:
    logits = module(batch["images"])
    total = functional.cross_entropy(logits, batch["labels"], ignore_index=IGNORE, reduction="sum")
    cross_entropy = total / (step.mean_counts[0] if step.mean_counts is not None else count_pixels(batch)[0])
    size = logits.square().mean()
    return {"loss": cross_entropy + 0.01 * size, "cross_entropy": cross_entropy, "size": size}


def accuracy(model: nn.Module, iteration: int) -> dict[str, float]:
    batch = collate([PixelData(5)[position] for position in range(4)])
    found = model(batch["images"].to(next(model.parameters()).device)).argmax(1).cpu()
    return {"accuracy": (found == batch["labels"]).float().mean().item()}


def toy_fit(run_dir: Path, *, dropout: float = 0.0, seed: int = 0, **options: Any) -> FitResult:
    """Run it; `options` are arguments of `fit`, or settings of the loop."""
    names = LoopSettings.__dataclass_fields__
    loop_options = {name: options.pop(name) for name in list(options) if name in names}
    defaults = {"num_iterations": 12, "batch_size": 4, "log_interval": 3, "eval_interval": 4, "device": "cpu"}
    loop = LoopSettings(**{**defaults, "seed": seed, **loop_options})
    model = options.pop("model", None) or build_network(dropout)
    arguments: dict[str, Any] = {
        "training_step": training_step,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "schedule": lambda iteration: [1e-2 * (1 - iteration / loop.num_iterations) ** 0.9],
        "dataset": PixelData(seed),
        "collate": collate,
        "counts": count_pixels,
        "evaluate": accuracy,
        "better": "accuracy",
        "config": {"toy": {"dropout": dropout}},
        "settings": {"dropout": dropout},
    }
    return fit(model, loop=loop, run=RunFolder(run_dir), **{**arguments, **options})


def toy_main(arguments: list[str]) -> None:
    """Run with JSON options; `die_at=N` kills this process without warning after N iterations, `term_at` asks it."""
    options = {name: json.loads(value) for name, value in (item.split("=", 1) for item in arguments[1:])}
    die_at, term_at = options.pop("die_at", None), options.pop("term_at", None)

    def on_step(done: int, *_: Any) -> None:
        if done == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if done == term_at:
            os.kill(os.getpid(), signal.SIGTERM)

    toy_fit(Path(arguments[0]), on_step=on_step, **options)
