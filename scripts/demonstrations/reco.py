"""The demonstration of ReCo and ReCo+ where every pixel has a name: grounds as well as things, no background.

The stuff part of the built-in world, one CLIP that was taught in it in all three roles. Writes `reco/report.html` and
`reco/results.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from datasets.shapes.world import make_world
from evaluation.evaluate import EvaluationResult
from evaluation.report import Section, Table, write_report
from evaluation.report_sections import curves_section, predictions_section, scores_section
from scripts.demonstrations.common import CONFIGS, IMAGE_SIZE, Stopwatch, long_names, short_scores
from systems import reco, reco_dense_clip, reco_places
from systems.evaluation_pictures import last_panels
from systems.reco_report import drawings_section
from systems.reco_results import LABEL_RESULTS
from systems.reco_stages import open_split
from training.metric_log import read_metrics
from training.run_folder import RunFolder
from utils.config import load_settings
from utils.files import read_json, write_json
from utils.log import get_logger
from utils.settings import RecoSettings

logger = get_logger("demo")
CONFIG = CONFIGS / "reco/shapes.yaml"
COUNTS = {"num_stuff_index": 2000, "num_stuff_val": 150, "num_stuff_train": 400}
DENSE_CLIP, RECO, RECO_PLUS = "dense CLIP", "ReCo", "ReCo+"
SCORES, NUM_PICTURES = "results.json", 8
OWN_FOLDERS = "name=null"  # each method's results in a folder of its own, as in the release


def run(output_dir: Path, overrides: Sequence[str]) -> dict[str, object]:
    """Run the demonstration and tell its numbers; returns what `reco/results.json` holds."""
    results = demonstrate(overrides, output_dir)
    tell(results, output_dir / "reco")
    return results


def demonstrate(overrides: Sequence[str], output_dir: Path) -> dict[str, object]:
    """Make references, score ReCo, train ReCo+ on its labels of other pictures, score that, and write the report.

    Args:
        overrides: `key=value` words for both methods.
        output_dir: of all demonstrations.
    """
    watch, page_dir = Stopwatch(), output_dir / "reco"
    with watch.stage("world"):
        make_world(output_dir / "world", image_size=IMAGE_SIZE, **COUNTS)
    settings, alone, labelling, training = (
        load_settings(CONFIG, [*overrides, OWN_FOLDERS, *words], task="train")
        for words in ((), ("method=dense_clip",), ("split=train",), ("method=reco_plus",))
    )
    with watch.stage("references"):
        reco.train(settings.model_copy(update={"stop_after": "references"}))
    with watch.stage("ReCo"):
        run_reco = reco.train(settings)
    with watch.stage("dense CLIP"):
        baseline = reco_dense_clip.score_benchmark(alone, RunFolder(reco_places.run_path(alone)))
    with watch.stage("pseudo-labels"):
        run_labels = reco.train(labelling)
    with watch.stage("ReCo+"):
        run_plus = reco.train(training)
    with watch.stage("pictures"):
        paths = open_split(settings, settings.split, with_labels=False).image_paths
        pictures = paths[:: max(1, len(paths) // NUM_PICTURES)][:NUM_PICTURES]
        reco.segment_pictures(run_plus.path, pictures, categories=None, output_dir=page_dir / "pictures")
    found = {RECO: read_json(run_reco.path / SCORES), RECO_PLUS: read_json(run_plus.path / SCORES)}
    labels = read_json(run_labels.path / LABEL_RESULTS)
    results = summarise(found, baseline, labels, watch)
    write_json(page_dir / SCORES, results)
    write_page(results, found, baseline, settings, (run_reco, run_plus), page_dir / "report.html")
    return results


def summarise(
    found: Mapping[str, Any], baseline: EvaluationResult, labels: Mapping[str, Any], watch: Stopwatch
) -> dict[str, object]:
    """The numbers as fractions: a row per method, what the CRF changes, and the labels that ReCo+ learnt from."""
    rows = {DENSE_CLIP: short_scores(baseline.scores())}
    rows |= {method: short_scores(result["scores"]) for method, result in found.items()}
    return {
        "methods": rows,
        "gain_of_crf": {
            method: scores["miou_crf"] - scores["miou"] for method, scores in rows.items() if "miou_crf" in scores
        },
        "pseudo_labels": short_scores(labels["scores"]),
        "num_images": baseline.protocol.num_images,
        "seconds": watch.seconds,
        "duration": watch.summary(),
    }


def write_page(
    results: Mapping[str, Any],
    found: Mapping[str, Any],
    baseline: EvaluationResult,
    settings: RecoSettings,
    runs: Sequence[RunFolder],
    page: Path,
) -> None:
    """The report: all methods side by side, the CRF, ReCo+'s training, predictions and what references are made of."""
    names = reco_places.label_names(settings)
    class_iou = {DENSE_CLIP: dict(zip(names, map(float, baseline.class_iou), strict=True))}
    for method, result in found.items():
        class_iou[method] = result["class_iou"]
        if "class_iou_crf" in result:
            class_iou[f"{method}, CRF"] = result["class_iou_crf"]
    panels = [
        [replace(panel, name=f"{panel.name}: {method}") for panel in last_panels(run)]
        for method, run in zip((RECO, RECO_PLUS), runs, strict=True)
    ]
    predictions = predictions_section(list(chain.from_iterable(zip(*panels, strict=True))))
    seeds = drawings_section(settings)
    sections = [
        scores_section(long_names(results["methods"]), baseline.protocol, class_iou, strong=RECO_PLUS),
        crf_section(results),
        curves_section(read_metrics(runs[-1].metrics_path)),
        predictions,
        *([] if seeds is None else [seeds]),
    ]
    subtitle = f"{len(names)} categories, of grounds and of things; {settings.segmenter} learns from ReCo's labels"
    write_report(page, title="ReCo and ReCo+ in the built-in world", subtitle=subtitle, sections=sections)


def crf_section(results: Mapping[str, Any]) -> Section:
    """What the CRF does to every method, and to the labels that ReCo+ learns from."""
    rows = [[name, *crf_cells(scores)] for name, scores in results["methods"].items()]
    rows.append(["ReCo's labels of the training split", *crf_cells(results["pseudo_labels"])])
    text = "The labels of the training split are compared with its truth here; nothing learns from that truth."
    return Section("The CRF", (text,), (Table(["mIoU, %", "without CRF", "with CRF", "change"], rows),))


def crf_cells(scores: Mapping[str, float]) -> list[str]:
    """mIoU without and with the CRF in per cent, and the change in points; dashes without it."""
    without, refined = 100 * scores["miou"], scores.get("miou_crf")
    if refined is None:
        return [f"{without:.1f}", "-", "-"]
    return [f"{without:.1f}", f"{100 * refined:.1f}", f"{100 * refined - without:+.1f}"]


def tell(results: Mapping[str, Any], folder: Path) -> None:
    """Print the numbers of all methods, and where everything is."""
    lines = [f"{'mIoU, %':24}{'without CRF':>14}{'with CRF':>12}{'change':>10}"]
    rows = results["methods"] | {"labels ReCo+ learnt from": results["pseudo_labels"]}
    for name, scores in rows.items():
        without, refined, change = crf_cells(scores)
        lines.append(f"{name:24}{without:>14}{refined:>12}{change:>10}")
    logger.info("measured on %d validation pictures, never trained on\n%s", results["num_images"], "\n".join(lines))
    logger.info("%s", results["duration"])
    logger.info("report: %s", folder / "report.html")
    logger.info("numbers: %s", folder / SCORES)
    logger.info("segmented pictures: %s", folder / "pictures")
