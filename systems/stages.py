"""Stages that several recipes share, driven by settings: names, benchmark, image archive, pseudo-masks, run folder.

A recipe calls them in the order of its paper; the work itself is done in the packages below.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from datasets.base import Benchmark
from datasets.build import build_benchmark
from datasets.coco import annotated_names
from datasets.metadata import BACKGROUND, benchmark_table
from networks.checkpoints import read_state_dict
from networks.selfmask import SelfMask, selfmask_from_state_dict
from pseudo_labels.bilateral_solver import SolverSettings
from pseudo_labels.mask_predictors import SaliencyPredictor
from pseudo_labels.mask_stage import StageReport, make_pseudo_masks
from pseudo_labels.mask_stores import ExpertMaskStore, MaskStore
from pseudo_labels.store import read_mask
from retrieval.archive_file import read_archive
from retrieval.prompts import load_templates
from training.describe import describe_training
from training.loop_settings import LoopSettings
from training.run_folder import RunFolder
from utils.device import select_device
from utils.distributed import all_gather_objects
from utils.download import fetch, sha256_of
from utils.errors import ConfigError, DataError
from utils.log import get_logger
from utils.settings import RecipeSettings, RetrievalSettings, SelfMaskSettings

if TYPE_CHECKING:
    from datasets.index_dataset import IndexDataset
    from networks.clip import ClipModel
    from training.samplers import MapDataset

logger = get_logger(__name__)
Archive = dict[str, list[Path]]


def category_names(settings: RecipeSettings) -> list[str]:
    """Names of the run's categories in label order, background first.

    They are the benchmark's own unless `categories` lists others; background is put in front where it is left out.

    Raises:
        ConfigError: if the list names categories that a fixed benchmark does not have, or misses some.
    """
    table, benchmark = None, settings.base_dataset
    if benchmark is not None:
        table = list(benchmark_table(benchmark, settings.num_categories).names)
    if settings.categories is None:
        return _annotated_names(settings) or table or []
    names = [name for name in settings.categories if name != BACKGROUND]
    names = [BACKGROUND, *names]
    # COCO's layout carries its names in the annotation file, so a folder in that layout may have its own categories.
    if table is not None and benchmark != "coco2017" and names != table:
        raise ConfigError(
            f"categories: the {len(names)} names differ from the {len(table)} of the benchmark {benchmark} "
            f"({_difference(names, table)}). Leave 'categories' out to use the benchmark's own, in its order."
        )
    return names


def check_ignore_index(settings: RetrievalSettings, names: Sequence[str]) -> None:
    """Refuse an `ignore_index` that is a label of the training, where the settings alone did not tell the labels.

    Args:
        settings: of the run.
        names: of its labels, in order.

    Raises:
        ConfigError: says which name would not be learnt.
    """
    if clash := settings.ignore_index_clash(names):
        raise ConfigError(f"ignore_index: {clash}.")


def _annotated_names(settings: RecipeSettings) -> list[str] | None:
    """Names that a folder in COCO's layout brings along in place of COCO's own; None for COCO and all others."""
    if settings.base_dataset != "coco2017" or settings.benchmark_dir is None:
        return None
    names = annotated_names(settings.benchmark_dir, settings.split)
    if names is not None:
        logger.info("categories: the %d names of the annotation file, which are not COCO's", len(names) - 1)
    return names


def open_benchmark(
    settings: RecipeSettings, names: Sequence[str], *, category: str | None = None, with_instances: bool = True
) -> Benchmark:
    """The benchmark that the settings name, checked but for its pixels.

    Args:
        settings: which, and where it is.
        names: categories of the run, background first.
        category: the one that is scored alone, for benchmarks that do so.
        with_instances: whether instance annotations are read, where there are any.
    """
    own = list(benchmark_table(settings.base_dataset, settings.num_categories).names)
    return build_benchmark(
        settings.dataset_name,
        settings.benchmark_dir,
        settings.split,
        settings.num_categories,
        category=category,
        with_instances=with_instances,
        categories=None if list(names) == own else list(names),
        cache_dir=settings.output_dir,
    )


def model_identity(name_or_path: str) -> str:
    """A name that embeddings are marked with: a file's own name and digest (it may move), any other name as it is."""
    path = Path(name_or_path)
    if not path.is_file():
        return name_or_path
    stat = path.stat()
    return f"{path.name} ({_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)})"


@lru_cache
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    """Digest of a file, made once as long as it does not change: CLIPs have a gigabyte."""
    return sha256_of(path)[:16]


def archive_path(settings: RetrievalSettings, run: RunFolder) -> Path:
    """The retrieval file: the one that the settings name, else one in the run folder."""
    return settings.archive_path or run.path / "category_to_p_images.json"


def preview_archive(settings: RetrievalSettings, names: Sequence[str], run: RunFolder) -> Archive | None:
    """The image archive if retrieval is done already, checked; None if it is not."""
    path = archive_path(settings, run)
    if not path.is_file():
        return None
    return read_archive(path, categories=names, num_images=settings.num_images, path_map=settings.path_map)


def describe_index(settings: RetrievalSettings, run: RunFolder) -> None:
    """For `--dry-run`: count the pictures that retrieval embeds, as far as there is no image archive yet.

    Raises:
        DataError: a folder without a picture.
    """
    from retrieval.archive import folders_to_embed
    from retrieval.sources import list_sources

    path = archive_path(settings, run)
    if path.is_file():
        return
    for folder in folders_to_embed(settings.index_dirs, settings.embedding_paths, path):
        try:
            found = list_sources([folder])
        except DataError as error:
            raise DataError(f"dir_train_dataset: {error}") from error
        logger.info("index: %d pictures to retrieve from in %s", len(found.pictures), folder)


def build_archive(settings: RetrievalSettings, names: Sequence[str], run: RunFolder) -> Archive:
    """Retrieve pictures for every category, or read the file that an earlier retrieval (or the release) left.

    Args:
        settings: index folders, embeddings, archive file, CLIP, prompts.
        names: categories, background first.
        run: where the file goes if the settings name none.
    """
    from networks.clip import load_clip  # takes seconds: not for what needs no retrieval
    from retrieval.archive import retrieve_archive

    device = select_device(settings.device)

    def clip() -> ClipModel:
        return load_clip(settings.retrieval_clip, device=device, half=device.type == "cuda")

    archive = retrieve_archive(
        names,
        index_dirs=settings.index_dirs,
        embedding_paths=settings.embedding_paths,
        clip=clip,
        model_name=model_identity(settings.retrieval_clip),
        num_images=settings.num_images,
        archive_path=archive_path(settings, run),
        templates=load_templates(settings.prompts),
        device=device,
        precision=settings.precision,
        batch_size=settings.embedding.batch_size,
        num_workers=settings.embedding.num_workers,
        strict=not settings.embedding.skip_bad,
        extend=settings.embedding.extend,
        path_map=settings.path_map,
        # A file that the settings name may come from elsewhere, and pictures may have moved.
        same_index=settings.archive_path is None and not settings.path_map,
    )
    num_different = len({path for paths in archive.values() for path in paths})
    num_listed = sum(map(len, archive.values()))
    logger.info("image archive: %d categories, %d images (%d different)", len(archive), num_listed, num_different)
    return archive


def build_pseudo_masks(settings: RecipeSettings, archive: Archive, run: RunFolder) -> tuple[Archive, MaskStore]:
    """Make the pseudo-masks that are missing, and leave out the images that cannot have one.

    Returns:
        The archive without refused images, and the store of the masks.

    Raises:
        DataError: if a category loses all its images.
    """
    store = mask_store(settings)
    images = list(dict.fromkeys(path for paths in archive.values() for path in paths))
    # Together, because the first rank to find none missing would leave the others waiting for it.
    if all(all_gather_objects(all(store.path(path).is_file() for path in images))):
        logger.info("pseudo-masks: all %d exist", len(images))
        return archive, store
    report = fill_store(settings, images, store, run)
    return without_refused(archive, {refusal.image_path for refusal in report.refused}, run), store


def mask_store(settings: RecipeSettings) -> MaskStore:
    """Where SelfMask's masks lie."""
    return MaskStore(tuple(settings.index_dirs), settings.pseudo_mask_dir)


def without_refused(archive: Archive, refused: Collection[Path], run: RunFolder) -> Archive:
    """The archive without images that could not be read; DataError if a category loses all of its images."""
    kept = {name: [path for path in paths if path not in refused] for name, paths in archive.items()}
    lost = [name for name, paths in kept.items() if not paths]
    if lost:
        raise DataError(
            f"none of the images retrieved for {', '.join(map(repr, lost))} can be read, see "
            f"{run.path / 'refused_images.txt'}. Replace these files, or retrieve from other images."
        )
    return kept


def fill_store(
    settings: RecipeSettings, images: Sequence[Path], store: MaskStore, run: RunFolder | None = None
) -> StageReport:
    """Make the masks that a store lacks; refusals and a preview go to the run folder, if there is one."""
    return make_pseudo_masks(
        images,
        [store.path(path) for path in images],
        SaliencyPredictor(load_selfmask(settings.selfmask_weights)),
        shorter_side=settings.selfmask_shorter_side,
        use_solver=settings.solver is not None,
        solver=None if settings.solver is None else SolverSettings(**settings.solver.model_dump()),
        batch_size=settings.saliency.batch_size,
        num_workers=settings.saliency.num_workers,
        device=select_device(settings.device),
        precision=settings.precision,
        refused_path=None if run is None else run.path / "refused_images.txt",
        preview_path=None if run is None else run.pictures_dir / "pseudo_masks.png",
    )


def load_selfmask(weights: Path | None) -> SelfMask:
    """The saliency network, from a file or (None) the published weights, downloaded once."""
    path = weights or fetch("selfmask_nq20.pt")
    return selfmask_from_state_dict(read_state_dict(path), source=str(path))


def training_samples(
    settings: RecipeSettings, names: Sequence[str], archive: Archive, masks: MaskStore | ExpertMaskStore
) -> IndexDataset:
    """Copy-paste samples of the retrieved pictures."""
    from datasets.index_dataset import IndexDataset
    from datasets.photometric import PhotometricSettings

    return IndexDataset(
        archive,
        categories=list(names[1:]),
        mask_path=masks.path,
        read_mask=read_mask,
        image_size=settings.train_image_size,
        scale_range=settings.scale_range,
        ignore_index=settings.ignore_index,
        random_duplicate=settings.random_duplicate,
        max_num_objects=settings.max_objects,
        photometric=PhotometricSettings(**settings.photometric.model_dump()),
        label_rule=settings.label_rule,
        fast_decode=settings.fast_decode,
        seed=settings.seed,
    )


def describe_samples(settings: RetrievalSettings, network: nn.Module, samples: MapDataset) -> None:
    """Log the size of network, batches and training: the last part of `--dry-run`."""
    from datasets.batch import collate_samples

    for name, text in describe_training(network, samples, collate_samples, loop_settings(settings)).items():
        logger.info("%s: %s", name, text)


def loop_settings(settings: RetrievalSettings | SelfMaskSettings) -> LoopSettings:
    """The part of the settings that the training loop reads."""
    return LoopSettings(
        num_iterations=settings.num_iterations,
        batch_size=settings.train_loader.batch_size,
        log_interval=settings.log_interval,
        eval_interval=settings.eval_interval,
        checkpoint_interval=settings.checkpoint_interval,
        accumulate_steps=settings.accumulate_steps,
        max_gradient_norm=settings.max_gradient_norm,
        precision=settings.precision,
        device=settings.device,
        num_workers=settings.train_loader.num_workers,
        seed=settings.seed,
        compile=settings.compile,
        channels_last=settings.channels_last,
        pin_memory=settings.train_loader.pin_memory,
    )


def _difference(names: Sequence[str], table: Sequence[str]) -> str:
    extra, missing = [n for n in names if n not in table], [n for n in table if n not in names]
    if not extra and not missing:
        first = next(i for i, (a, b) in enumerate(zip(names, table, strict=True)) if a != b)
        return f"same names in another order, first at {first}: {names[first]!r} instead of {table[first]!r}"
    parts = [
        f"{what}: {', '.join(map(repr, some[:5]))}" for what, some in (("unknown", extra), ("missing", missing)) if some
    ]
    return "; ".join(parts)
