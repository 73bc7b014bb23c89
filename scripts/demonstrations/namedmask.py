"""The demonstration of NamedMask: with SelfMask's masks and with experts' masks, beside ZUTIS.

The world, its image archive and SelfMask's masks are those of the demonstration of ZUTIS, which is run first where it
has not been. Writes `namedmask/report.html` and `namedmask/results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.evaluate import EvaluationResult
from evaluation.report import Section, Table
from evaluation.report_sections import MaskScores, pseudo_mask_iou, scores_section
from pseudo_labels.mask_stores import ExpertMaskStore
from scripts.demonstrations import zutis
from scripts.demonstrations.common import CONFIGS, Stopwatch, WorldTruth, long_names, make_demo_world, short_scores
from systems import namedmask, stages
from systems.run_report import write_training_report
from training.run_folder import RunFolder
from utils.config import load_settings
from utils.files import read_json, write_json
from utils.log import get_logger
from utils.settings import NamedMaskSettings

logger = get_logger("demo")
CONFIG = CONFIGS / "namedmask/shapes.yaml"
PLAIN, WITH_EXPERTS = "NamedMask", "NamedMask, experts"
WITHOUT = ["use_expert_pseudo_masks=false", "name=namedmask"]
WITH = ["use_expert_pseudo_masks=true", "name=namedmask_experts"]


def run(output_dir: Path, overrides: Sequence[str]) -> dict[str, object]:
    """Run the demonstration and tell its numbers; returns what `namedmask/results.json` holds."""
    if (output_dir / "results.json").is_file():
        beside = read_json(output_dir / "results.json")
        logger.info("ZUTIS was demonstrated before: its scores are in %s", output_dir / "results.json")
    else:
        beside = zutis.run(output_dir, [])
    results = demonstrate(overrides, output_dir, beside)
    tell(results, output_dir / "namedmask")
    return results


def demonstrate(overrides: Sequence[str], output_dir: Path, beside: Mapping[str, Any]) -> dict[str, object]:
    """Train without and with experts, score both, and write the report.

    Args:
        overrides: `key=value` words for both.
        output_dir: of all demonstrations.
        beside: results of the demonstration of ZUTIS.
    """
    watch = Stopwatch()
    with watch.stage("world"):
        truth = WorldTruth(make_demo_world(output_dir))
    settings = load_settings(CONFIG, [*overrides, *WITHOUT], task="train")
    with_experts = load_settings(CONFIG, [*overrides, *WITH], task="train")
    names, run = stages.category_names(settings), RunFolder(namedmask.run_path(with_experts))
    with watch.stage("training with SelfMask's masks"):
        namedmask.train(settings)
    archive = stages.build_archive(with_experts, names, run)
    with watch.stage("experts and their masks"):
        archive, experts = namedmask.build_expert_masks(with_experts, names, archive, run)
    with watch.stage("training with experts' masks"):
        namedmask.train(with_experts)
    with watch.stage("evaluation"):
        found = {PLAIN: evaluate(settings), WITH_EXPERTS: evaluate(with_experts)}
    with watch.stage("pictures"):
        benchmark = stages.open_benchmark(settings, names, with_instances=False)
        pictures = benchmark.image_paths[:: max(1, len(benchmark) // 8)][:8]
        folder = output_dir / "namedmask" / "pictures"
        namedmask.segment_pictures(run.path, pictures, categories=None, output_dir=folder)
    masks = {"SelfMask": stages.mask_store(settings), "experts": experts}
    ious = {maker: pseudo_mask_iou(archive, store.read, truth) for maker, store in masks.items()}
    results = summarise(found, ious, beside, watch)
    write_json(output_dir / "namedmask" / "results.json", results)
    write_page(results, found, ious, names, archive, experts, with_experts, truth, output_dir)
    return results


def evaluate(settings: NamedMaskSettings) -> EvaluationResult:
    """Score the run of these settings."""
    return namedmask.evaluate(settings, namedmask.run_path(settings))


def summarise(
    found: Mapping[str, EvaluationResult], ious: Mapping[str, MaskScores], beside: Mapping[str, Any], watch: Stopwatch
) -> dict[str, object]:
    """The numbers as fractions: a row per method, ZUTIS's among them, and the masks of both makers."""
    rows = {method: short_scores(result.scores()) for method, result in found.items()}
    rows["ZUTIS"] = {name: beside[name] for name in ("miou", "pixel_accuracy")}
    return {
        "methods": rows,
        "pseudo_mask_iou": {maker: scores.mean_iou for maker, scores in ious.items()},
        "gain_of_experts": ious["experts"].mean_iou - ious["SelfMask"].mean_iou,
        "num_images": found[PLAIN].protocol.num_images,
        "seconds": watch.seconds,
        "duration": watch.summary(),
    }


def write_page(
    results: Mapping[str, Any],
    found: Mapping[str, EvaluationResult],
    ious: Mapping[str, MaskScores],
    names: Sequence[str],
    archive: stages.Archive,
    experts: ExpertMaskStore,
    settings: NamedMaskSettings,
    truth: WorldTruth,
    output_dir: Path,
) -> None:
    """The report: all methods side by side, what experts did to the masks, and the run with experts."""
    rows = {method: dict(scores) for method, scores in results["methods"].items()}
    class_iou = {method: dict(zip(names, result.class_iou, strict=True)) for method, result in found.items()}
    write_training_report(
        RunFolder(namedmask.run_path(settings)),
        archive,
        namedmask.mask_makers(settings, archive, experts),
        truth=truth,
        first_sections=[scores_section(long_names(rows), found[PLAIN].protocol, class_iou), expert_section(ious)],
        page=output_dir / "namedmask" / "report.html",
        **(namedmask.report_heading(settings, names) | {"title": "NamedMask in the built-in world"}),
    )


def expert_section(ious: Mapping[str, MaskScores]) -> Section:
    """What experts did to the masks, category by category."""
    before, after = ious["SelfMask"], ious["experts"]
    rows = [
        [name, f"{100 * before.category_iou[name]:.1f}", f"{100 * after.category_iou[name]:.1f}",
         f"{100 * (after.category_iou[name] - before.category_iou[name]):+.1f}"]
        for name in before.category_iou
    ]  # fmt: skip
    gain = 100 * (after.mean_iou - before.mean_iou)
    rows.append(["all", f"{100 * before.mean_iou:.1f}", f"{100 * after.mean_iou:.1f}", f"{gain:+.1f}"])
    verdict = "better" if gain >= 0 else "WORSE"
    text = f"On average the experts' masks are {verdict} than SelfMask's by {abs(gain):.1f} points of IoU."
    table = Table(["mask IoU, %", "SelfMask", "expert", "change"], rows, strong_rows=[len(rows) - 1])
    return Section("Experts", [text], [table])


def tell(results: Mapping[str, Any], folder: Path) -> None:
    """Print the numbers of all methods, and where everything is."""
    lines = [f"{'':24}{'mIoU':>10}{'pixel accuracy':>18}"]
    for method, scores in results["methods"].items():
        lines.append(f"{method:24}{100 * scores['miou']:>8.1f} %{100 * scores['pixel_accuracy']:>16.1f} %")
    ious = results["pseudo_mask_iou"]
    logger.info("measured on %d validation pictures, never trained on\n%s", results["num_images"], "\n".join(lines))
    logger.info(
        "pseudo-masks against the truth: SelfMask %.1f %% IoU, experts %.1f %% (%+.1f points)",
        100 * ious["SelfMask"], 100 * ious["experts"], 100 * results["gain_of_experts"],
    )  # fmt: skip
    logger.info("%s", results["duration"])
    logger.info("report: %s", folder / "report.html")
    logger.info("numbers: %s", folder / "results.json")
    logger.info("segmented pictures: %s", folder / "pictures")
