"""Reads parity cases and judges outputs against them.

A case is `<case>.json` (what is fed, what is expected, how exactly) beside `<case>.npz` (the arrays); README.md
describes both. `python compare.py CASES_DIR OUTPUTS_DIR` judges saved outputs, `OUTPUTS_DIR/<system>/<case>.npz`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.parity import fill

Array = np.ndarray
Check = dict[str, Any]
Measure = tuple[float, float, str]  # worst value found, value allowed, what is wrong
NUMBER_CLASS = {"f": "real", "b": "whole", "i": "whole", "u": "whole", "U": "text"}  # by numpy's dtype.kind


@dataclass(frozen=True)
class Case:
    """One parity case; array names keep their `in_` and `out_` prefixes."""

    path: Path
    system: str
    kind: str
    settings: dict[str, Any]
    inputs: dict[str, Array]
    expected: dict[str, Array]
    checks: dict[str, Check | None]
    weight_spec: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.system}/{self.path.stem}"

    def numbered(self, name: str) -> list[Array]:
        """The inputs `<name>0`, `<name>1`, ... as a list."""
        return [self.inputs[key] for key in (f"{name}{i}" for i in range(len(self.inputs))) if key in self.inputs]


class Row(NamedTuple):
    """The verdict on one output: `ok` means that `worst` is within `allowed`."""

    name: str
    ok: bool
    worst: float
    allowed: float
    message: str


def load_case(path: str | Path) -> Case:
    """Read the case at `path` (its .json); ValueError if the two files do not fit together."""
    path = Path(path).with_suffix(".json")
    record = json.loads(path.read_text(encoding="utf-8"))
    if missing := {"system", "kind", "settings", "inputs", "outputs"} - record.keys():
        raise ValueError(f"{path}: not a parity case, no {', '.join(sorted(missing))}")
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as file:
        arrays = dict(file)
    if wrong := arrays.keys() ^ (record["inputs"].keys() | record["outputs"].keys()):
        raise ValueError(f"{path}: described and stored arrays differ: {', '.join(sorted(wrong))}")
    checks = {name: output["check"] for name, output in record["outputs"].items()}
    inputs, expected = ({name: arrays[name] for name in record[part]} for part in ("inputs", "outputs"))
    system, kind, settings, spec = (record.get(key, {}) for key in ("system", "kind", "settings", "weights"))
    return Case(path, system, kind, settings, inputs, expected, checks, spec)


def weights(case: Case) -> dict[str, Array]:
    """The filled checkpoint of a case, name -> array; empty for a case without weights.

    A value is drawn from the entry's name without the prefix it may carry (`prefixes`), multiplied in float32 by
    every factor whose pattern matches the whole name (`scale`), and replaced where `replace` names the entry.
    """
    spec, result = case.weight_spec, {}
    for name, shape in spec.get("shapes", {}).items():
        prefix = next((p for p in spec["prefixes"] if name.startswith(p)), "")
        value = fill.parameter(name.removeprefix(prefix), tuple(shape))
        for pattern, factor in spec["scale"]:
            if re.fullmatch(pattern, name):
                value = value * np.float32(factor)
        if (source := spec["replace"].get(name)) is not None:
            value = case.inputs[source] if isinstance(source, str) else np.full_like(value, source)
        result[name] = value
    return result


def compare(case: Case, outputs: dict[str, Array]) -> list[Row]:
    """Judge `outputs` (name -> array): one row for every expected output that has a check."""
    return [judge(case, name, check, outputs.get(name)) for name, check in case.checks.items() if check]


def judge(case: Case, name: str, check: Check, actual: Array | None) -> Row:
    """Judge one output; a missing one, a wrong shape or a wrong class of numbers fails."""
    expected, actual = case.expected[name], None if actual is None else np.asarray(actual)
    free = check["type"] == "boxes"  # any number of boxes may be found
    try:
        if actual is None:
            raise ValueError("missing")
        if NUMBER_CLASS.get(actual.dtype.kind) != NUMBER_CLASS[expected.dtype.kind]:
            raise ValueError(f"{actual.dtype} instead of {expected.dtype}")
        if actual.ndim != expected.ndim or actual.shape[free:] != expected.shape[free:]:
            raise ValueError(f"shape {actual.shape} instead of {expected.shape}")
        if condition := check.get("only_where"):
            chosen = np.abs(case.expected[condition["array"]]) >= condition["at_least"]
            actual = np.where(chosen, actual, expected)
        worst, allowed, message = CHECKS[check["type"]](expected, actual, check)
    except (ValueError, KeyError, TypeError) as problem:  # also documents that cannot be read
        return Row(name, False, np.inf, 0.0, str(problem) if type(problem) is ValueError else repr(problem))
    return Row(name, bool(worst <= allowed), worst, allowed, message)


def deviation(expected: Array, actual: Array, check: Check) -> tuple[Array, Array]:
    """Absolute difference and tolerance of every element; NaN and infinities equal themselves."""
    wanted, found = expected.astype(np.float64), actual.astype(np.float64)
    atol, rtol = (np.asarray(check.get(key, 0.0)) for key in ("atol", "rtol"))
    allowed = np.broadcast_to(atol + rtol * np.nan_to_num(np.abs(wanted), posinf=0.0), wanted.shape)
    with np.errstate(invalid="ignore"):
        error = np.nan_to_num(np.abs(found - wanted), nan=np.inf, posinf=np.inf)
    return np.where((wanted == found) | (np.isnan(wanted) & np.isnan(found)), 0.0, error), allowed


def close(expected: Array, actual: Array, check: Check) -> Measure:
    if not expected.size:
        return 0.0, 0.0, ""
    error, allowed = deviation(expected, actual, check)
    ratio = np.divide(error, allowed, out=np.where(error > 0, np.inf, 0.0), where=allowed > 0)
    at = np.unravel_index(int(ratio.argmax()), expected.shape)
    return float(error[at]), float(allowed[at]), f"{actual[at]} instead of {expected[at]} at {[int(i) for i in at]}"


def outliers(expected: Array, actual: Array, check: Check) -> Measure:
    error, allowed = deviation(expected, actual, check)
    outside = int((error > allowed).sum())
    limit = check.get("max_outliers") or check.get("max_mismatch") or 0.0
    return outside / max(error.size, 1), limit, f"{outside} of {error.size} elements differ"


def document(expected: Array, actual: Array, check: Check) -> Measure:
    wanted, found = expected.tolist(), actual.tolist()
    if check["type"] == "json":
        wanted, found = json.loads(wanted), json.loads(found)
    wrong = differences(wanted, found, check.get("atol", 0.0), "$")
    return float(len(wrong)), 0.0, wrong[0] if wrong else ""


def differences(expected: Any, actual: Any, atol: float, path: str) -> list[str]:
    """Places where two parsed documents differ; real numbers may differ by `atol`, all else must be equal."""
    if isinstance(expected, dict) and isinstance(actual, dict) and expected.keys() == actual.keys():
        return [d for key in expected for d in differences(expected[key], actual[key], atol, f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, atol, f"{path}[{i}]")]
    if isinstance(expected, float) and isinstance(actual, (int, float)) and abs(expected - actual) <= atol:
        return []
    same = expected == actual and isinstance(expected, bool) == isinstance(actual, bool)
    return [] if same else [f"{path}: {str(actual)[:80]} instead of {str(expected)[:80]}"]


def decode(code: dict[str, Any]) -> Array:
    """A COCO compressed run-length code {"size": [H, W], "counts": text} as a uint8 mask {0, 1}."""
    from pycocotools import mask  # only the cases with such codes need it

    return mask.decode({"size": code["size"], "counts": code["counts"].encode("ascii")})


def run_length(expected: Array, actual: Array, check: Check) -> Measure:
    wanted, found = (decode(json.loads(str(code))) for code in (expected, actual))
    if wanted.shape != found.shape:
        return np.inf, 0.0, f"mask {found.shape} instead of {wanted.shape}"
    return outliers(wanted, found, check)


def box_iou(a: Array, b: Array) -> Array:
    """Pairwise IoU of (n, 4) and (m, 4) boxes x0, y0, x1, y1: (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b))
    return overlap / np.maximum(area_a[:, None] + area_b[None] - overlap, 1e-12)


def matched(fits: Array, check: Check) -> Measure:
    """Largest one-to-one matching of an (expected, found) bool matrix, as the share left without a partner."""
    from scipy.optimize import linear_sum_assignment

    partners, longer = int(fits[linear_sum_assignment(fits, maximize=True)].sum()), max(fits.shape)
    message = f"{partners} partners among {fits.shape[0]} expected and {fits.shape[1]} found"
    return (1 - partners / longer if longer else 0.0), 1 - check.get("min_matched", 1.0), message


def json_instances(expected: Array, actual: Array, check: Check) -> Measure:
    wanted, found = json.loads(str(expected)), json.loads(str(actual))
    fits = [same_instance(a, b, check) for a in wanted for b in found]
    return matched(np.array(fits, bool).reshape(len(wanted), len(found)), check)


def same_instance(wanted: dict[str, Any], found: dict[str, Any], check: Check) -> bool:
    """Whether two records agree; apart from score, segmentation and bbox all values must be equal."""
    same = all(found[key] == value for key, value in wanted.items() if key not in ("score", "segmentation", "bbox"))
    same = same and abs(found["score"] - wanted["score"]) <= check["score_atol"]
    if same and "box_atol" in check:
        same = np.allclose(found["bbox"], wanted["bbox"], rtol=0, atol=check["box_atol"])
    if same and "box_iou_min" in check:
        corners = [np.array([[x, y, x + w, y + h]]) for x, y, w, h in (wanted["bbox"], found["bbox"])]
        same = box_iou(*corners)[0, 0] >= check["box_iou_min"]
    if not same:
        return False
    a, b = (decode(record["segmentation"]) > 0 for record in (wanted, found))
    return a.shape == b.shape and bool((a & b).sum() >= check["mask_iou_min"] * (a | b).sum())


CHECKS: dict[str, Callable[[Array, Array, Check], Measure]] = {
    "close": close, "exact": outliers, "fraction": outliers, "close_fraction": outliers,
    "text": document, "json": document, "rle": run_length, "json_instances": json_instances,
    "mean_error": lambda wanted, found, check: (deviation(wanted, found, check)[0].mean(), check["max"], "mean error"),
    "boxes": lambda wanted, found, check: matched(box_iou(wanted, found) >= check["iou_min"], check),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Judge saved outputs; exit status 1 if any case failed."""
    parser = argparse.ArgumentParser(description="Judge saved outputs against parity cases.")
    parser.add_argument("cases", type=Path, metavar="CASES_DIR", help="folder with cases, at any depth")
    parser.add_argument("outputs", type=Path, metavar="OUTPUTS_DIR", help="folder with <system>/<case>.npz")
    options = parser.parse_args(arguments)
    verdicts = []
    for path in sorted(options.cases.rglob("*.json")):
        case = load_case(path)
        file = options.outputs / f"{case.name}.npz"
        rows = compare(case, dict(np.load(file, allow_pickle=False)) if file.exists() else {})
        worst, bad = max(rows, key=lambda row: row.worst / (row.allowed or 1)), [row for row in rows if not row.ok]
        verdicts.append(not bad)
        measure = f"{worst.worst:.3g} of {worst.allowed:.3g} ({worst.name})"
        print(f"{'FAIL' if bad else 'ok':4}  {case.kind:34} {case.name}  {measure}")
        print("".join(f"      {row.name}: {row.message}\n" for row in bad), end="")
    print(f"{sum(verdicts)} passed, {len(verdicts) - sum(verdicts)} failed")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
