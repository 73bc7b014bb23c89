"""What ReCo's "weights" are: reference embeddings (ReCo), a DeepLabv3+ (ReCo+), or a run folder with one of them."""

from __future__ import annotations

from pathlib import Path

from pseudo_labels.references import holds_references
from systems import reco_places
from training.run_folder import RunFolder
from utils.distributed import on_main
from utils.errors import WeightsError
from utils.files import atomic_write
from utils.settings import RecoSettings

STEM, GIVEN_STEM = "references", "given_references"  # computed by the run, and of a file that its settings name
ENDINGS = (".safetensors", ".pkl")


def keep_references(settings: RecoSettings, run: RunFolder) -> None:
    """Copy the references that a run uses into its folder, so that the folder alone can segment pictures."""
    source = settings.reference_path or reco_places.reference_cache(settings)
    stem = STEM if settings.reference_path is None else GIVEN_STEM
    target = run.path / f"{stem}{source.suffix}"

    def copy() -> None:
        data = source.read_bytes()
        if not target.is_file() or target.read_bytes() != data:
            with atomic_write(target) as file:
                file.write(data)
        for ending in ENDINGS:  # of an earlier start; segmenting pictures would take it
            if (run.path / f"{GIVEN_STEM}{ending}") != target:
                (run.path / f"{GIVEN_STEM}{ending}").unlink(missing_ok=True)

    on_main(copy)


def references_in(folder: Path) -> Path | None:
    """The file of reference embeddings of a run folder; None if it has none."""
    files = [folder / f"{stem}{ending}" for stem in (GIVEN_STEM, STEM) for ending in ENDINGS]
    return next((path for path in files if path.is_file()), None)


def reference_file(weights: Path, *, trains: bool) -> Path | None:
    """The file of reference embeddings that weights are or hold; None if they are those of ReCo+.

    Args:
        weights: a file or a run folder.
        trains: whether weights of ReCo+ are wanted.

    Raises:
        WeightsError: they are those of the other method.
    """
    if weights.is_dir():
        if trains:
            return None
        found = references_in(weights)
        if found is None:
            raise WeightsError(
                f"{weights}: no reference embeddings in this folder (expected {STEM}.safetensors). Give the folder of "
                "a ReCo run, or a file of references; for a run of ReCo+ use its own config (method: reco_plus)."
            )
        return found
    if holds_references(weights):
        if trains:
            raise WeightsError(
                f"{weights}: these are reference embeddings, but ReCo+ is evaluated with weights of its network. Use "
                "the config of ReCo, or set method=reco to use the references; or give the network's weights."
            )
        return weights
    if not trains:
        raise WeightsError(
            f"{weights}: expected reference embeddings (.pkl, .safetensors). If these are weights of ReCo+, use its "
            "own config (method: reco_plus)."
        )
    return None
