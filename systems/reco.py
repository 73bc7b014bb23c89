"""ReCo: retrieve and co-segment for zero-shot transfer (Shin, Xie, Albanie; NeurIPS 2022), and ReCo+.

The stages in the order of the paper: names -> retrieved pictures -> one reference embedding per name, by
co-segmentation (`reco_references.py`) -> label maps of a benchmark, with and without the dense CRF (`reco_predict.py`),
or of a training split as PNGs (`reco_labels.py`). Nothing is trained. With `method: reco_plus` a DeepLabv3+ learns from
those PNGs (`reco_plus.py`). `method: dense_clip` is what ReCo is compared with (`reco_dense_clip.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets.base import Benchmark
from evaluation.evaluate import EvaluationResult
from evaluation.pictures import PictureResult
from evaluation.protocol import format_scores, write_results
from pseudo_labels.references import References
from systems import reco_places, scoring
from systems.reco_labels import LabelFolder, score_pseudo_labels
from systems.reco_predict import CrfRefiner, RecoSegmenter
from systems.reco_references import RecoNetworks, find_archive, find_references, reference_settings
from systems.reco_results import LABEL_RESULTS, RECO, keep_results
from systems.reco_stages import describe_method, label_split, make_segmenter, open_split
from systems.reco_weights import keep_references, reference_file
from training.launch import evaluation_device
from training.run_folder import RunFolder
from utils.distributed import is_main
from utils.errors import WeightsError
from utils.log import get_logger
from utils.settings import RecoSettings, yaml_values

logger = get_logger(__name__)


# ---- the stages -----------------------------------------------------------------------------------------------------


def train(settings: RecoSettings, *, resume: str = "auto", dry_run: bool = False) -> RunFolder:
    """Go from names and unlabelled pictures to label maps, and with `method: reco_plus` to a segmenter.

    Args:
        settings: of the run, validated for the task "train".
        resume: for the training of ReCo+: "auto", "never", or a checkpoint to go on from.
        dry_run: check, build, read a picture, report, and write nothing.

    Returns:
        The run folder.

    Raises:
        UserError: whatever is wrong with settings, files or pictures.
    """
    if settings.trains:
        from systems import reco_plus

        return reco_plus.train(settings, resume=resume, dry_run=dry_run)
    names, run = reco_places.category_names(settings), RunFolder(reco_places.run_path(settings))
    reco_places.warn_of_one_name(names)
    if dry_run:
        from systems.reco_dry_run import describe

        describe(settings, names, run)
        return run
    if not settings.uses_references:
        from systems import reco_dense_clip

        reco_dense_clip.score_benchmark(settings, run)
        return run
    networks = RecoNetworks(settings, evaluation_device(settings.device, settings.precision))
    with run.locked():
        run.write_config(yaml_values(settings))
        _run_stages(settings, names, networks, run)
    return run


def _run_stages(settings: RecoSettings, names: Sequence[str], networks: RecoNetworks, run: RunFolder) -> None:
    """The stages, in a run folder that is held."""
    references = prepare_references(settings, networks)
    if references is None:
        return
    from systems import reco_shown

    keep_references(settings, run)
    if settings.benchmark_dir is not None and settings.goes_on_after("references"):
        if settings.writes_pseudo_labels:
            folder = label_benchmark(settings, networks, run)
            if is_main():
                reco_shown.show_labels(folder, run, num_pictures=settings.max_images)
        else:
            keep_results(run, RECO)
            score_references(settings, networks, references, run)
    elif settings.goes_on_after("references") and is_main():
        reco_shown.show_references(settings, networks, references, run)
    if is_main():
        from systems.reco_report import write_reco_report

        title = f"ReCo: {settings.dataset_name or 'your own categories'}"
        write_reco_report(run, settings, title=title, subtitle=f"{len(names)} categories, {settings.encoder_arch}")
    logger.info("ReCo is ready: python inference.py --weights %s --images PICTURES", run.path)


def prepare_references(settings: RecoSettings, networks: RecoNetworks) -> References | None:
    """Retrieval and references, as far as `stop_after` goes: None if it stops before they are there."""
    names = reco_places.category_names(settings)
    if settings.goes_on_after("retrieval"):
        return find_references(settings, names, networks)
    find_archive(settings, names, reference_settings(settings))
    logger.info("stopped after retrieval, as asked")
    return None


def label_benchmark(settings: RecoSettings, networks: RecoNetworks, run: RunFolder) -> LabelFolder:
    """Label PNGs of a split; where it has labels of its own, how well the PNGs agree with them."""
    pictures = open_split(settings, settings.split, with_labels=None)
    folder = label_split(settings, pictures, networks)
    if not pictures.has_labels:
        return folder
    result = score_pseudo_labels(
        folder,
        protocol=describe_method(settings),
        num_workers=settings.val_loader.num_workers,
        num_pictures=settings.max_images,
    )
    if is_main():
        write_results(
            run.path / LABEL_RESULTS,
            result.scores(),
            result.protocol,
            class_iou=result.class_iou,
            extra=result.refined_class_iou(),
        )
        logger.info("label PNGs in %%\n%s", format_scores(result.scores(), result.protocol))
    return folder


def score_references(
    settings: RecoSettings, networks: RecoNetworks, references: References, folder: RunFolder
) -> EvaluationResult:
    """Score ReCo on the benchmark of the settings; scores, protocol and pictures go to the folder."""
    benchmark = open_split(settings, settings.split, with_labels=True)
    segmenter, refiner = make_segmenter(settings, networks, references)
    return scoring.evaluate_weights(
        settings, benchmark, folder, lambda visit: score(settings, segmenter, refiner, benchmark, visit=visit)
    )


def score(
    settings: RecoSettings,
    segmenter: RecoSegmenter,
    refiner: CrfRefiner | None,
    benchmark: Benchmark,
    *,
    visit: scoring.Visit | None = None,
) -> EvaluationResult:
    """Run ReCo over a benchmark, with and without the CRF in one pass."""
    return scoring.score(
        settings,
        segmenter,
        benchmark,
        device=segmenter.device,
        protocol=describe_method(settings),
        refiner=refiner,
        visit=visit,
    )


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(settings: RecoSettings, weights: Path) -> EvaluationResult:
    """Score ReCo or ReCo+ on the benchmark of the settings; scores and protocol go to a folder of their own.

    Args:
        settings: validated for the task "evaluate".
        weights: for ReCo reference embeddings (a published pickle or our own file) or the folder of a run; for ReCo+
            a published file, a run folder, or a file in one.

    Returns:
        Everything measured, with and without the CRF.

    Raises:
        WeightsError: weights of the other method, or any for dense CLIP alone.
        UserError: whatever else does not fit.
    """
    if not settings.uses_references:
        raise WeightsError(
            f"{weights}: dense CLIP alone (method: dense_clip) has no weights but CLIP's own (dense_clip_arch). To "
            "score it give none: train.py with the same config, or its script without a first argument."
        )
    path = reference_file(weights, trains=settings.trains)
    if path is None:
        from systems import reco_plus

        return reco_plus.evaluate(settings, weights)
    settings = settings.model_copy(update={"reference_path": path})
    networks = RecoNetworks(settings, evaluation_device(settings.device, settings.precision))
    references = find_references(settings, reco_places.category_names(settings), networks)
    return score_references(settings, networks, references, RunFolder(scoring.evaluation_path(settings, weights)))


# ---- users' pictures ------------------------------------------------------------------------------------------------


def segment_pictures(
    weights: Path,
    images: Sequence[str | Path],
    *,
    categories: Sequence[str] | None,
    output_dir: Path,
    settings: RecoSettings | None = None,
    overrides: Sequence[str] = (),
) -> list[PictureResult]:
    """Segment pictures: label PNGs, overlays, COCO JSON and a table.

    Args:
        weights: a run folder, reference embeddings, or weights of ReCo+. Of dense CLIP a run folder: it has no others.
        images: folders, files or globs.
        categories: which of the known categories to choose between (of dense CLIP: any names); None: all.
        output_dir: where results go.
        settings: for files that do not lie in a run folder; a run's own settings are read from it.
        overrides: `key=value` words on top of a run's settings.

    Raises:
        UserError: unreadable weights or pictures, or names without a reference.
    """
    from systems import reco_pictures

    return reco_pictures.segment_pictures(
        weights, images, categories=categories, output_dir=output_dir, settings=settings, overrides=overrides
    )
