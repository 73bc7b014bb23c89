"""Dense CLIP alone, the baseline of ReCo: names in place of references, nothing retrieved and nothing trained.

Every place of a picture is compared with the averaged prompts of each name (`networks.reco.DenseNames`), and labels are
scored with and without the CRF as ReCo's are. The publication gives this baseline's scores and little more; where it is
silent, what ReCo does with dense CLIP is done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from evaluation.evaluate import EvaluationResult
from networks.reco import DenseNames
from systems import reco_places, reco_stages, scoring
from systems.reco_references import RecoNetworks
from systems.reco_results import DENSE_CLIP, keep_results
from training.launch import evaluation_device
from training.run_folder import RunFolder
from utils.distributed import is_main
from utils.log import get_logger
from utils.settings import RecoSettings

logger = get_logger(__name__)


def score_benchmark(settings: RecoSettings, run: RunFolder) -> EvaluationResult:
    """Score dense CLIP on the benchmark of the settings; scores, protocol, pictures and report go to the run folder.

    Raises:
        UserError: whatever is wrong with settings, files or pictures.
    """
    names = reco_places.category_names(settings)
    benchmark = reco_stages.open_split(settings, settings.split, with_labels=True)
    device = evaluation_device(settings.device, settings.precision)
    segmenter, refiner = reco_stages.segment_with(settings, make_network(settings, names, device), device)

    def score(visit: scoring.Visit) -> EvaluationResult:
        return scoring.score(
            settings,
            segmenter,
            benchmark,
            device=device,
            protocol=describe_method(settings),
            refiner=refiner,
            visit=visit,
        )

    with run.locked():
        keep_results(run, DENSE_CLIP)
        result = scoring.evaluate_weights(settings, benchmark, run, score)
        if is_main():
            from systems.reco_report import write_reco_report

            title = f"Dense CLIP: {settings.dataset_name}"
            write_reco_report(
                run, settings, title=title, subtitle=f"{len(names)} categories, {settings.dense_clip_arch}"
            )
    return result


def make_network(settings: RecoSettings, names: Sequence[str], device: torch.device) -> DenseNames:
    """Dense CLIP with names to choose between, in evaluation mode, on the device."""
    networks = RecoNetworks(settings, device)
    network = DenseNames(networks.tower, networks.text(names), temperature=settings.temperature)
    return network.to(device).eval()


def describe_method(settings: RecoSettings) -> dict[str, Any]:
    """What the predictions depend on, as entries of a protocol."""
    used = {"precision": settings.precision, "dense CLIP": settings.dense_clip_arch, "references": "none"}
    return {**reco_stages.describe_method(settings), "extra": used}
