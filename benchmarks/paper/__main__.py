"""``python -m benchmarks.paper``: the paper's figures, simulated with the policies and the planner that serve.

Writes the result file, prints the tables, refreshes docs/evaluation.md and its plots. Deterministic under ``--seed``.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_into
from benchmarks.paper.campaign import Plan, full, quick, run
from benchmarks.paper.figures import figures
from benchmarks.paper.report import tables
from benchmarks.serving.machine import commit, hardware
from benchmarks.written import as_json

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "paper.json"
_DOCUMENT = _REPOSITORY / "docs" / "evaluation.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    given = _arguments(arguments)
    plan = quick(given.seed) if given.quick else full(given.seed)
    started = time.perf_counter()
    found = run(plan)
    result = _described(plan, arguments) | found
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(as_json(result))
    print(tables(result))
    if given.document:
        write_into(given.document, tables(result), result="paper.json")
        for name, svg in figures(result).items():
            (given.document.parent / name).write_text(svg)
    print(f"{time.perf_counter() - started:.0f} s; written: {given.output}", file=sys.stderr)
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paper", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a rehearsal: little is drawn, no document")
    add("--seed", type=int, default=0, help="of routing, batches and traffic (default: 0)")
    add("--output", type=Path, default=_RESULT, help="result file (default: benchmarks/results/paper.json)")
    add("--document", type=Path, default=_DOCUMENT, help="document with the tables; plots go beside it")
    given = parser.parse_args(arguments)
    if given.quick:
        given.document = None
        if given.output == _RESULT:
            given.output = Path(tempfile.gettempdir()) / "paper-quick.json"
    return given


def _described(plan: Plan, arguments: Sequence[str] | None) -> dict[str, Any]:
    return {
        "command": shlex.join(
            ["python", "-m", "benchmarks.paper", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
        "cpu_seconds": round(time.process_time(), 1),
        "plan": asdict(plan),
    }


if __name__ == "__main__":
    sys.exit(main())
