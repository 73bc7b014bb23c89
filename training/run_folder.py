"""The folder of one run: where its settings, weights, metrics and pictures lie. Layout as in the README."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.distributed import all_gather_objects, is_main
from utils.errors import UserError
from utils.files import RunLock, write_text

_HELD: set[Path] = set()  # folders that this process holds


@dataclass(frozen=True)
class RunFolder:
    """Names of the files of one run below `path`; nothing is made until something is written.

    Args:
        path: the folder.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config_path(self) -> Path:
        """Resolved settings of the run (YAML)."""
        return self.path / "config.yaml"

    @property
    def checkpoint_path(self) -> Path:
        """Everything needed to go on with the run."""
        return self.path / "checkpoint.pt"

    @property
    def best_path(self) -> Path:
        """Bare state dict of the best evaluation so far."""
        return self.path / "best.pt"

    @property
    def final_model_path(self) -> Path:
        """Bare state dict after the last iteration."""
        return self.path / "final_model.pt"

    @property
    def metrics_path(self) -> Path:
        """One JSON object per line: losses and scores with their iteration."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def pictures_dir(self) -> Path:
        """Pictures of training samples and predictions."""
        return self.path / "pictures"

    @property
    def report_path(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved settings (rank zero only); values must be plain YAML values or have a text form."""
        if is_main():
            write_text(self.config_path, yaml.safe_dump(plain(config), sort_keys=True, allow_unicode=True))

    @contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Hold the folder for this run on all ranks; inside a hold of the same process, nothing is done.

        Raises:
            UserError: on every rank, if another living process holds it.
        """
        path = self.path.resolve()
        if path in _HELD:
            yield self
            return
        lock, problem = RunLock(self.path), None
        if is_main():
            try:
                lock.__enter__()
            except UserError as error:
                problem = str(error)
        problem = all_gather_objects(problem)[0]
        if problem is not None:
            raise UserError(problem)
        _HELD.add(path)
        try:
            yield self
        finally:
            _HELD.discard(path)
            if is_main():
                lock.__exit__(None, None, None)


def plain(value: Any) -> Any:
    """Copy settings into dicts, lists, strings and numbers, so that YAML, JSON and safe loading take them.

    Mappings become dicts with string keys, sequences and sets lists, everything unknown (paths, devices) its text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if value is None or type(value) in (bool, int, float, str):
        return value
    return str(value)
