"""ReCo+: a DeepLabv3+ trained on ReCo's label maps of unlabelled pictures (ReCo, section 3.4).

Pictures and label PNGs are paired by name (`training/labelled_pictures.py`); PNGs that nobody gave are made by ReCo
first (`reco_stages.label_split`). Network and training: `systems/deeplab.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from datasets.base import Benchmark
from evaluation.evaluate import EvaluationResult
from systems import reco_places, scoring, stages
from systems.deeplab import DECISIVE as DEEPLAB_DECISIVE
from systems.deeplab import (
    check_backbone_weights,
    check_batch,
    check_stored_names,
    read_deeplab,
    segmenter_name,
    train_deeplab,
)
from systems.reco_labels import RECORD
from systems.reco_predict import CrfRefiner, PixelSegmenter, RecoPlusSegmenter, describe_refiner, make_refiner
from systems.reco_references import RecoNetworks
from systems.reco_results import RECO_PLUS, keep_results
from systems.reco_stages import label_split, open_split, open_training_pictures
from systems.reco_weights import keep_references
from training.run_folder import RunFolder
from utils.distributed import all_gather_objects, is_main, on_main
from utils.files import read_json
from utils.log import get_logger
from utils.settings import RecoSettings, yaml_values

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from training.labelled_pictures import LabelledPictures

logger = get_logger(__name__)
DECISIVE = (*DEEPLAB_DECISIVE, "ignore_index", "train_image_size", "scale_range", "photometric")


def train(settings: RecoSettings, *, resume: str = "auto", dry_run: bool = False) -> RunFolder:
    """Go from names and unlabelled pictures, or from label PNGs, to a segmenter; see `systems.reco.train`."""
    names, run = reco_places.label_names(settings), RunFolder(reco_places.run_path(settings))
    reco_places.warn_of_one_name(names)
    reco_places.category_names(settings)  # of a benchmark: one for each of its labels, even where PNGs are given
    if dry_run:
        from systems.reco_dry_run import describe

        describe(settings, names, run)
        return run
    from training.launch import make_fabric

    fabric = make_fabric(settings.device, settings.precision, has_idle_parameters=False)
    check_batch(settings.train_loader.batch_size, fabric.world_size, settings.accumulate_steps)
    with run.locked():
        _train(settings, names, run, fabric, resume)
    return run


def _train(settings: RecoSettings, names: Sequence[str], run: RunFolder, fabric: Fabric, resume: str) -> None:
    """The stages, in a run folder that is held."""
    if settings.goes_on_after("prediction"):
        check_backbone_weights(settings, run, resume)
    benchmark = open_split(settings, settings.split, with_labels=True) if settings.evaluates_in_training else None
    pictures = open_training_pictures(settings)
    if not run.config_path.is_file():
        run.write_config(yaml_values(settings))  # what makes it a run folder, hours before there are weights
    if settings.pseudo_label_dir is None:
        made = make_labels(settings, pictures, run, fabric)
        if made is None:
            logger.info("stopped after %s, as asked", settings.stop_after)
            return
        label_dir, left_out = made
    else:
        label_dir, left_out = settings.pseudo_label_dir, []
    if not settings.goes_on_after("prediction"):
        logger.info("stopped after %s, as asked", settings.stop_after)
        return
    samples = training_set(settings, pictures, label_dir, left_out)
    on_main(samples.check_sizes)
    keep_results(run, RECO_PLUS)
    _fit(settings, names, samples, benchmark, run, fabric, resume)
    if is_main():
        from systems import reco_shown
        from systems.reco_report import write_reco_report

        if benchmark is None:
            reco_shown.show_training(settings, samples, fabric.device, run)
        write_reco_report(run, settings, **report_heading(settings, names))


def reco_of(settings: RecoSettings) -> RecoSettings:
    """The settings of the ReCo whose label PNGs a run of ReCo+ learns from."""
    return settings.model_copy(update={"method": "reco", "split": "train", "max_images": None})


def make_labels(
    settings: RecoSettings, pictures: Benchmark, run: RunFolder, fabric: Fabric
) -> tuple[Path, list[Path]] | None:
    """Let ReCo label the pictures, as far as `stop_after` goes; the run folder gets the references that it uses.

    Returns:
        Folder of the label PNGs, and the pictures that have none because they cannot be read; None if it stops before.
    """
    from systems.reco import prepare_references

    def keep() -> None:
        if all_gather_objects(run.checkpoint_path.is_file())[0]:
            return  # these settings may not be those of its training, which is seen when that goes on
        run.write_config(yaml_values(settings))
        keep_references(reco, run)

    reco, networks = reco_of(settings), RecoNetworks(settings, fabric.device)
    if not settings.goes_on_after("references"):
        if prepare_references(reco, networks) is not None:
            keep()
        return None
    folder = label_split(reco, pictures, networks, accepted=keep)
    return folder.path / reco_places.training_labels(settings), folder.refused()


def training_set(
    settings: RecoSettings, pictures: Benchmark, label_dir: Path, left_out: Sequence[Path] = ()
) -> LabelledPictures:
    """Augmented samples of pictures and their label PNGs."""
    from datasets.photometric import PhotometricSettings
    from training.labelled_pictures import LabelledPictures, SampleSettings

    samples = SampleSettings(
        image_size=settings.train_image_size,
        scale_range=settings.scale_range,
        ignore_index=settings.ignore_index,
        photometric=PhotometricSettings(**settings.photometric.model_dump()),
        seed=settings.seed,
    )
    return LabelledPictures(pictures, label_dir, samples, left_out=left_out)


def _fit(
    settings: RecoSettings,
    names: Sequence[str],
    samples: LabelledPictures,
    benchmark: Benchmark | None,
    run: RunFolder,
    fabric: Fabric,
    resume: str,
) -> None:
    from datasets.batch import collate_samples

    logger.info("training set: %d pictures with label PNGs", len(samples))
    uses_crf = settings.validate_with_crf and settings.crf is not None and benchmark is not None

    def score_network(network: nn.Module, iteration: int) -> Mapping[str, float]:
        is_last = iteration == settings.num_iterations
        refiner = make_refiner(settings, fabric.device) if settings.validate_with_crf or is_last else None

        def score_now(network: nn.Module, visit: scoring.Visit) -> EvaluationResult:
            segmenter = RecoPlusSegmenter(network, fabric.device, settings.precision)
            return score(settings, segmenter, refiner, benchmark, visit=visit)

        return scoring.TrainingEvaluation(score_now, benchmark, run)(network, iteration)

    result = train_deeplab(
        settings,
        num_classes=len(names),
        ignore_index=settings.ignore_index,
        dataset=samples,
        collate=collate_samples,
        loop=stages.loop_settings(settings),
        run=run,
        fabric=fabric,
        resume=resume,
        score=None if benchmark is None else score_network,
        selecting_score="mean_iou_crf" if uses_crf else scoring.selecting_score(benchmark),
        config=yaml_values(settings),
        decisive={
            "categories": list(names),
            "labels": labels_of(samples.label_dir),
            **{key: yaml_values(settings)[key] for key in DECISIVE},
        },
        category_names=names,
    )
    logger.info("trained for %d iterations: %s", result.iteration, run.path)


def labels_of(label_dir: Path) -> dict[str, Any]:
    """What label PNGs are known by: their folder's name, and how ReCo made them where it left a record of that.

    Their place is no part of it, because data moves.
    """
    record = label_dir.parent / RECORD
    return {"folder": label_dir.name, "made": read_json(record) if record.is_file() else None}


def report_heading(settings: RecoSettings, names: Sequence[str]) -> dict[str, str]:
    """Title and subtitle of a run's report."""
    return {
        "title": f"ReCo+: {settings.dataset_name or 'your own categories'}",
        "subtitle": f"{len(names)} categories, {settings.segmenter}, {settings.num_iterations} iterations",
    }


# ---- evaluation -----------------------------------------------------------------------------------------------------


def score(
    settings: RecoSettings,
    segmenter: PixelSegmenter,
    refiner: CrfRefiner | None,
    benchmark: Benchmark,
    *,
    visit: scoring.Visit | None = None,
) -> EvaluationResult:
    """Run a segmenter over a benchmark, with and without the CRF in one pass."""
    return scoring.score(
        settings,
        segmenter,
        benchmark,
        device=segmenter.device,
        protocol={
            "background": "none: every pixel has a category",
            "prompts": "none: the classes are the network's own",
            "refiner": "none" if refiner is None else describe_refiner(settings),
            "extra": {"precision": settings.precision, "segmenter": segmenter_name(segmenter.network)},
        },
        refiner=refiner,
        visit=visit,
    )


def evaluate(settings: RecoSettings, weights: Path) -> EvaluationResult:
    """Score weights of ReCo+; see `systems.reco.evaluate`."""
    from training.launch import evaluation_device

    device = evaluation_device(settings.device, settings.precision)
    sought = reco_places.category_names(settings)
    if reco_places.has_table(settings) and settings.categories is not None:
        logger.warning(
            "categories: %s, ... are words that ReCo looks for; weights of ReCo+ have the labels of %s, and are scored "
            "by their names", ", ".join(sought[:3]), settings.dataset_name,
        )  # fmt: skip
    benchmark = open_split(settings, settings.split, with_labels=True)
    stored = read_deeplab(weights, benchmark.num_classes)
    check_stored_names(stored, benchmark.category_names, benchmark.name)
    segmenter = RecoPlusSegmenter(stored.network.to(device), device, settings.precision)
    refiner, folder = make_refiner(settings, device), RunFolder(scoring.evaluation_path(settings, weights))
    return scoring.evaluate_weights(
        settings, benchmark, folder, lambda visit: score(settings, segmenter, refiner, benchmark, visit=visit)
    )
