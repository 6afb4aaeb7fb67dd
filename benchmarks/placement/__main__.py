"""``python -m benchmarks.placement``: a_max of the placement policies, what re-placing gains, and optimum gaps.

Writes the result file, prints the tables, refreshes docs/placement.md.
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
from benchmarks.placement.measure import gaps, quality, shifts, traces
from benchmarks.placement.report import tables
from benchmarks.scheduling.routing import JANUS_TINY, REPOSITORY, slots
from benchmarks.serving.machine import commit, hardware
from benchmarks.written import as_json

_RESULT = REPOSITORY / "benchmarks" / "results" / "placement.json"
_DOCUMENT = REPOSITORY / "docs" / "placement.md"
_LARGE = ("deepseek-v2", "qwen3-235b")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.placement", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a rehearsal of seconds: few cases, no document")
    parser.add_argument("--output", type=Path, default=_RESULT, help="result file")
    given = parser.parse_args(arguments)
    if given.quick and given.output == _RESULT:
        given.output = Path(tempfile.gettempdir()) / "placement-quick.json"
    started = time.perf_counter()
    result = _measured(given.quick) | {
        "command": shlex.join(
            ["python", "-m", "benchmarks.placement", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
    }
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(as_json(result))
    text = tables(result)
    print(text)
    if not given.quick:
        write_into(_DOCUMENT, text, result="placement.json")
    print(f"{time.perf_counter() - started:.0f} s; written: {given.output}", file=sys.stderr)
    return 0


def _measured(quick: bool) -> dict[str, Any]:
    cases: list[dict[str, Any]] = []
    for trace in traces(_LARGE[:1] if quick else _LARGE):
        tiny = trace.shape == JANUS_TINY
        sizes = (4, 16) if quick else (4, 8, 16, 32, 64) if tiny else (16, 64, 256)
        for instances in (4,) if quick else (4, 6, 8) if tiny else (8, 16):
            for spare in (0, slots(trace.shape, instances)):
                cases += quality(trace, instances, spare, sizes, draws=5 if quick else 200 if tiny else 400)
        print(f"{trace.shape.name} {trace.routing}: {len(cases)} cases", file=sys.stderr)
    return {
        "cases": cases,
        "shifts": list(shifts(instances=4, slots=4, size=16, draws=5 if quick else 100)),
        "gaps": list(gaps(instances=4, slots=4, sampled=4 if quick else 16, limit_s=1.0 if quick else 20.0)),
    }


if __name__ == "__main__":
    sys.exit(main())
