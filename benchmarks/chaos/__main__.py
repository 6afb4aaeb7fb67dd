"""Run every scenario of a single fault many times at random moments, and record what clients noticed.

    python -m benchmarks.chaos [--only NAME ...] [--repeat 20] [--seed 0]

Starts its own clusters, one for all scenarios that need the same, and writes benchmarks/results/chaos.json: a scenario
that is not run keeps the figures that it had. Ends with status 1 when a scenario expects more than was seen.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos.campaign import Campaign
from benchmarks.serving.machine import commit, hardware

from janus.chaos.files import find, load_scenario, shipped
from janus.chaos.scenario import Scenario
from janus.chaos.suite import Plan

RESULTS = Path(__file__).parents[1] / "results" / "chaos.json"
ROOT = RESULTS.parents[2]
#: Not a fault at a moment: long, and nothing of them is at random.
ONCE = ("rolling-restart", "domain-change", "nothing")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(shipped()), metavar="NAME", help="scenarios (default: all)")
    parser.add_argument("--repeat", type=int, default=20, help="runs of each (default: 20)")
    parser.add_argument("--repeat-long", type=int, default=3, help=f"runs of {', '.join(ONCE)} (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "janus-tiny")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    started = time.perf_counter()
    scenarios = [load_scenario(find(name)) for name in given.only]
    plans = {
        scenario.name: Plan(repeat=given.repeat_long if scenario.name in ONCE else given.repeat, seed=given.seed)
        for scenario in scenarios
    }
    campaign = Campaign(model=given.model, plans=plans, tell=_tell, record=lambda found: _write(given.out, found))
    reports = campaign.run(scenarios)
    _tell(f"{len(reports)} scenarios in {(time.perf_counter() - started) / 60:.1f} min; written to {given.out}")
    return _show(scenarios, reports)


def _show(scenarios: list[Scenario], reports: dict[str, dict[str, Any]]) -> int:
    print(
        f"{'scenario':<20}{'runs':>5}{'lost':>6}{'rep.':>6}{'chg.':>6}{'err.':>6}{'p50':>8}{'p99':>8}{'dip':>7}{'back':>7}"
    )
    for scenario in scenarios:
        report = reports[scenario.name]
        if "skipped" in report:
            print(f"{scenario.name:<20} skipped: {report['skipped']}")
            continue
        names = ("runs", "lost", "repeated", "changed", "client_errors")
        figures = ("stall_p50_ms", "stall_p99_ms", "goodput_dip", "recovered_s")
        widths = (5, 6, 6, 6, 6, 8, 8, 7, 7)
        cells = [report.get(name) for name in (*names, *figures)]
        print(
            f"{scenario.name:<20}"
            + "".join(f"{_cell(cell):>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
        for problem in report["unmet"]:
            print(f"  {problem}")
    return int(any(report.get("unmet") for report in reports.values()))


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _write(out: Path, found: dict[str, dict[str, Any]]) -> None:
    """Put what was found beside what other runs found before, and say of each which commit it is of."""
    command = shlex.join(["python", "-m", "benchmarks.chaos", *sys.argv[1:]])
    stamp = {
        "command": command,
        "commit": commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    known = json.loads(out.read_text())["scenarios"] if out.is_file() else {}
    # What was skipped, or interrupted before its first run, leaves what is known.
    fresh = {name: {**report, **stamp} for name, report in found.items() if report.get("runs") or name not in known}
    scenarios = {**known, **fresh}
    result = {
        "hardware": hardware(os.cpu_count() or 1),
        # Of the last run; each scenario says of which it is.
        **stamp,
        "scenarios": {name: scenarios[name] for name in sorted(scenarios)},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")


def _tell(line: str) -> None:
    print(f"chaos: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
