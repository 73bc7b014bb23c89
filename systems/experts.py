"""Category experts of NamedMask: networks with one question each, "where is the object?", on pictures of their name.

The steps in the order of the paper (NamedMask, section 3.3): groups of categories (`expert_groups`) -> one segmenter of
object and background per group, trained on SelfMask's masks of its pictures (`train_experts`) -> the experts' masks of
these pictures (`write_expert_masks`). Several experts are trained side by side: `systems/expert_workers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from datasets.base import Benchmark
from datasets.metadata import BACKGROUND
from datasets.single_category import CategoryNotShownError
from evaluation.evaluate import EvaluationResult
from networks.deeplab import DeepLabV3Plus
from pseudo_labels.mask_predictors import ExpertPredictor
from pseudo_labels.mask_stage import StageReport, make_pseudo_masks
from pseudo_labels.mask_stores import ExpertMaskStore, MaskStore
from systems import scoring, stages
from systems.deeplab import OBJECT, SemanticSegmenter, read_deeplab, segmenter_name, train_deeplab
from training.run_folder import RunFolder
from utils.device import select_device
from utils.errors import ConfigError, WeightsError
from utils.files import read_json, write_json
from utils.log import get_logger
from utils.naming import CATEGORY_SUFFIX, category_file_name, category_file_names, namedmask_experiment_name
from utils.settings import NamedMaskSettings, yaml_values

logger = get_logger(__name__)
DECISIVE = ("train_image_size", "scale_range", "photometric", "fast_decode", "n_images", "segmenter_name", "optimiser")


@dataclass(frozen=True)
class ExpertGroup:
    """The categories that one expert is trained for: one, or a cluster of them.

    Attributes:
        categories: their names.
        cluster_id: number of the cluster; None for an expert of a single category.
        file_name: of a single category whose plain one another category has.
    """

    categories: tuple[str, ...]
    cluster_id: int | None = None
    file_name: str | None = None

    @property
    def name(self) -> str:
        """For people: the category, or the number of the cluster with its first categories."""
        if self.cluster_id is None:
            return self.categories[0]
        more = ", ..." if len(self.categories) > 3 else ""
        return f"cluster {self.cluster_id} ({', '.join(self.categories[:3])}{more})"

    def images(self, archive: stages.Archive) -> list[Path]:
        """All pictures of the group's categories, each once."""
        return list(dict.fromkeys(path for name in self.categories for path in archive[name]))


# ---- groups and places ----------------------------------------------------------------------------------------------


def expert_groups(settings: NamedMaskSettings, names: Sequence[str], run: RunFolder) -> list[ExpertGroup]:
    """The experts of a run: one per category, or one per cluster of categories with similar names.

    Args:
        settings: `experts.n_clusters`, and `single_category` for some categories only.
        names: all categories of the run, background first.
        run: where the clusters are written down.

    Raises:
        ConfigError: categories or numbers of clusters that there cannot be.
    """
    categories = list(names[1:])
    in_file_names = {file: name for name, file in category_file_names(categories).items()}  # tv_monitor: tv/monitor
    asked = [name if name in categories else in_file_names.get(name, name) for name in settings.single_category or ()]
    unknown = [name for name in asked if name not in categories]
    if unknown:
        shown = ", ".join(map(repr, categories[:10])) + (", ..." if len(categories) > 10 else "")
        raise ConfigError(
            f"single_category: {', '.join(map(repr, unknown))} not among the {len(categories)} categories: {shown}."
        )
    chosen = asked or categories
    if settings.experts.num_clusters is None:
        files = category_file_names(categories)
        own = {name: None if file == category_file_name(name) else file for name, file in files.items()}
        return [ExpertGroup((name,), file_name=own[name]) for name in chosen]
    groups = _clusters(settings, categories, run)
    return [group for group in groups if set(group.categories) & set(chosen)]


def _clusters(settings: NamedMaskSettings, categories: list[str], run: RunFolder) -> list[ExpertGroup]:
    """Clusters of CLIP's text embeddings, kept in the run folder."""
    count, path = settings.experts.num_clusters, run.path / "expert_clusters.json"
    if count > len(categories):
        raise ConfigError(f"experts.n_clusters: received {count}, but there are only {len(categories)} categories.")
    asked = {"categories": categories, "n_clusters": count, "clip": settings.retrieval_clip, "seed": settings.seed}
    stored = read_json(path) if path.is_file() else {}
    if {key: stored.get(key) for key in asked} != asked:
        stored = {**asked, "clusters": cluster_names(settings, categories)}
        write_json(path, stored)
    groups = [ExpertGroup(tuple(members), number) for number, members in enumerate(stored["clusters"])]
    logger.info("%d clusters of categories: %s", len(groups), "; ".join(group.name for group in groups))
    return groups


def cluster_names(settings: NamedMaskSettings, categories: Sequence[str]) -> list[list[str]]:
    """Group names by k-means of their unit text embeddings; groups in the order of their first name."""
    from networks.clip import load_clip
    from networks.text import encode_prompt_ensemble
    from pseudo_labels.kmeans import cluster_rows
    from retrieval.prompts import load_templates

    device = select_device(settings.device)
    clip = load_clip(settings.retrieval_clip, device=device, half=device.type == "cuda", towers=("text",))
    embeddings = encode_prompt_ensemble(clip, list(categories), load_templates(settings.prompts)).float().cpu()
    embeddings = nn.functional.normalize(embeddings, dim=1).numpy()
    labels = cluster_rows(embeddings, settings.experts.num_clusters, seed=settings.seed)
    members: dict[int, list[str]] = {}
    for name, label in zip(categories, labels.tolist(), strict=True):
        members.setdefault(label, []).append(name)
    return list(members.values())


def expert_path(settings: NamedMaskSettings, group: ExpertGroup, run: RunFolder) -> Path:
    """Run folder of an expert.

    `<dir_ckpt>/<benchmark>_category/train/<experiment>` as published, clusters one level below; for categories of your
    own below the run that they belong to, since another run's are others.
    """
    category = _file_name(group) if group.cluster_id is None else None
    experiment = namedmask_experiment_name(
        segmenter_name=settings.experts.segmenter or settings.segmenter,
        num_images=settings.num_images,
        scale_range=settings.scale_range,
        category=category,
        cluster_id=group.cluster_id,
        suffix=settings.suffix or "",
        seed=settings.seed,
    )
    if settings.base_dataset is None:
        folder = run.path / "experts"
    else:
        name = scoring.benchmark_folder(f"{settings.base_dataset}{CATEGORY_SUFFIX}", settings.num_categories)
        folder = settings.output_dir / name / "train"
    if group.cluster_id is not None:
        folder = folder / settings.experts.clustering_type / f"n_experts_{settings.experts.num_clusters}"
    return folder / experiment


def find_weights(
    settings: NamedMaskSettings, groups: Sequence[ExpertGroup], run: RunFolder
) -> dict[ExpertGroup, Path | None]:
    """Weights of every expert, None where it has to be trained.

    Raises:
        WeightsError: with `experts.dir_weights` set, if it lacks some of them; all are named.
    """
    folder = settings.experts.weights_dir
    if folder is None:
        paths = {group: RunFolder(expert_path(settings, group, run)).final_model_path for group in groups}
        return {group: path if path.is_file() else None for group, path in paths.items()}
    found = {group: folder / f"expert_{_file_name(group)}.pt" for group in groups}
    missing = [path.name for path in found.values() if not path.is_file()]
    if missing:
        raise WeightsError(
            f"experts.dir_weights: {folder} lacks the weights of {len(missing)} of {len(groups)} experts: "
            f"{', '.join(missing)}. Put them there, or leave experts.dir_weights out to train experts."
        )
    return dict(found)


def _file_name(group: ExpertGroup) -> str:
    if group.cluster_id is not None:
        return f"cid{group.cluster_id}"
    return group.file_name or category_file_name(group.categories[0])


def expert_mask_store(settings: NamedMaskSettings, archive: stages.Archive, run: RunFolder) -> ExpertMaskStore:
    """Where the experts' masks of an image archive lie."""
    benchmark, mask_dir = settings.base_dataset, settings.experts.mask_dir
    if benchmark == "imagenet-s":
        benchmark = f"imagenet_s{settings.num_categories}"
    if benchmark is None and mask_dir is None:
        mask_dir = run.path / "expert_masks"
    if settings.experts.num_clusters is not None:
        benchmark = f"{benchmark or 'custom'}_n_experts_{settings.experts.num_clusters}"
    return ExpertMaskStore.of_archive(archive, settings.index_dirs, mask_dir, benchmark=benchmark or "custom")


def missing_masks(
    groups: Sequence[ExpertGroup], archive: stages.Archive, store: ExpertMaskStore
) -> dict[ExpertGroup, list[tuple[Path, Path]]]:
    """Pictures without a mask of their expert, and the file where it belongs; groups that lack none are left out."""
    lacking = {}
    for group in groups:
        pairs = [(path, name) for name in group.categories for path in archive[name]]
        missing = [(path, store.own_path(path, name)) for path, name in pairs if not store.path(path, name).is_file()]
        if missing:
            lacking[group] = missing
    return lacking


# ---- training -------------------------------------------------------------------------------------------------------


def train_expert(
    settings: NamedMaskSettings, group: ExpertGroup, archive: stages.Archive, masks: MaskStore, path: Path
) -> RunFolder:
    """Train one expert, in this process alone; goes on where it was cut off.

    Args:
        settings: of the run that needs the expert.
        group: its categories.
        archive: category -> pictures.
        masks: SelfMask's masks of these pictures.
        path: its run folder.

    Source: NamedMask, section 3.3 (spec 1.2): labels 0 and 1, one picture per sample, no negatives.
    """
    from datasets.batch import collate_samples
    from training.launch import make_fabric

    own = expert_settings(settings)
    run = RunFolder(path)
    fabric = make_fabric(own.device, own.precision)
    names = [BACKGROUND, OBJECT]
    samples = stages.training_samples(own, names, {OBJECT: group.images(archive)}, masks)
    benchmark = _expert_benchmark(settings, group)

    def score(network: DeepLabV3Plus, visit: scoring.Visit) -> EvaluationResult:
        return score_expert(own, network, benchmark, fabric.device, visit)

    with run.locked():
        train_deeplab(
            own,
            num_classes=2,
            ignore_index=own.ignore_index,
            dataset=samples,
            collate=collate_samples,
            loop=stages.loop_settings(own),
            run=run,
            fabric=fabric,
            resume="auto",
            score=None if benchmark is None else scoring.TrainingEvaluation(score, benchmark, run),
            selecting_score=scoring.selecting_score(benchmark),
            config=yaml_values(own),
            decisive={"categories": list(group.categories), **{key: yaml_values(own)[key] for key in DECISIVE}},
            category_names=[BACKGROUND, *group.categories],
        )
        # The optimiser's state is three times the weights: not worth keeping for every expert.
        run.checkpoint_path.unlink(missing_ok=True)
    return run


def expert_settings(settings: NamedMaskSettings) -> NamedMaskSettings:
    """Settings of an expert's own training, made of those of the run that needs it."""
    options = settings.experts
    return settings.model_copy(
        update={
            "segmenter": options.segmenter or settings.segmenter,
            "num_iterations": options.num_iterations,
            "eval_interval": options.eval_interval or settings.eval_interval,
            "train_image_size": options.train_image_size or settings.train_image_size,
            "train_loader": options.train_loader,
            "ignore_index": 255,
            "max_objects": 1,
            "random_duplicate": False,
            "use_expert_masks": False,
            "stop_after": "training",
        }
    )


def _expert_benchmark(settings: NamedMaskSettings, group: ExpertGroup) -> Benchmark | None:
    """What an expert is scored on while it is trained: its category alone, where the settings name such a benchmark."""
    if not (settings.scores_single_categories and settings.evaluates_in_training) or group.cluster_id is not None:
        return None
    names = stages.category_names(settings)
    try:
        return stages.open_benchmark(settings, names, category=group.categories[0], with_instances=False)
    except CategoryNotShownError as error:
        logger.warning("%s The expert is trained without scores.", error)
        return None


def score_expert(
    settings: NamedMaskSettings,
    network: DeepLabV3Plus,
    benchmark: Benchmark,
    device: torch.device,
    visit: scoring.Visit,
) -> EvaluationResult:
    """Score a network of two classes on one category."""
    segmenter = SemanticSegmenter(network, device, settings.precision)
    return scoring.score(
        settings,
        segmenter,
        benchmark,
        device=device,
        protocol={
            "prompts": "none",
            "extra": {"precision": settings.precision, "segmenter": segmenter_name(network)},
        },
        visit=visit,
    )


# ---- masks ----------------------------------------------------------------------------------------------------------


def write_expert_masks(
    settings: NamedMaskSettings,
    weights: Mapping[ExpertGroup, Path],
    missing: Mapping[ExpertGroup, Sequence[tuple[Path, Path]]],
    run: RunFolder,
) -> list[StageReport]:
    """Make the masks that are missing, expert by expert; all ranks share the pictures of each.

    Args:
        settings: batches, device, precision.
        weights: file of every expert.
        missing: see `missing_masks`.
        run: where refused pictures are listed.

    Returns:
        One report per expert; pictures that cannot be read have no mask.
    """
    reports = []
    for number, (group, pairs) in enumerate(missing.items(), start=1):
        logger.info("expert %d of %d: %d masks of %s", number, len(missing), len(pairs), group.name)
        images, paths = zip(*pairs, strict=True)
        report = make_pseudo_masks(
            images,
            paths,
            ExpertPredictor(read_deeplab(weights[group], 2).network),
            shorter_side=None,
            use_solver=False,
            batch_size=settings.experts.masks.batch_size,
            num_workers=settings.experts.masks.num_workers,
            num_finishers=0,  # encoding a mask is quick: done while the device works on the next batch
            device=select_device(settings.device),
            precision=settings.precision,
            refused_path=run.path / "refused_by_experts" / f"{_file_name(group)}.txt",
        )
        reports.append(report)
    return reports
