"""One optimiser step of DeepLabv3+ (ResNet-50) and its label maps, against both as the papers' code computes them.

The plain step: logits enlarged to full size, the library's loss and convolutions, Adam one tensor at a time, and at
every iteration an arg-max, a copy to the host, a confusion matrix and all scores. Plain label maps: full-size logits on
the host. The limit of a step is the time of the network's own convolutions, each by itself, forward and backward.

Prediction before measuring (one thread, batch 2, 384²): the convolutions take 0.7 TFLOP forward and backward, 7 to 9 s;
the plain way adds about 1 s of depthwise convolutions with wide dilation, 1 s of batch norm, 0.2 s of loss and 0.1 s of
scores. So about 1.3 times faster, and 85 to 90 % of the limit. Label maps at 1024²: 5 to 20 times.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Context, Measurement, benchmark
from benchmarks.plain_zutis import plain_scores
from datasets.batch import TrainingBatch, normalise_images
from networks.deeplab import DeepLabV3Plus
from networks.deeplab_prediction import label_pixels
from networks.depthwise import DepthwiseConv3x3
from training.loop_settings import Step
from training.optimizers import deeplab_optimizer
from training.running_losses import RunningLosses
from training.schedules import PolyLR
from training.semantic_step import SemanticStep

BACKBONE, NUM_CLASSES, IGNORE_INDEX = "resnet50", 21, 255
BATCH, SIZE = 2, 384
LABELLED_SIZE, LABELLED_CLASSES = 1024, (81, 920)


@benchmark("deeplab_step")
def measure_step(context: Context) -> Iterator[Measurement]:
    """Seconds per step, how they compare with the convolutions alone, and what an iteration costs besides."""
    torch.manual_seed(context.seed)
    network = DeepLabV3Plus(BACKBONE, NUM_CLASSES).to(context.device, memory_format=torch.channels_last)
    batch = make_batch(context.generator()).to(context.device)
    fast, slow = TrainingStep(network, batch), PlainStep(network, batch)
    check_agreement(fast, slow)
    ours, plain = context.time_pair(fast, slow, plain_repeats=min(context.repeats, 3))
    bookkeeping, scores = context.time(fast.bookkeeping), context.time(slow.bookkeeping)
    share = 100 * bookkeeping.seconds / ours.seconds
    yield Measurement(
        name="deeplab_step",
        workload=f"{BACKBONE}, batch {BATCH}, {SIZE}², {NUM_CLASSES} classes",
        seconds=ours.seconds,
        spread=ours.spread,
        plain_seconds=plain.seconds,
        limit="the network's convolutions alone, forward and backward",
        limit_seconds=convolution_seconds(context, network, batch),
        peak_mib=context.peak_memory(fast),
        plain_peak_mib=context.peak_memory(slow),
        note=f"bookkeeping of an iteration takes {share:.2g} % of the step",
    )
    yield Measurement(
        name="deeplab_step",
        workload=f"bookkeeping of an iteration, batch {BATCH}, {SIZE}²",
        seconds=bookkeeping.seconds,
        spread=bookkeeping.spread,
        plain_seconds=scores.seconds,
    )


@benchmark("deeplab_evaluation")
def measure_evaluation(context: Context) -> Iterator[Measurement]:
    """Label maps from the logits of a large picture, forward pass excluded."""
    size = (LABELLED_SIZE, LABELLED_SIZE)
    for num_classes in LABELLED_CLASSES:
        logits = make_logits(num_classes, context.generator()).to(context.device)
        logits = logits.contiguous(memory_format=torch.channels_last)  # as the network gives them
        found, expected = label_pixels(logits, size).cpu().numpy(), plain_labels(logits, size)
        if (found != expected).mean() > 1e-4:  # where two classes are equal up to rounding
            raise RuntimeError("the two ways of labelling disagree")
        ours, plain = context.time_pair(
            lambda logits=logits: label_pixels(logits, size),
            lambda logits=logits: plain_labels(logits, size),
            plain_repeats=min(context.repeats, 2),
        )
        yield Measurement(
            name="deeplab_evaluation",
            workload=f"labels {size[0]}x{size[1]}, {num_classes} classes",
            seconds=ours.seconds,
            spread=ours.spread,
            plain_seconds=plain.seconds,
            limit="one look at every logit of the small grid",
            limit_seconds=context.time(lambda logits=logits: logits.argmax(dim=1)).seconds,
            peak_mib=context.peak_memory(lambda logits=logits: label_pixels(logits, size)),
            plain_peak_mib=context.peak_memory(lambda logits=logits: plain_labels(logits, size)),
        )


class TrainingStep:
    """The step that training takes, and the bookkeeping of its loop."""

    def __init__(self, network: DeepLabV3Plus, batch: TrainingBatch) -> None:
        """Keep a batch and make the optimiser."""
        self.network, self.batch, self.step = network.train(), batch, SemanticStep(IGNORE_INDEX)
        self.optimizer = deeplab_optimizer(network.parameter_groups())
        self.schedule, self.losses = PolyLR(self.optimizer, 20000), RunningLosses()
        self.outputs = {"loss": torch.zeros((), device=batch.images.device)}

    def loss(self) -> Tensor:
        """Loss of the batch, with graph."""
        return self.step(self.network, self.batch, Step(0, 1, None))["loss"]

    def __call__(self) -> None:
        """Take one step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bookkeeping()

    def bookkeeping(self) -> None:
        """What the loop does besides: learning rates, counts of pixels, running losses; nothing leaves the device."""
        for group, rate in zip(self.optimizer.param_groups, self.schedule.rates(0), strict=True):
            group["lr"] = rate
        self.step.counts(self.batch)
        self.losses.add(self.outputs, 1.0)


class PlainStep(TrainingStep):
    """The same step the plain way, on a network of its own with the same weights."""

    def __init__(self, network: DeepLabV3Plus, batch: TrainingBatch) -> None:
        """Keep a batch and make the optimiser."""
        super().__init__(with_library_convolutions(network), batch)
        self.network.to(memory_format=torch.contiguous_format)
        self.optimizer = torch.optim.Adam(self.network.parameter_groups(), weight_decay=2e-4, foreach=False)
        self.confusion = np.zeros((NUM_CLASSES, NUM_CLASSES))
        self.full = torch.zeros(len(batch), NUM_CLASSES, SIZE, SIZE, device=batch.images.device)

    def loss(self) -> Tensor:
        """Loss of the batch, with graph; keeps the full-size logits for the scores."""
        logits = self.network(normalise_images(self.batch.images).contiguous())
        full = F.interpolate(logits, size=self.batch.semantic.shape[1:], mode="bilinear", align_corners=False)
        self.full = full.detach()
        return F.cross_entropy(full, self.batch.semantic, ignore_index=IGNORE_INDEX)

    def bookkeeping(self) -> None:
        """Scores of every iteration, as published."""
        plain_scores(self.full, self.batch.semantic, self.confusion)


def check_agreement(fast: TrainingStep, slow: PlainStep) -> None:
    """RuntimeError unless both ways give the same loss and gradient of the last layer (with fixed batch norms)."""
    found = []
    for way in (fast, slow):
        way.network.eval()
        loss = way.loss()
        (gradient,) = torch.autograd.grad(loss, way.network.classifier.classifier[3].bias)
        found.append(torch.cat((loss.detach()[None], gradient)))
        way.network.train()
    if not torch.allclose(*found, rtol=1e-3, atol=1e-4):
        raise RuntimeError(f"the two ways of training disagree: {found}")


def with_library_convolutions(network: DeepLabV3Plus) -> DeepLabV3Plus:
    """A copy whose depthwise convolutions are the library's."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, DepthwiseConv3x3):
                options = {"padding": child.padding, "dilation": child.dilation, "groups": child.groups, "bias": False}
                convolution = nn.Conv2d(child.in_channels, child.out_channels, 3, **options)
                convolution.weight = child.weight
                setattr(module, name, convolution)
    return network


def convolution_seconds(context: Context, network: DeepLabV3Plus, batch: TrainingBatch) -> float:
    """Seconds that all convolutions of a step need, each timed by itself, forward and backward."""
    shapes: Counter[tuple[object, ...]] = Counter()
    example: dict[tuple[object, ...], nn.Conv2d] = {}

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        options = (module.stride, module.padding, module.dilation, module.groups, module.bias is None)
        key = (tuple(inputs[0].shape), tuple(module.weight.shape), options)
        shapes[key] += 1
        example[key] = module

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    hooks = [module.register_forward_hook(note) for module in convolutions]
    with torch.no_grad():
        network(normalise_images(batch.images))
    for hook in hooks:
        hook.remove()
    seconds = 0.0
    for key, count in shapes.items():
        maps = torch.randn(key[0], device=context.device).contiguous(memory_format=torch.channels_last)
        maps.requires_grad_(example[key] is not convolutions[0])  # pictures have no gradient
        slope = torch.randn_like(example[key](maps))

        def run(module: nn.Conv2d = example[key], maps: Tensor = maps, slope: Tensor = slope) -> None:
            module(maps).backward(slope)
            module.zero_grad(set_to_none=True)
            maps.grad = None

        seconds += count * context.time(run, min_seconds=0.0).seconds
    return seconds


@torch.no_grad()
def plain_labels(logits: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Labels (B, H, W) from full-size logits that went to the host."""
    full = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return full.cpu().numpy().argmax(axis=1)


def make_batch(generator: torch.Generator) -> TrainingBatch:
    """Pictures of noise, labels in squares, a border that is left out; on the CPU."""
    images = torch.randint(0, 256, (BATCH, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)
    side = max(SIZE // 8, 1)
    small = torch.randint(0, NUM_CLASSES, (BATCH, -(-SIZE // side), -(-SIZE // side)), generator=generator)
    semantic = small.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, :SIZE, :SIZE].short()
    semantic[:, : SIZE // 10] = IGNORE_INDEX
    empty = [torch.zeros(0, SIZE, SIZE, dtype=torch.bool)] * BATCH
    return TrainingBatch(images.permute(0, 3, 1, 2), semantic, empty, [torch.zeros(0, dtype=torch.int64)] * BATCH)


def make_logits(num_classes: int, generator: torch.Generator) -> Tensor:
    """Logits (1, C, h, w) as a trained network gives them: regions with one clear winner, soft borders, noise."""
    side = LABELLED_SIZE // 4
    regions = torch.randint(0, num_classes, (1, 1, 8, 8), generator=generator).float()
    winner = F.interpolate(regions, size=(side, side), mode="nearest").long()
    logits = torch.randn(1, num_classes, side, side, generator=generator)
    logits.scatter_add_(1, winner, torch.full_like(winner, 8.0, dtype=torch.float32))
    return F.avg_pool2d(logits, 5, stride=1, padding=2)
