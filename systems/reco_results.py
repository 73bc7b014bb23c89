"""Scores of several methods in one run folder: each keeps its own when another one is scored there.

`results.json` is of the method that was scored last; the others' are beside it, under the method's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.run_folder import RunFolder
from utils.distributed import on_main
from utils.files import atomic_write, read_json

RESULTS, LABEL_RESULTS = "results.json", "results_pseudo_labels.json"
DENSE_CLIP, RECO, RECO_PLUS = "dense CLIP", "ReCo", "ReCo+"
_KEPT = {
    DENSE_CLIP: "results_dense_clip.json",
    RECO: "results_reco.json",
    RECO_PLUS: "results_reco_plus.json",
}


def keep_results(run: RunFolder, method: str) -> None:
    """Before a method is scored in a folder: keep the scores that another one left there."""

    def keep() -> None:
        path = run.path / RESULTS
        if path.is_file() and (other := method_of(read_json(path))) != method:
            with atomic_write(run.path / _KEPT[other]) as file:
                file.write(path.read_bytes())

    on_main(keep)


def results_files(run: RunFolder) -> dict[str, Path]:
    """Method -> file of its scores, of those that were scored in the folder."""
    last = run.path / RESULTS
    files = {method: run.path / name for method, name in _KEPT.items()}
    if last.is_file():
        files[method_of(read_json(last))] = last
    return {method: path for method, path in files.items() if path.is_file()}


def method_of(results: Mapping[str, Any]) -> str:
    """The method that the document of a results file is of."""
    if "iteration" in results:  # only what is trained has one
        return RECO_PLUS
    return DENSE_CLIP if results["protocol"]["extra"].get("references") == "none" else RECO
