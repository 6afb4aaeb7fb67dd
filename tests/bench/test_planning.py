"""What docs/planning.md says planning takes is what was recorded, and within what was promised."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.planning.__main__ import report

ROOT = Path(__file__).parents[2]


def test_the_document_has_the_recorded_figures() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "planning.json").read_text())
    assert report(result) in (ROOT / "docs" / "planning.md").read_text()
    assert {"command", "hardware", "commit", "date"} <= set(result)
    plane = next(each for each in result["searches"] if each["what"] == "a rate, P99 TPOT")
    assert plane["points"] == 64 * 64
    assert plane["ms"] < 100
