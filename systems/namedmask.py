"""NamedMask: distilling segmenters from complementary foundation models (Shin, Xie, Albanie; CVPR workshops 2023).

The stages in the order of the paper: names -> retrieved pictures (`stages.build_archive`) -> SelfMask's pseudo-masks
(`stages.build_pseudo_masks`) -> optionally category experts and their masks (`experts.py`) -> copy-paste samples -> a
DeepLabv3+ -> scores and pictures. Network: `networks/deeplab.py`; training: `systems/deeplab.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.base import Benchmark
from datasets.metadata import BACKGROUND, benchmark_table
from evaluation.evaluate import EvaluationResult
from evaluation.pictures import PictureResult
from evaluation.pictures import segment_pictures as write_pictures
from evaluation.report_sections import ReadMask
from pseudo_labels.mask_stores import ExpertMaskStore, MaskStore
from systems import scoring, stages
from systems.deeplab import DECISIVE as DEEPLAB_DECISIVE
from systems.deeplab import (
    OBJECT,
    SemanticSegmenter,
    StoredDeepLab,
    check_backbone_weights,
    check_batch,
    check_stored_names,
    preview_network,
    read_deeplab,
    segment_picture,
    segmenter_name,
    train_deeplab,
)
from systems.run_weights import check_names_to_find, folder_of, with_nearest
from training.run_folder import RunFolder
from utils.config import load_settings, settings_from_dict
from utils.device import select_device
from utils.distributed import barrier, is_main
from utils.drawing import palette
from utils.errors import ConfigError, DataError, WeightsError
from utils.log import get_logger
from utils.naming import category_file_names, namedmask_experiment_name
from utils.settings import NamedMaskSettings, yaml_values

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from datasets.index_dataset import IndexDataset
    from networks.deeplab import DeepLabV3Plus
    from systems.experts import ExpertGroup

logger = get_logger(__name__)
Masks = MaskStore | ExpertMaskStore
DECISIVE = (  # YAML keys that a resumed run has to share with its checkpoint
    *DEEPLAB_DECISIVE,
    *("ignore_index", "n_images", "train_image_size", "scale_range", "max_n_masks", "random_duplicate"),
    *("photometric", "label_rule", "fast_decode", "use_expert_pseudo_masks"),
)
_TABLES = {21: "voc2012", 15: "cityscapes_object", 51: "imagenet_s50", 301: "imagenet_s300", 920: "imagenet_s919"}


# ---- training -------------------------------------------------------------------------------------------------------


def train(settings: NamedMaskSettings, *, resume: str = "auto", dry_run: bool = False) -> RunFolder:
    """Go from names and unlabelled pictures to a segmenter; complete stages are skipped, cut-off ones go on.

    Args:
        settings: of the run, validated for the task "train".
        resume: "auto", "never", or a checkpoint to go on from.
        dry_run: check, build, read one batch, report, and write nothing.

    Returns:
        The run folder.

    Raises:
        UserError: whatever is wrong with settings, files or pictures.
    """
    names, run = stages.category_names(settings), RunFolder(run_path(settings))
    stages.check_ignore_index(settings, names)
    if dry_run:
        _describe(settings, names, run)
        return run
    from training.launch import make_fabric

    fabric = make_fabric(settings.device, settings.precision, has_idle_parameters=False)
    with run.locked():
        _train(settings, names, run, fabric, resume)
    return run


def _train(settings: NamedMaskSettings, names: Sequence[str], run: RunFolder, fabric: Fabric, resume: str) -> None:
    """The stages, in a run folder that is held."""
    if settings.goes_on_after("experts"):
        check_batch(settings.train_loader.batch_size, fabric.world_size, settings.accumulate_steps)
        check_backbone_weights(settings, run, resume)
    if settings.trains_experts and settings.backbone_weights is not None:
        _check_backbone_of_experts(settings, run)
    scores = settings.evaluates_in_training and settings.goes_on_after("experts")
    benchmark = stages.open_benchmark(settings, names, with_instances=False) if scores else None
    archive = stages.build_archive(settings, names, run)
    if not settings.goes_on_after("retrieval"):
        return
    if settings.stop_after == "pseudo_masks" or not (settings.use_expert_masks or settings.stop_after == "experts"):
        archive, masks = stages.build_pseudo_masks(settings, archive, run)
    else:
        archive, masks = build_expert_masks(settings, names, archive, run)
    if not settings.goes_on_after("experts"):
        logger.info("stopped after %s, as asked: %s", settings.stop_after, run.path)
        return
    _fit(settings, names, stages.training_samples(settings, names, archive, masks), benchmark, run, fabric, resume)
    if is_main():
        from systems.run_report import write_training_report

        write_training_report(run, archive, mask_makers(settings, archive, masks), **report_heading(settings, names))


def _check_backbone_of_experts(settings: NamedMaskSettings, run: RunFolder) -> None:
    """What experts would start from, as far as it is here; that they have to be trained is seen later."""
    from networks.backbone_weights import needs_download
    from systems.experts import expert_settings

    is_done = settings.stop_after != "experts" and run.checkpoint_path.is_file()
    if not is_done and not needs_download(settings.backbone_weights):
        check_backbone_weights(expert_settings(settings), run, "never")


def build_expert_masks(
    settings: NamedMaskSettings, names: Sequence[str], archive: stages.Archive, run: RunFolder
) -> tuple[stages.Archive, ExpertMaskStore]:
    """Make the experts' masks that are missing; train experts, and make SelfMask's masks for them, where they lack.

    Returns:
        The archive without refused images, and the store of the masks.

    Raises:
        UserError: weights that are missing in a given folder, or an expert that cannot be trained.
        DataError: if a category loses all its images.
    """
    from systems import experts

    groups = experts.expert_groups(settings, names, run)
    store = experts.expert_mask_store(settings, archive, run)
    missing = experts.missing_masks(groups, archive, store)
    # Asked for experts, their weights are the result; else they are needed for masks that are missing alone.
    needed = groups if settings.stop_after == "experts" else list(missing)
    if not needed:
        logger.info("experts' masks: all exist, no expert is needed")
        return archive, store
    weights = experts.find_weights(settings, needed, run)
    barrier()  # no rank changes what there is to find before all have looked
    untrained = [group for group, path in weights.items() if path is None]
    if untrained:
        archive = _train_experts(settings, untrained, archive, run)
        weights |= experts.find_weights(settings, untrained, run)
        missing = experts.missing_masks(groups, archive, store)
        barrier()
    reports = experts.write_expert_masks(settings, weights, missing, run)
    refused = {refusal.image_path for report in reports for refusal in report.refused}
    return stages.without_refused(archive, refused, run), store


def _train_experts(
    settings: NamedMaskSettings, groups: Sequence[ExpertGroup], archive: stages.Archive, run: RunFolder
) -> stages.Archive:
    """Train experts on SelfMask's masks of their pictures; returns the archive without refused images."""
    from systems.expert_workers import ExpertJob, train_experts
    from systems.experts import expert_path

    categories = [name for group in groups for name in group.categories]
    part, masks = stages.build_pseudo_masks(settings, {name: archive[name] for name in categories}, run)
    archive = {**archive, **part}
    jobs = [
        ExpertJob(group, {name: archive[name] for name in group.categories}, expert_path(settings, group, run))
        for group in groups
    ]
    train_experts(settings, jobs, masks)
    return archive


def _fit(
    settings: NamedMaskSettings,
    names: Sequence[str],
    samples: IndexDataset,
    benchmark: Benchmark | None,
    run: RunFolder,
    fabric: Fabric,
    resume: str,
) -> None:
    from datasets.batch import collate_samples

    def score_network(network: DeepLabV3Plus, visit: scoring.Visit) -> EvaluationResult:
        return score(settings, SemanticSegmenter(network, fabric.device, settings.precision), benchmark, visit=visit)

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
        score=None if benchmark is None else scoring.TrainingEvaluation(score_network, benchmark, run),
        selecting_score=scoring.selecting_score(benchmark),
        config=yaml_values(settings),
        decisive={"categories": list(names), **{key: yaml_values(settings)[key] for key in DECISIVE}},
        category_names=names,
    )
    logger.info("trained for %d iterations: %s", result.iteration, run.path)


def run_path(settings: NamedMaskSettings) -> Path:
    """Folder of a run: `<output_dir>/<benchmark>/<split>/<experiment>`, or `<output_dir>/<name>` if it has a name."""
    if settings.name is not None:
        return settings.output_dir / settings.name
    experiment = namedmask_experiment_name(
        segmenter_name=settings.segmenter,
        num_images=settings.num_images,
        scale_range=settings.scale_range,
        max_num_masks=settings.max_objects,
        use_expert_masks=settings.use_expert_masks,
        suffix=settings.suffix or "",
        seed=settings.seed,
    )
    return scoring.benchmark_path(settings) / experiment


def mask_makers(settings: NamedMaskSettings, archive: stages.Archive, masks: Masks) -> dict[str, ReadMask]:
    """For reports: readers of all masks that there are, SelfMask's beside the experts'."""
    if isinstance(masks, MaskStore):
        return {"SelfMask": masks.read}
    saliency = stages.mask_store(settings)
    images = {path for paths in archive.values() for path in paths}
    has_saliency = all(saliency.path(path).is_file() for path in images)
    return {**({"SelfMask": saliency.read} if has_saliency else {}), "experts": masks.read}


def report_heading(settings: NamedMaskSettings, names: Sequence[str]) -> dict[str, str]:
    """Title and subtitle of a run's report."""
    masks = "experts' masks" if settings.use_expert_masks else "SelfMask's masks"
    return {
        "title": f"NamedMask: {settings.dataset_name or 'your own categories'}",
        "subtitle": f"{len(names) - 1} categories, {settings.segmenter}, {masks}, {settings.num_iterations} iterations",
    }


def _describe(settings: NamedMaskSettings, names: Sequence[str], run: RunFolder) -> None:
    """What `--dry-run` reports."""
    logger.info("run folder: %s", run.path)
    logger.info("%d categories with background: %s", len(names), ", ".join(names[:8]) + (", ..." if names[8:] else ""))
    if settings.evaluates_in_training and not settings.scores_single_categories:
        logger.info("benchmark: %s", stages.open_benchmark(settings, names, with_instances=False).protocol["benchmark"])
    network = preview_network(settings, len(names)) if settings.goes_on_after("experts") else None
    if settings.trains_experts and settings.backbone_weights is not None:
        _check_backbone_of_experts(settings, run)
    archive = stages.preview_archive(settings, names, run)
    if archive is None:
        stages.describe_index(settings, run)
        logger.info("retrieval, pseudo-masks and a batch are left for the real run: nothing is retrieved yet")
        return
    masks: Masks = stages.mask_store(settings)
    if settings.use_expert_masks:
        from systems import experts

        masks = experts.expert_mask_store(settings, archive, run)
    wanted = {masks.path(path, name) for name, paths in archive.items() for path in paths}
    num_missing = sum(not path.is_file() for path in wanted)
    logger.info("image archive: %d pseudo-masks, to make: %d", len(wanted), num_missing)
    if num_missing == 0 and network is not None:
        samples = stages.training_samples(settings, names, archive, masks)
        stages.describe_samples(settings, network, samples)


# ---- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(settings: NamedMaskSettings, weights: Path) -> EvaluationResult:
    """Score weights on the benchmark of the settings; scores and protocol go to a folder of their own.

    Nothing but the benchmark and the weights is read, and nothing is downloaded.

    Args:
        settings: validated for the task "evaluate".
        weights: a published file, a run folder, or a file in one.

    Returns:
        Everything measured. ImageNet-S test has no labels: its predictions are exported as label PNGs instead.
    """
    from training.launch import evaluation_device

    category = settings.single_category[0] if settings.scores_single_categories else None
    names = stages.category_names(settings)
    device = evaluation_device(settings.device, settings.precision)
    benchmark = stages.open_benchmark(settings, names, category=category, with_instances=False)
    stored = read_deeplab(weights, benchmark.num_classes)
    check_stored_names(stored, benchmark.category_names, benchmark.name, category=category)
    segmenter = SemanticSegmenter(stored.network.to(device), device, settings.precision)
    folder = RunFolder(scoring.evaluation_path(settings, weights, category_file_names(names).get(category, "")))
    return scoring.evaluate_weights(
        settings, benchmark, folder, lambda visit: score(settings, segmenter, benchmark, visit=visit)
    )


def score(
    settings: NamedMaskSettings,
    segmenter: SemanticSegmenter,
    benchmark: Benchmark,
    *,
    visit: scoring.Visit | None = None,
) -> EvaluationResult:
    """Run a segmenter over a benchmark."""
    return scoring.score(
        settings,
        segmenter,
        benchmark,
        device=segmenter.device,
        protocol={
            "prompts": "none: the classes are the network's own",
            "extra": {"precision": settings.precision, "segmenter": segmenter_name(segmenter.network)},
        },
        visit=visit,
    )


# ---- users' pictures ------------------------------------------------------------------------------------------------


def segment_pictures(
    weights: Path,
    images: Sequence[str | Path],
    *,
    categories: Sequence[str] | None,
    output_dir: Path,
    settings: NamedMaskSettings | None = None,
    overrides: Sequence[str] = (),
) -> list[PictureResult]:
    """Segment pictures: label PNGs, overlays, COCO JSON and a table.

    Args:
        weights: a run folder, a file in one, or a published file.
        images: folders, files or globs.
        categories: which of the network's categories to find; None: all.
        output_dir: where results go.
        settings: for files that do not lie in a run folder; a run's own settings are read from it.
        overrides: `key=value` words on top of a run's settings.

    Raises:
        UserError: unreadable weights or pictures, or names that the network does not know.
    """
    stored = read_deeplab(weights)
    settings = settings or _own_settings(weights, overrides)
    known = stored.category_names or _names_of_classes(settings, stored)
    names = known if categories is None else [BACKGROUND, *_known_names(categories, known)]
    device = select_device(settings.device)
    segmenter = SemanticSegmenter(stored.network.to(device), device, settings.precision)
    classes = None if names == known else [known.index(name) for name in names]
    options: Mapping[str, object] = {"long_edge": settings.picture_long_edge, "classes": classes}
    logger.info("segmenting by %d names on %s", len(names) - 1, device)
    return write_pictures(
        images,
        partial(map, partial(segment_picture, segmenter, **options)),
        category_names=names,
        palette=palette(len(names)),
        output_dir=output_dir,
    )


def _own_settings(weights: Path, overrides: Sequence[str]) -> NamedMaskSettings:
    """Settings of the run folder, or the plainest ones for a file on its own."""
    config = folder_of(Path(weights)).config_path
    if config.is_file():
        return load_settings(config, overrides)
    values = {"system": "namedmask", "categories": [BACKGROUND]}
    return settings_from_dict(values, source=str(weights), overrides=overrides)


def _names_of_classes(settings: NamedMaskSettings, stored: StoredDeepLab) -> list[str]:
    """Names of a published file's classes: those of the settings, else those that their number tells."""
    count = stored.network.num_classes
    given = [name for name in settings.categories or () if name != BACKGROUND]
    if given or settings.dataset_name is not None:
        names = stages.category_names(settings.model_copy(update={"categories": given or None}))
        if count == 2 and len(names) != 2:  # an expert, whose run folder has the settings of the run that needed it
            return [BACKGROUND, OBJECT]
        if len(names) != count:
            raise WeightsError(
                f"{stored.source}: these weights have {count} classes with background, but the settings name "
                f"{len(names)}. Set dataset_name or categories to what they were trained for."
            )
        return names
    if count == 2:
        return [BACKGROUND, OBJECT]
    if count in _TABLES:
        name = _TABLES[count]
        size = int(name.removeprefix("imagenet_s")) if name.startswith("imagenet_s") else None
        return list(benchmark_table("imagenet-s" if size else name, size).names)
    raise DataError(
        f"{stored.source}: the names of its {count} classes cannot be told from the file (COCO2017 and CoCA both have "
        "81). Say which: dataset_name=coco2017, dataset_name=coca, or categories=[...] in the order of training."
    )


def _known_names(categories: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names to find; ConfigError unless the network was trained for all of them."""
    names = [name for name in check_names_to_find(categories) if name != BACKGROUND]
    unknown = [name for name in names if name not in known]
    if unknown:
        shown = ", ".join(known[1:11]) + (", ..." if len(known) > 11 else "")
        are = "is" if len(unknown) == 1 else "are"
        raise ConfigError(
            f"--categories: this network was trained for {len(known) - 1} categories, and "
            f"{with_nearest(unknown, known[1:])} {are} not among them: {shown}. Train one for these names, or use a "
            "ZUTIS segmenter, which takes any names."
        )
    return names
