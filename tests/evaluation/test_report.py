"""The report's page: pictures that it finds, colours that it explains, scores for people."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from evaluation import report_sections
from evaluation.protocol import Protocol
from evaluation.report import Figure, Section, write_report
from evaluation.report_sections import PredictionPanel, label_colours, predictions_section

COLOURS = np.array([[0, 0, 0], [200, 10, 10], [10, 200, 10]], np.uint8)


def test_names_with_signs_of_addresses(tmp_path: Path) -> None:
    page = tmp_path / "page #1?.html"
    figure = Figure("100% #1", np.zeros((2, 2, 3), np.uint8), "<b>")
    write_report(page, title="t", subtitle="", sections=[Section("s", figures=[figure])])
    (source,) = (part.split('"')[0] for part in page.read_text().split('src="')[1:])
    assert not set(source) & set("#? ")
    assert (tmp_path / unquote(source)).is_file()
    assert "&lt;b&gt;" in page.read_text()


def test_labels_of_several_maps_have_names_and_colours() -> None:
    maps = [np.array([[1, 255]]), None, np.array([[2, 1]], np.int16)]
    assert label_colours(maps, ["background", "cat", "dog"], COLOURS) == {
        1: ("cat", (200, 10, 10)),
        2: ("dog", (10, 200, 10)),
    }
    assert label_colours([], ["background"], COLOURS) == {}


@pytest.mark.parametrize("has_truth", [True, False])
def test_predictions_have_names_and_a_legend(tmp_path: Path, has_truth: bool) -> None:
    parts = ("picture", *["truth"] * has_truth, "prediction")
    image = np.zeros((4, 12, 3), np.uint8)
    panels = [
        PredictionPanel("b.jpg", image, parts, {2: ("dog & cat", (10, 200, 10))}),
        PredictionPanel("a.jpg", image, parts, {1: ("cat", (200, 10, 10)), 2: ("dog & cat", (10, 200, 10))}),
    ]
    section = predictions_section(panels)
    assert [figure.caption for figure in section.figures] == ["b.jpg", "a.jpg"]
    assert section.legend == [("cat", (200, 10, 10)), ("dog & cat", (10, 200, 10))]
    assert section.paragraphs[0].startswith(f"From left to right: {', '.join(parts)}.")
    assert ("Grey" in section.paragraphs[0]) == has_truth
    write_report(tmp_path / "report.html", title="t", subtitle="", sections=[section])
    page = (tmp_path / "report.html").read_text()
    assert page.count("dog &amp; cat") == 1
    assert "rgb(200, 10, 10)" in page


def test_panels_that_do_not_say_what_they_show() -> None:
    section = predictions_section([PredictionPanel("a", np.zeros((4, 12, 3), np.uint8))])
    assert section.legend == []
    assert section.paragraphs == []


def test_curves_of_scores_are_in_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = {}

    def keep(records: object, names: object, *, title: str) -> np.ndarray:
        drawn[title] = (list(records), list(names))
        return np.zeros((2, 2, 3), np.uint8)

    monkeypatch.setattr(report_sections, "draw_curves", keep)
    records = [{"iteration": 1, "loss": 0.5}, {"iteration": 2, "loss": 0.4, "mean_iou": 0.25, "AP": -1.0}]
    report_sections.curves_section([*records, {"iteration": 3, "mean_iou_crf": 0.5}])
    assert drawn["training losses"][0][:2] == records
    found, names = drawn["validation scores, %"]
    assert found == [{"iteration": 1}, {"iteration": 2, "mean IoU": 25.0}, {"iteration": 3, "mean IoU, CRF": 50.0}]
    assert names == ["mean IoU", "mean IoU, CRF", "AP"]


def test_a_protocol_comes_back_from_its_entries() -> None:
    protocol = Protocol("toy", "val", 2, ("sky", "road"), ignore_index=255, extra={"a": 1})
    assert Protocol.from_dict({**protocol.to_dict(), "of a later version": 1}) == protocol
