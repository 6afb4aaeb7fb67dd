"""``python -m benchmarks.chaos.table``: writes the table of docs/chaos.md from benchmarks/results/chaos.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import table, write_into

RESULTS = Path(__file__).parents[1] / "results" / "chaos.json"
DOCUMENT = RESULTS.parents[2] / "docs" / "chaos.md"
_HEADING = (
    *("scenario", "runs", "lost", "repeated", "changed", "client errors"),
    *("stall p50", "stall p99", "goodput dip", "goodput back", "whole again"),
)


def rows(scenarios: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the heading and a row per scenario that was run, the undisturbed load first."""
    names = sorted((name for name in scenarios if "skipped" not in scenarios[name]), key=lambda n: (n != "nothing", n))
    return [list(_HEADING), *(_row(name, scenarios[name]) for name in names)]


def _row(name: str, report: dict[str, Any]) -> list[str]:
    counts = [str(report[key]) for key in ("runs", "lost", "repeated", "changed", "client_errors")]
    stalls = [_unit(report[key], "ms", 0) for key in ("stall_p50_ms", "stall_p99_ms")]
    dip = report["goodput_dip"]
    seconds = [_unit(report[key], "s", 1) for key in ("recovered_s", "whole_s")]
    return [name, *counts, *stalls, "-" if dip is None else f"{dip:.0%}", *seconds]


def _unit(value: float | None, unit: str, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f} {unit}"


def main() -> None:
    """Write it."""
    write_into(DOCUMENT, table(rows(json.loads(RESULTS.read_text())["scenarios"])), result=RESULTS.name)


if __name__ == "__main__":
    main()
