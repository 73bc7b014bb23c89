"""Metrics of a run: one JSON object per line in `metrics.jsonl`, and the same numbers as TensorBoard events.

A resumed run first removes the lines after its checkpoint, so that two histories never mix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson
from torch.utils.tensorboard import SummaryWriter

from training.run_folder import RunFolder
from utils.errors import UserError
from utils.files import atomic_write


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read the lines of a `metrics.jsonl`; a last line cut off by a kill is left out, a missing file has no lines.

    Raises:
        UserError: if any other line is not JSON; names the file and the line.
    """
    path = Path(path)
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is empty or half a line
        if not line.strip():
            continue
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise UserError(f"{path}: line {number} is not a JSON object ({error.msg}). Remove or mend it.") from error
    return rows


class MetricLog:
    """Writer of one run's metrics; use it on rank zero only, as a context manager.

    Args:
        run: the run folder.
        iteration: number of iterations already done; later lines of an earlier, interrupted run are removed.
    """

    def __init__(self, run: RunFolder, iteration: int = 0) -> None:
        self.run, self.iteration = run, iteration

    def __enter__(self) -> MetricLog:
        path = self.run.metrics_path
        kept = [row for row in read_metrics(path) if row.get("iteration", 0) <= self.iteration and self.iteration > 0]
        with atomic_write(path) as file:
            file.writelines(orjson.dumps(row) + b"\n" for row in kept)
        self._file = open(path, "ab", buffering=0)  # one unbuffered write per line: a kill loses at most that line
        self._events = SummaryWriter(str(self.run.tensorboard_dir), purge_step=self.iteration + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._events.close()

    def write(self, kind: str, iteration: int, values: Mapping[str, float], **facts: Any) -> None:
        """Add one line.

        Args:
            kind: "train" or "eval"; the prefix of the TensorBoard names.
            iteration: iterations done.
            values: numbers; shown in TensorBoard too. NaN and infinity become null in JSON.
            facts: further entries of the line that are not plotted.

        Raises:
            UserError: if the line cannot be written (disk full).
        """
        row = {"kind": kind, "iteration": iteration, **facts, **values}
        try:
            self._file.write(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS) + b"\n")
        except OSError as error:
            raise UserError(
                f"{self.run.metrics_path}: cannot be written ({error.strerror}). Free some space and run the same "
                f"command again with --resume auto: it goes on from the last checkpoint."
            ) from error
        for name, value in values.items():
            self._events.add_scalar(f"{kind}/{name}", value, iteration)
        self._events.flush()
