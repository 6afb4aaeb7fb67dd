"""``python -m benchmarks.exchange``: time, messages and bytes per layer of every way to exchange, on a testbed.

2 + 2 nodes in network namespaces, real UCX between them, shared memory inside; experts that copy instead of computing.
Writes benchmarks/results/exchange.json and the tables in docs/exchange.md. Needs root; docs/testbed.md says why.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.exchange.report import tables
from benchmarks.exchange.sweep import Sweep, described, run
from benchmarks.markdown import write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.testbed import unavailable

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "exchange.json"
_DOCUMENT = _REPOSITORY / "docs" / "exchange.md"


def main() -> int:
    """Command line."""
    given = _arguments()
    problem = unavailable()
    if problem:
        print(f"no testbed here: {problem}", file=sys.stderr)
        return 0
    sweep = Sweep(
        topologies=tuple(_pair(text) for text in given.topologies.split(",")),
        hidden=tuple(int(text) for text in given.hidden.split(",")),
        tokens=tuple(int(text) for text in given.tokens.split(",")),
        networks=tuple(_network(text) for text in given.networks.split(",")),
        rounds=given.rounds,
        seconds=given.seconds,
    )
    load_before = os.getloadavg()[0]
    cells = list(run(sweep))
    result: dict[str, Any] = {
        "command": shlex.join(["python", "-m", "benchmarks.exchange", *sys.argv[1:]]),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
        #: Before the first cell: what the machine was busy with besides.
        "load_before": round(load_before, 2),
        "sweep": described(sweep),
        "cells": cells,
    }
    if given.output.exists():  # the ladder's figures stay
        result |= {key: value for key, value in json.loads(given.output.read_text()).items() if key == "ladder"}
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    text = tables(result)
    if given.document.name != "none":
        write_into(given.document, text, result="exchange.json")
    print(text)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__)
    parser.add_argument("--topologies", default="2x2,4x4,2x8,8x8", help="attention x expert instances (%(default)s)")
    parser.add_argument("--hidden", default="2048,7168", help="hidden sizes (%(default)s)")
    parser.add_argument("--tokens", default="1,16,128", help="tokens per attention instance (%(default)s)")
    parser.add_argument("--networks", default="10/25,50/10,200/1", help="latency in us / rate in Gbit/s (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way per cell (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn (%(default)s)")
    parser.add_argument("--output", type=Path, default=_RESULT, help="result file (%(default)s)")
    parser.add_argument("--document", type=Path, default=_DOCUMENT, help="document with the tables, or none")
    return parser.parse_args()


def _pair(text: str) -> tuple[int, int]:
    attention, _, experts = text.partition("x")
    return int(attention), int(experts)


def _network(text: str) -> tuple[float, float]:
    latency, _, rate = text.partition("/")
    return float(latency), float(rate)


if __name__ == "__main__":
    sys.exit(main())
