"""``python -m benchmarks.testbed.accuracy``: what a testbed measures beside what it was set to, and what it costs.

Writes the result file, prints the tables, refreshes docs/testbed.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from benchmarks.markdown import table, write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.testbed import measure
from benchmarks.testbed.bed import Testbed
from benchmarks.testbed.links import SIZES, STACKS, round_trips
from benchmarks.testbed.spec import LinkSpec, Measured

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "testbed.json"
_DOCUMENT = _REPOSITORY / "docs" / "testbed.md"
_LATENCIES_US = (10, 50, 200)
_RATES_GBIT = (1, 10, 25)
_PACKETS_PER_S = 10_000
_ATTEMPTS = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.testbed.accuracy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=500, help="round trips per figure (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=_RESULT, help="result file (default: %(default)s)")
    parser.add_argument("--document", type=Path, default=_DOCUMENT, help="document with the tables")
    given = parser.parse_args(arguments)
    load_before = os.getloadavg()[0]
    with Testbed(("a0", "e0")) as bed:
        result: dict[str, Any] = {
            "backend": bed.backend,
            "loopback": asdict(_loopback(bed, given.rounds)),
            "settings": list(_settings(bed, given.rounds)),
            "switch_cpu": list(_switch_cpu(bed)),
        }
    result |= {
        "command": shlex.join(["python", "-m", "benchmarks.testbed.accuracy", *(arguments or sys.argv[1:])]),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    text = tables(result)
    write_into(given.document, text, result="testbed.json")
    print(text)
    return 0


def _loopback(bed: Testbed, rounds: int) -> Measured:
    prefix = bed.exec_prefix(bed.nodes[0])
    return measure.between(prefix, prefix, "127.0.0.1", rounds=rounds, seconds=0.5)


def _settings(bed: Testbed, rounds: int) -> Iterator[dict[str, Any]]:
    for latency_us in _LATENCIES_US:
        for rate_gbit in _RATES_GBIT:
            spec = LinkSpec(latency_us=latency_us, rate_gbit=rate_gbit)
            bed.set_link(spec)
            print(f"set {spec}", file=sys.stderr)
            yield {
                **asdict(spec),
                **_least_disturbed([bed.measured(rounds=rounds, seconds=0.3) for _ in range(_ATTEMPTS)]),
                "links": {stack: round_trips(bed, stack, rounds) for stack in STACKS},
            }


def _least_disturbed(attempts: Sequence[Measured]) -> dict[str, float]:
    """The attempt with the shortest round trip, with the best rate: the link is the same, the machine's load is not."""
    best = min(attempts, key=lambda attempt: attempt.rtt_p50_us)
    return {**asdict(best), "gbit_per_s": max(attempt.gbit_per_s for attempt in attempts)}


def _switch_cpu(bed: Testbed, seconds: float = 2.0) -> Iterator[dict[str, Any]]:
    """The switch's share of a core while packets cross at a steady pace; none where the kernel does its work."""
    if bed.switch_pid is None:
        return
    client, server = bed.nodes
    switch = psutil.Process(bed.switch_pid)
    sink = bed.popen(server, [*measure.PROBE, "sink"], stdout=subprocess.PIPE, text=True)
    with sink.stdout as out:  # type: ignore[union-attr]
        port = out.readline().strip()
    for latency_us in _LATENCIES_US:
        for nbytes in (100, 8000):
            bed.set_link(LinkSpec(latency_us=latency_us, rate_gbit=10))
            pace = [*measure.PROBE, "pace", bed.address(server), port, str(_PACKETS_PER_S), str(seconds), str(nbytes)]
            before, start = sum(switch.cpu_times()[:2]), time.perf_counter()
            packets = bed.traffic()[client, server].packets
            subprocess.run([*bed.exec_prefix(client), *pace], check=True, timeout=10 * seconds)
            wall = time.perf_counter() - start
            yield {
                "latency_us": latency_us,
                "packet_bytes": nbytes,
                "packets_per_s": round((bed.traffic()[client, server].packets - packets) / wall),
                "core_share": round((sum(switch.cpu_times()[:2]) - before) / wall, 3),
            }


def tables(result: dict[str, Any]) -> str:
    """Return what the document says of ``result``."""
    loopback = result["loopback"]
    cpu = [entry["core_share"] for entry in result["switch_cpu"]]
    conditions = (
        f"Measured with `{result['command']}` on {result['date']} at commit {result['commit']}: links "
        f"{result['backend']}, {result['hardware']['cpu']}, {result['hardware']['cores']} cores, load average "
        f"{result['load'][0]} before and {result['load'][1]} after. Plain blocking TCP, best of {_ATTEMPTS}; the "
        f"loopback inside a node: {loopback['rtt_p50_us']:.0f} us (p99 {loopback['rtt_p99_us']:.0f}), "
        f"{loopback['gbit_per_s']:.0f} Gbit/s."
    )
    links = "Janus links and plain sockets, round trip p50 in us, one run; *ideal* is twice (latency + bytes / rate):"
    parts = [
        textwrap.fill(conditions, 120, break_on_hyphens=False),
        table([["latency, rate set", "RTT p50 (p99), us", "beyond twice the latency", "Gbit/s"], *_plain(result)]),
        links,
        table([["latency, rate set", "stack", *(_size(size) for size in SIZES)], *_links(result)]),
    ]
    if cpu:
        parts.append(
            f"The switch takes {min(cpu):.0%} to {max(cpu):.0%} of a core at "
            f"{_PACKETS_PER_S:,} packets/s (100 and 8000 bytes, the three latencies, 10 Gbit/s)."
        )
    return "\n\n".join(parts) + "\n"


def _plain(result: dict[str, Any]) -> Iterator[list[str]]:
    for entry in result["settings"]:
        p50, p99 = entry["rtt_p50_us"], entry["rtt_p99_us"]
        yield [_setting(entry), f"{p50:.0f} ({p99:.0f})", f"{p50 - 2 * entry['latency_us']:.0f}", _rate(entry)]


def _links(result: dict[str, Any]) -> Iterator[list[str]]:
    for entry in result["settings"]:
        ideal = [2 * (entry["latency_us"] + size * 8e-3 / entry["rate_gbit"]) for size in SIZES]
        yield [_setting(entry), "*ideal*", *(f"{value:.0f}" for value in ideal)]
        for stack, measured in entry["links"].items():
            yield ["", stack, *(f"{measured[str(size)]['p50']:.0f}" for size in SIZES)]


def _setting(entry: dict[str, Any]) -> str:
    return f"{entry['latency_us']:g} us, {entry['rate_gbit']:g} Gbit/s"


def _rate(entry: dict[str, Any]) -> str:
    return f"{entry['gbit_per_s']:.2f}"


def _size(nbytes: int) -> str:
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes // unit} {name}"
    return f"{nbytes} B"


if __name__ == "__main__":
    sys.exit(main())
