"""The voting stage: pictures in, one pseudo-mask per picture out, as one JSON file ``{picture: run-length code}``.

The device computes features and eigenvectors; worker processes read ahead, cluster and vote. Every finished picture is
appended to a part file at once, so a killed run goes on where it stopped, with any number of processes.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from pseudo_labels import rle
from pseudo_labels.election import Ballot, VotingSettings, elect_mask
from pseudo_labels.features import FeatureNetwork
from pseudo_labels.finishing import end_with_parent
from pseudo_labels.mask_collection import MaskCollection
from pseudo_labels.spectral import spectral_embedding
from utils.distributed import all_gather_objects, is_main, shard
from utils.drawing import overlay, palette, panel
from utils.errors import UnreadableImageError
from utils.files import atomic_write
from utils.images import read_rgb
from utils.log import get_logger, progress

logger = get_logger(__name__)

_READERS = 2  # threads that decode pictures ahead; the device is never that fast
_PREVIEWED = 8  # masks in the preview
_AHEAD = 4  # pictures under way per worker
_WORTH_STARTING = 8  # pictures per worker below which starting processes takes longer than it saves


@dataclass(frozen=True)
class VotingReport:
    """What the stage came to, over all processes.

    Attributes:
        made: masks made now.
        skipped: masks that were there already.
        refused: picture name to the reason why it has no mask.
    """

    made: int
    skipped: int
    refused: dict[str, str]


def working_size(size: tuple[int, int], strides: Sequence[int], settings: VotingSettings) -> tuple[int, int]:
    """Size at which the feature networks see a picture.

    Args:
        size: (height, width) of the picture.
        strides: of the feature networks.
        settings: ``shorter_side`` sets the scale, ``max_locations`` limits it.

    Returns:
        (height, width), each at least 1.
    """
    scale = settings.shorter_side / min(size) if settings.shorter_side else 1.0
    if settings.max_locations is not None:
        cell = min(strides) / settings.upsampling
        scale = min(scale, (settings.max_locations * cell**2 / (size[0] * size[1])) ** 0.5)
    if scale == 1.0:
        return size
    return max(1, int(size[0] * scale)), max(1, int(size[1] * scale))


@torch.inference_mode()
def take_ballots(
    image: np.ndarray, networks: Sequence[FeatureNetwork], settings: VotingSettings, device: torch.device | str
) -> list[Ballot]:
    """Let every feature network describe one picture.

    Args:
        image: RGB, (H, W, 3), uint8.
        networks: on ``device``.
        settings: see `VotingSettings`.
        device: where features and eigenvectors are computed.

    Returns:
        One ballot per network.

    Source: SelfMask, section 3.1: features are enlarged bilinearly with align_corners=True.
    """
    pixels = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    ballots = []
    for network in networks:
        features = network(pixels)
        grid = (features.shape[2] * settings.upsampling, features.shape[3] * settings.upsampling)
        features = interpolate(features, size=grid, mode="bilinear", align_corners=True)[0]
        embedding = spectral_embedding(features, max(settings.num_clusters))
        ballots.append(Ballot(embedding, grid, network.stride / settings.upsampling))
    return ballots


def vote_pseudo_masks(
    image_paths: Mapping[str, Path],
    output_path: str | Path,
    networks: Sequence[FeatureNetwork],
    *,
    settings: VotingSettings | None = None,
    device: torch.device | str = "cpu",
    num_workers: int = 0,
    preview_path: str | Path | None = None,
) -> VotingReport:
    """Make the pseudo-masks of pictures that do not have one yet.

    Args:
        image_paths: name in the file (published: the base name) to path of every picture.
        output_path: the JSON file; grows by the missing masks if it exists.
        networks: feature networks, on ``device``, in the order of the candidates.
        settings: the published ones if None.
        device: where the networks run.
        num_workers: processes that cluster and vote; 0 does it in this one.
        preview_path: PNG with the first few masks drawn over their pictures, written as soon as these are there.

    Returns:
        Counts and refusals, the same on all ranks.

    Raises:
        DataError: if the file was made with other settings or networks, or is damaged.
        UserError: if the file cannot be written.
    """
    settings = settings or VotingSettings()
    fingerprint = {"networks": [network.name for network in networks], **asdict(settings)}
    collection = MaskCollection(output_path, fingerprint)
    done = collection.finished()
    todo = [name for name in image_paths if name not in done]
    logger.info("voting: %d pictures, %d masks are there already; %s", len(image_paths), len(done), output_path)
    mine = {name: image_paths[name] for name in shard(todo)}
    refused: dict[str, str] = {}
    preview = _Preview(preview_path if is_main() else None, min(_PREVIEWED, len(mine)))
    if len(mine) < _WORTH_STARTING * num_workers:
        num_workers = 0
    with ExitStack() as stack:
        readers = stack.enter_context(ThreadPoolExecutor(_READERS))
        voters = stack.enter_context(_worker_pool(num_workers)) if num_workers else None
        results = _elect_all(mine, networks, settings, device, readers, voters, num_workers)
        append = stack.enter_context(collection.part()) if mine else None
        for name, result in progress(results, total=len(mine), description="voting", unit="picture"):
            if isinstance(result, UnreadableImageError):
                refused[name] = str(result)
            else:
                append(name, result)
                preview.add(mine[name], result)
    preview.write()
    refused = {name: reason for part in all_gather_objects(refused) for name, reason in part.items()}
    collection.merge(order=list(image_paths), refused=refused)
    for name, reason in islice(refused.items(), 5):
        logger.warning("no mask for %s: %s", name, reason)
    report = VotingReport(len(todo) - len(refused), len(image_paths) - len(todo), refused)
    logger.info("voting: %d masks made, %d skipped, %d refused", report.made, report.skipped, len(refused))
    return report


class _Preview:
    """Draws the first few masks over their pictures, once."""

    def __init__(self, path: str | Path | None, wanted: int) -> None:
        self.path, self.wanted = path, wanted
        self.masks: list[tuple[Path, dict[str, Any]]] = []

    def add(self, image_path: Path, mask: dict[str, Any]) -> None:
        if self.path is not None and len(self.masks) < self.wanted:
            self.masks.append((image_path, mask))
            if len(self.masks) == self.wanted:
                self.write()

    def write(self) -> None:
        if self.path is None or not self.masks:
            return
        colours = palette(2)
        drawn = [overlay(read_rgb(path), rle.decode(mask), colours) for path, mask in self.masks]
        with atomic_write(self.path) as file:
            Image.fromarray(panel(drawn, height=240)).save(file, format="PNG")
        logger.info("preview of the first %d masks: %s", len(drawn), self.path)
        self.path = None


def _worker_pool(num_workers: int) -> ProcessPoolExecutor:
    # Fresh processes: a fork of a process with a GPU or running threads may hang.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=end_with_parent)


def _elect_all(
    paths: Mapping[str, Path],
    networks: Sequence[FeatureNetwork],
    settings: VotingSettings,
    device: torch.device | str,
    readers: Executor,
    voters: Executor | None,
    num_workers: int,
) -> Iterator[tuple[str, dict[str, Any] | UnreadableImageError]]:
    """Name and mask (or the reason why there is none) of every picture, in order, a few pictures under way."""
    strides = [network.stride for network in networks]
    under_way: deque[tuple[str, Future | UnreadableImageError | dict[str, Any]]] = deque()
    for name, picture in _read_ahead(paths, readers, strides, settings):
        if isinstance(picture, UnreadableImageError):
            under_way.append((name, picture))
        else:
            image, original_size = picture
            arguments = (_ballots_or_cpu(name, image, networks, settings, device), image.shape[:2], original_size)
            result = voters.submit(elect_mask, *arguments, settings) if voters else elect_mask(*arguments, settings)
            under_way.append((name, result))
        while under_way and (len(under_way) > _AHEAD * num_workers or _is_ready(under_way[0][1])):
            yield _settle(*under_way.popleft())
    while under_way:
        yield _settle(*under_way.popleft())


def _is_ready(result: object) -> bool:
    return not isinstance(result, Future) or result.done()


def _settle(name: str, result: Any) -> tuple[str, Any]:
    return name, result.result() if isinstance(result, Future) else result


def _read_ahead(
    paths: Mapping[str, Path], readers: Executor, strides: Sequence[int], settings: VotingSettings
) -> Iterator[tuple[str, tuple[np.ndarray, tuple[int, int]] | UnreadableImageError]]:
    """Name and (picture at working size, original size) of every picture, decoded a few pictures ahead."""
    names, pending = iter(paths), deque()
    for name in islice(names, 2 * _READERS):
        pending.append((name, readers.submit(_read, paths[name], strides, settings)))
    while pending:
        name, future = pending.popleft()
        yield name, future.result()
        for following in islice(names, 1):
            pending.append((following, readers.submit(_read, paths[following], strides, settings)))


def _read(
    path: Path, strides: Sequence[int], settings: VotingSettings
) -> tuple[np.ndarray, tuple[int, int]] | UnreadableImageError:
    try:
        image = read_rgb(path)
    except UnreadableImageError as error:
        return error
    size = image.shape[:2]
    height, width = working_size(size, strides, settings)
    if (height, width) != size:
        image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return image, size


def _ballots_or_cpu(
    name: str,
    image: np.ndarray,
    networks: Sequence[FeatureNetwork],
    settings: VotingSettings,
    device: torch.device | str,
) -> list[Ballot]:
    """`take_ballots`; a picture that does not fit into the GPU's memory is done on the CPU."""
    try:
        return take_ballots(image, networks, settings, device)
    except torch.OutOfMemoryError:
        logger.warning("%s (%d×%d) does not fit into the GPU's memory: computed on the CPU", name, *image.shape[:2])
    torch.cuda.empty_cache()
    ballots = take_ballots(image, [network.cpu() for network in networks], settings, "cpu")
    for network in networks:
        network.to(device)
    return ballots
