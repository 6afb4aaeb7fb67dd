"""``python -m benchmarks.scheduling``: a_max of every scheduler beside the optimum, and CPU time per call.

Writes the result file, prints the tables, refreshes docs/scheduling.md and its plots.
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
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_into
from benchmarks.scheduling.campaign import full, measure_cases, model_times, quick, say
from benchmarks.scheduling.figures import figures
from benchmarks.scheduling.report import imbalance_mean, optimal_share, tables
from benchmarks.scheduling.routing import REPOSITORY
from benchmarks.scheduling.timing import measure_times
from benchmarks.serving.machine import CpuMeter, commit, hardware
from benchmarks.written import as_json

_RESULT = REPOSITORY / "benchmarks" / "results" / "scheduling.json"
_DOCUMENT = REPOSITORY / "docs" / "scheduling.md"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    given = _arguments(arguments)
    plan = quick() if given.quick else full(given.draws)
    started = time.perf_counter()
    cases = measure_cases(plan, 1 if given.quick else given.workers)
    say(f"{len(cases)} cases after {time.perf_counter() - started:.0f} s")
    layer_time = model_times(plan)
    meter = CpuMeter({"own": [os.getpid()]})
    cpu_us = list(measure_times(plan.timing))
    result = _result(cases, layer_time, cpu_us, meter.read().others_cores, arguments)
    _write(given, result)
    print(tables(result))
    say(f"{time.perf_counter() - started:.0f} s; written: {given.output}")
    return 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scheduling", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a rehearsal of seconds: few cases, no document")
    add("--draws", type=float, default=1.0, help="scales the batches per case (default: 1)")
    add("--workers", type=int, default=os.cpu_count(), help="processes; times are always taken alone (default: cores)")
    add("--output", type=Path, default=_RESULT, help="result file (default: benchmarks/results/scheduling.json)")
    add("--document", type=Path, default=_DOCUMENT, help="document with the tables; plots go beside it")
    given = parser.parse_args(arguments)
    if given.quick:
        given.document = None
        if given.output == _RESULT:
            given.output = Path(tempfile.gettempdir()) / "scheduling-quick.json"
    return given


def _result(
    cases: list[dict[str, Any]],
    layer_time: list[dict[str, Any]],
    cpu_us: list[dict[str, Any]],
    others_cores: float,
    arguments: Sequence[str] | None,
) -> dict[str, Any]:
    launches = sum(case["draws"] for case in cases)
    return {
        "optimal_share": optimal_share(cases),
        "imbalance_mean": imbalance_mean(cases),
        "launches": launches,
        "proven_share": sum(case["proven"] * case["draws"] for case in cases) / launches,
        "checked": sum(case["checked"] for case in cases),
        "command": shlex.join(
            ["python", "-m", "benchmarks.scheduling", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
        "others_cores": round(others_cores, 3),
        "gpu_us": None,
        "cpu_us": cpu_us,
        "layer_time": layer_time,
        "cases": cases,
    }


def _write(given: argparse.Namespace, result: dict[str, Any]) -> None:
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(as_json(result))
    if given.document:
        write_into(given.document, tables(result), result="scheduling.json")
        for name, svg in figures(result).items():
            (given.document.parent / name).write_text(svg)


if __name__ == "__main__":
    sys.exit(main())
