"""The result of the paper's figures in the repository, and the document and the plots that are made of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.paper import __main__ as command
from benchmarks.paper.figures import figures
from benchmarks.paper.report import tables
from benchmarks.scheduling.plot import Line, Panel, chart

_REPOSITORY = Path(__file__).parents[2]
_FIGURES = {"1", "2", "8", "9", "10", "11", "12", "13", "15", "16", "17"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_REPOSITORY / "benchmarks" / "results" / "paper.json").read_text())
    return found


def test_the_result_has_every_figure_and_says_where_it_is_from(result: dict[str, Any]) -> None:
    assert {"command", "hardware", "commit", "date", "plan", "calibration", "links"} <= set(result)
    assert {figure["figure"] for figure in result["figures"]} == _FIGURES
    for figure in result["figures"]:
        assert figure["title"] and figure["rows"] and figure["data"]
        for row in figure["rows"]:
            assert row["figure"] == figure["figure"]
            assert {"what", "unit", "paper", "ours", "difference", "kind", "why"} <= set(row)
            assert row["kind"] in {"fitted", "calibrated", "predicted", "measured", "counted"}
            compared = row["paper"] is not None and row["ours"] is not None
            assert (row["difference"] is not None) == compared


def test_the_document_shows_the_result(result: dict[str, Any]) -> None:
    document = (_REPOSITORY / "docs" / "evaluation.md").read_text()
    assert tables(result) in document
    for row in (row for figure in result["figures"] for row in figure["rows"]):
        assert row["what"] in document


def test_the_plots_are_the_result_s(result: dict[str, Any]) -> None:
    drawn = figures(result)
    document = (_REPOSITORY / "docs" / "evaluation.md").read_text()
    for name, svg in drawn.items():
        assert ElementTree.fromstring(svg).tag.endswith("svg")
        assert svg.count("<polyline") >= 2
        assert (_REPOSITORY / "docs" / name).read_text() == svg
        assert f"({name})" in document


def test_the_command_writes_result_document_and_plots(
    result: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {key: result[key] for key in ("calibration", "links", "link_sources", "slower", "figures")}
    monkeypatch.setattr(command, "run", lambda plan: found)
    document, output = tmp_path / "evaluation.md", tmp_path / "deep" / "paper.json"
    document.write_text("head\n<!-- paper.json: begin -->\nold\n<!-- paper.json: end -->\ntail\n")
    assert command.main(["--seed", "3", "--output", str(output), "--document", str(document)]) == 0
    written = json.loads(output.read_text())
    assert written["command"].startswith("python -m benchmarks.paper --seed 3")
    assert written["plan"]["seed"] == 3
    assert written["figures"] == result["figures"]
    text = document.read_text()
    assert text.startswith("head\n") and text.endswith("-->\ntail\n") and "old" not in text
    assert {path.name for path in tmp_path.glob("*.svg")} == set(figures(result))
    assert "### Every figure" in capsys.readouterr().out


def test_long_legends_are_broken() -> None:
    lines = [Line(name=f"a long name, {n}", colour="#000000", points=[(1, 1), (2, 2)]) for n in range(6)]
    svg = ElementTree.fromstring(chart("t", [Panel(title="p", lines=lines)], x_label="x", y_label="y", x_log=False))
    labels = [each for each in svg.iter() if (each.text or "").startswith("a long name")]
    assert len({each.get("y") for each in labels}) > 1
    assert all(0 <= float(each.get("x", "-1")) < float(svg.get("width", "0")) for each in labels)
    assert all(float(each.get("y", "-1")) < float(svg.get("height", "0")) for each in labels)
