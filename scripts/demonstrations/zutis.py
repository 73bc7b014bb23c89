"""The demonstration of ZUTIS.

Makes the shapes world, runs the recipe in it stage by stage, measures every stage against the truth and against what is
possible without training, segments a few pictures by name, and writes `report.html` and `results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from datasets.base import Benchmark
from evaluation.evaluate import EvaluationResult
from evaluation.report_sections import pseudo_mask_iou, retrieval_precision, scores_section
from networks.clip import load_clip
from pseudo_labels.mask_stores import MaskStore
from scripts.demonstrations.common import (
    CONFIGS,
    SHORT_NAMES,
    Stopwatch,
    WorldTruth,
    make_demo_world,
    short_scores,
)
from systems import stages, zutis
from systems.baselines import DenseClip, score_named_masks
from systems.run_report import write_training_report
from training.run_folder import RunFolder
from utils.config import load_settings
from utils.files import write_json
from utils.log import get_logger
from utils.settings import ZutisSettings

logger = get_logger("demo")
CONFIG = CONFIGS / "zutis/shapes.yaml"
TARGETS = {"retrieval_precision": 0.9, "pseudo_mask_iou": 0.75, "miou": 0.6, "ap50": 0.3}


def demonstrate(settings: ZutisSettings, output_dir: Path) -> dict[str, object]:
    """Run ZUTIS in the shapes world and write the report; returns what `results.json` holds."""
    watch = Stopwatch()
    with watch.stage("world"):
        world = make_demo_world(output_dir)
    names, run = stages.category_names(settings), RunFolder(zutis.run_path(settings))
    with watch.stage("retrieval"):
        archive = stages.build_archive(settings, names, run)
    with watch.stage("pseudo-masks"):
        archive, masks = stages.build_pseudo_masks(settings, archive, run)
    with watch.stage("training"):
        zutis.train(settings)
    with watch.stage("evaluation"):
        result = zutis.evaluate(settings, run.path)
    benchmark = stages.open_benchmark(settings, names)
    with watch.stage("baselines"):
        dense = score_dense_clip(settings, names, benchmark)
        named = score_saliency(settings, names, benchmark, output_dir / "validation_masks")
    with watch.stage("pictures"):
        pictures = benchmark.image_paths[:: max(1, len(benchmark) // 8)][:8]
        zutis.segment_pictures(run.path, pictures, categories=None, output_dir=output_dir / "pictures")
    truth = WorldTruth(world)
    results = summarise(result, dense, named, archive, masks, truth, watch)
    write_json(output_dir / "results.json", results)
    rows = {"ZUTIS": result.scores(), "CLIP, dense, no training": dense.scores(), "SelfMask named by CLIP": named}
    shown = {method: {n: scores[n] for n in SHORT_NAMES if n in scores} for method, scores in rows.items()}
    class_iou = {
        method: dict(zip(names, found.semantic.class_iou, strict=True))
        for method, found in (("ZUTIS", result), ("CLIP, dense", dense))
    }
    section = scores_section(shown, result.protocol, class_iou)
    page = RunFolder(output_dir)
    write_training_report(
        run,
        archive,
        {"SelfMask": masks.read},
        truth=truth,
        first_sections=[section],
        page=page.report_path,
        **(zutis.report_heading(settings, names) | {"title": "ZUTIS in the built-in world"}),
    )
    return results


def score_dense_clip(settings: ZutisSettings, names: Sequence[str], benchmark: Benchmark) -> EvaluationResult:
    """The first baseline: CLIP's own dense labels."""
    segmenter = DenseClip.from_clip(load_clip(settings.clip_weights), names)
    return zutis.score(settings, segmenter, benchmark)


def score_saliency(
    settings: ZutisSettings, names: Sequence[str], benchmark: Benchmark, mask_dir: Path
) -> dict[str, float]:
    """The second baseline: SelfMask's mask of every picture, named by CLIP."""
    store = MaskStore((benchmark.image_paths[0].parent,), mask_dir)
    stages.fill_store(settings, benchmark.image_paths, store)
    return score_named_masks(load_clip(settings.clip_weights), names, benchmark, store.read)


def summarise(
    result: EvaluationResult,
    dense: EvaluationResult,
    named: Mapping[str, float],
    archive: stages.Archive,
    masks: MaskStore,
    truth: WorldTruth,
    watch: Stopwatch,
) -> dict[str, object]:
    """The numbers of the demonstration as fractions, the baselines' beside them."""
    precision = float(np.mean(list(retrieval_precision(archive, truth).values())))
    return {
        "retrieval_precision": precision,
        "pseudo_mask_iou": pseudo_mask_iou(archive, masks.read, truth).mean_iou,
        **short_scores(result.scores()),
        "baseline": {
            "retrieval_precision": float(np.mean([truth.category_shares[name] for name in archive])),
            "pseudo_mask_iou": pseudo_mask_iou(archive, centre_box, truth).mean_iou,
            **short_scores(dense.scores()),
            "selfmask_named_by_clip": short_scores(named),
        },
        "targets": TARGETS,
        "num_images": result.protocol.num_images,
        "seconds": watch.seconds,
        "duration": watch.summary(),
    }


def centre_box(path: Path, category: str) -> np.ndarray:
    """The naive mask of a picture: the box in its middle with half its height and width, bool, (H, W)."""
    from datasets.pictures import read_image_size

    height, width = read_image_size(path)
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def tell(results: Mapping[str, object], output_dir: Path) -> None:
    """Print the numbers beside baselines and targets, and where everything is."""
    baseline = results["baseline"]
    second = baseline["selfmask_named_by_clip"]
    lines = [f"{'':22}{'ZUTIS':>10}{'baseline':>12}{'SelfMask+CLIP':>16}{'target':>10}"]
    measured = [name for name in SHORT_NAMES.values() if name in results]
    for name in ("retrieval_precision", "pseudo_mask_iou", *measured):
        cells = [results[name], baseline.get(name), second.get(name), TARGETS.get(name)]
        texts = ["-" if value is None else f"{100 * value:.1f} %" for value in cells]
        lines.append(f"{name:22}{texts[0]:>10}{texts[1]:>12}{texts[2]:>16}{texts[3]:>10}")
    logger.info("measured on %d validation pictures, never trained on\n%s", results["num_images"], "\n".join(lines))
    logger.info("%s", results["duration"])
    logger.info("report: %s", output_dir / "report.html")
    logger.info("numbers: %s", output_dir / "results.json")
    logger.info("segmented pictures: %s", output_dir / "pictures")


def run(output_dir: Path, overrides: Sequence[str]) -> dict[str, object]:
    """Run the demonstration and tell its numbers; returns what `results.json` holds."""
    results = demonstrate(load_settings(CONFIG, overrides), output_dir)
    tell(results, output_dir)
    return results
