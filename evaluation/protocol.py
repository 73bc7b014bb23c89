"""The protocol that a score was measured under; every score is printed and written together with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.files import write_json

_PER_CENT = {  # name in results -> name in the table; all are fractions
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "iou": "IoU, mean over images",
}


@dataclass(frozen=True)
class Protocol:
    """What has to be known to compare a score with another one."""

    benchmark: str  # name of the dataset
    split: str
    num_images: int  # images that were scored
    category_names: tuple[str, ...]  # in the order of the training ids
    background: str = "class 0, predicted like any other class"  # the rule that makes a pixel background
    image_size: str = "full resolution"  # what the network is fed
    score_size: str = "size of the ground truth"  # where predictions are compared
    prompts: str = "bare category names"
    ignore_index: int | None = None  # labels that are not scored
    refiner: str = "none"
    suppression: str | None = None  # non-maximum suppression of instances; None: no instances
    extra: dict[str, Any] = field(default_factory=dict)  # whatever else a system has to say

    def rows(self) -> list[tuple[str, str]]:
        """(name, text) of every entry, for tables and reports."""
        names = self.category_names
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        rows = [
            ("benchmark", f"{self.benchmark} / {self.split}"),
            ("images", f"{self.num_images}"),
            ("image size", self.image_size),
            ("score size", self.score_size),
            ("classes", f"{len(names)}: {shown}"),
            ("background", self.background),
            ("prompts", self.prompts),
            ("ignore index", "none" if self.ignore_index is None else str(self.ignore_index)),
            ("refiner", self.refiner),
        ]
        if self.suppression is not None:
            rows.append(("instances", f"non-maximum suppression: {self.suppression}; COCO mask AP"))
        return rows + [(name, str(value)) for name, value in self.extra.items()]

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Protocol:
        """The protocol that `to_dict` wrote; entries that only another version knows are left out."""
        known = {entry.name for entry in fields(cls)}
        values = {name: value for name, value in entries.items() if name in known}
        return cls(**{**values, "category_names": tuple(values["category_names"])})

    def to_dict(self) -> dict[str, Any]:
        """All entries as plain values, for JSON."""
        return {**asdict(self), "category_names": list(self.category_names)}


def format_scores(
    scores: Mapping[str, float], protocol: Protocol, *, class_iou: Sequence[float] | None = None, num_classes: int = 0
) -> str:
    """Scores in per cent and their protocol, as a text table.

    Args:
        scores: fractions by name; -1 and NaN are shown as "-" (nothing of that kind is annotated).
        protocol: how they were measured.
        class_iou: IoU per class, in the order of the protocol's names.
        num_classes: list the best and the worst so many classes as well.
    """
    width = max([24, *(len(shown_name(name)) for name in scores)])
    lines = [f"{shown_name(name):>{width}}  {_per_cent(value)}" for name, value in scores.items()]
    if class_iou is not None and num_classes > 0:
        pairs = zip(class_iou, protocol.category_names, strict=True)
        ranked = sorted((pair for pair in pairs if pair[0] == pair[0]), reverse=True)
        for title, part in (("best", ranked[:num_classes]), ("worst", ranked[-num_classes:])):
            lines.append(f"{title:>{width}}  " + ", ".join(f"{name} {_per_cent(value)}" for value, name in part))
    lines.append("protocol")
    lines += [f"{name:>{width}}  {text}" for name, text in protocol.rows()]
    return "\n".join(lines)


def write_results(
    path: str | Path,
    scores: Mapping[str, float],
    protocol: Protocol,
    *,
    class_iou: Sequence[float] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write scores (fractions) and protocol as one JSON document, atomically.

    Args:
        path: the file.
        scores: fractions by name.
        protocol: how they were measured.
        class_iou: IoU per class; written as category name -> IoU, null where a class is absent.
        extra: further entries of the document.
    """
    document: dict[str, Any] = {"scores": dict(scores), "protocol": protocol.to_dict(), **(extra or {})}
    if class_iou is not None:
        document["class_iou"] = dict(zip(protocol.category_names, [float(value) for value in class_iou], strict=True))
    write_json(path, document)


def shown_name(name: str) -> str:
    """A score's name for people; those of refined labels carry the refiner behind them: "mean IoU, CRF".

    Args:
        name: in results: "mean_iou_crf".
    """
    for plain, shown in _PER_CENT.items():
        if name.startswith(f"{plain}_"):
            return f"{shown}, {name.removeprefix(f'{plain}_').upper()}"
    return _PER_CENT.get(name, name)


def _per_cent(value: float) -> str:
    return "-" if value != value or value == -1 else f"{100 * value:.2f}"
