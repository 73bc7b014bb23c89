"""Groups of settings that several systems share: the run itself, loaders, solver, optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from utils.setting_types import (
    AnyPath,
    Block,
    CountInt,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Probability,
    Problem,
    Task,
)


class LoaderSettings(Block):
    """How a data loader reads: images per batch and worker processes (per GPU).

    In training the order is always drawn, and the last batch of an epoch is filled up from the next one.
    """

    ineffective: ClassVar[frozenset[str]] = frozenset({"shuffle", "drop_last"})

    batch_size: PositiveInt = 1
    num_workers: CountInt = 4
    pin_memory: bool = True


class TrainLoaderSettings(LoaderSettings):
    """The same for training."""

    batch_size: PositiveInt = 8
    num_workers: CountInt = 8


class SolverSettings(Block):
    """Bilateral solver: how far (pixels) and across how much colour difference (0..255) a mask is smoothed."""

    sigma_spatial: PositiveFloat = 16.0
    sigma_luma: PositiveFloat = 16.0
    sigma_chroma: PositiveFloat = 8.0


class PhotometricBlock(Block):
    """How often and how strongly the colours of pasted pictures change; the defaults are the published ones."""

    jitter_probability: Probability = 0.8
    brightness: NonNegativeFloat = 0.8  # factor in [max(0, 1 - x), 1 + x]; likewise contrast and saturation
    contrast: NonNegativeFloat = 0.8
    saturation: NonNegativeFloat = 0.8
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.2  # shift in [-x, x] turns of the colour circle
    greyscale_probability: Probability = 0.2
    blur_probability: Probability = 0.5  # blur of 0.1 to 2 pixels: much for small pictures


class OptimiserSettings(Block):
    """AdamW with a polynomial schedule: lr(t) = max(lr * (1 - t / T) ** power, min_lr)."""

    encoder_lr: PositiveFloat = 5e-6
    decoder_lr: PositiveFloat = 5e-5  # decoder, queries and the two small networks behind it
    weight_decay: NonNegativeFloat = 0.05
    min_lr: NonNegativeFloat = 1e-6
    power: NonNegativeFloat = 0.9


class RunSettings(Block):
    """What every system has: where results go, how long and on what it runs."""

    system: str
    name: str | None = None  # folder of the run; null: made from the settings
    suffix: str | None = None  # appended to the folder's name
    seed: CountInt = 0
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"  # fp32 reproduces published numbers; bf16 is faster on a GPU
    channels_last: bool = False
    compile: bool = False
    accumulate_steps: PositiveInt = 1  # batches per optimiser step
    output_dir: AnyPath = Field(default=Path("runs"), alias="dir_ckpt")
    num_iterations: PositiveInt = Field(default=20_000, alias="n_iters")
    eval_interval: PositiveInt = Field(default=1000, alias="iter_eval")
    log_interval: PositiveInt = Field(default=250, alias="iter_log")
    checkpoint_interval: PositiveInt | None = Field(default=None, alias="iter_checkpoint")  # null: as iter_eval
    max_gradient_norm: PositiveFloat | None = None  # clip the norm of all gradients together; null: no clipping
    max_images: PositiveInt | None = None  # evaluate only the first ones; null: all
    paths: dict[str, AnyPath | None] = Field(
        default_factory=dict
    )  # free names for ${paths.<name>}, see configs/paths.yaml

    def check(self, task: Task | None) -> list[Problem]:
        """Combinations that cannot work and files that are missing for a task ("train", "evaluate", or None)."""
        del task
        return []
