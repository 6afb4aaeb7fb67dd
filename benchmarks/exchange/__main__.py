"""``python -m benchmarks.exchange``: time, messages and bytes per layer of every way to exchange, on a testbed.

2 + 2 nodes in network namespaces, real UCX between them, shared memory inside; experts that copy instead of computing.
In the same run: ping-pong over a Janus link, raw ucxx and a plain socket. Writes benchmarks/results/exchange.json and
the tables in docs/exchange.md. Needs root; docs/testbed.md says why.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.exchange.record import swept, update
from benchmarks.exchange.report import tables
from benchmarks.exchange.sweep import Sweep, described, run
from benchmarks.markdown import write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.testbed import unavailable
from benchmarks.transport.__main__ import measure

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "exchange.json"
_DOCUMENT = _REPOSITORY / "docs" / "exchange.md"
#: What is played ping-pong with.
_STACKS = ("link-ucx", "ucxx", "ucxx-probe", "socket")
_SIZES = (64, 4096, 32 << 10, 64 << 10, 256 << 10, 1 << 20)


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
        apart_rounds=given.apart_rounds,
        expert_gate_rounds=given.expert_gate_rounds,
        seconds=given.seconds,
        settle_s=given.settle_seconds,
        cell_s=given.cell_seconds,
    )
    load_before, started = os.getloadavg()[0], time.monotonic()
    figures, others_cores = measure(_STACKS, _SIZES, given.transport_rounds, "uvloop")
    cells = list(run(sweep))
    found: dict[str, Any] = {
        **swept(cells, figures),
        "command": shlex.join(["python", "-m", "benchmarks.exchange", *sys.argv[1:]]),
        "hardware": hardware(os.cpu_count() or 1),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        #: Before the first cell: what the machine was busy with besides.
        "load_before": round(load_before, 2),
        "seconds": round(time.monotonic() - started),
        "sweep": described(sweep),
        "transport": {"rounds": given.transport_rounds, "others_cores": round(others_cores, 2), "figures": figures},
        "cells": cells,
    }
    text = tables(update(given.output, found))
    if given.document.name != "none":
        write_into(given.document, text, result="exchange.json")
    print(text)
    return 0


def _arguments() -> argparse.Namespace:
    usual = Sweep()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange", description=__doc__)
    parser.add_argument("--topologies", default="2x2,4x4,2x8", help="attention x expert instances (%(default)s)")
    parser.add_argument("--hidden", default="2048,7168", help="hidden sizes (%(default)s)")
    parser.add_argument("--tokens", default="1,16,128,512", help="tokens per attention instance (%(default)s)")
    parser.add_argument("--networks", default="10/25,50/10,200/1", help="latency in us / rate in Gbit/s (%(default)s)")
    parser.add_argument("--rounds", type=int, default=usual.rounds, help="turns of each way per cell (%(default)s)")
    parser.add_argument(
        "--apart-rounds",
        type=int,
        default=usual.apart_rounds,
        help="rounds in which instances also go on by themselves (%(default)s)",
    )
    parser.add_argument(
        "--expert-gate-rounds",
        type=int,
        default=usual.expert_gate_rounds,
        help="rounds in which the experts gate, too; at least 1 (%(default)s)",
    )
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="length of a turn (%(default)s)")
    parser.add_argument(
        "--settle-seconds",
        type=float,
        default=usual.settle_s,
        help="time for auto to try every way before it is measured (%(default)s)",
    )
    parser.add_argument(
        "--cell-seconds",
        type=float,
        default=usual.cell_s,
        help="time after which a cell has no further rounds, of which two are made (%(default)s)",
    )
    parser.add_argument(
        "--transport-rounds", type=int, default=20, help="turns of ping-pong per stack and size (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=_RESULT, help="result file (%(default)s)")
    parser.add_argument("--document", type=Path, default=_DOCUMENT, help="document with the tables, or none")
    given = parser.parse_args()
    if min(given.rounds, given.expert_gate_rounds) < 1:
        parser.error("--rounds and --expert-gate-rounds must be at least 1: the tables have a column for each way")
    return given


def _pair(text: str) -> tuple[int, int]:
    attention, _, experts = text.partition("x")
    return int(attention), int(experts)


def _network(text: str) -> tuple[float, float]:
    latency, _, rate = text.partition("/")
    return float(latency), float(rate)


if __name__ == "__main__":
    sys.exit(main())
