"""Round trips of Janus links between two nodes of a testbed, over UCX and TCP, at several settings.

    python -m benchmarks.testbed.links [--latency-us 10 50 200] [--rate-gbit 1 10 25] [--rounds 200]

Prints a table; needs what ``make testbed`` needs, and Janus.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.testbed.bed import Testbed
from benchmarks.testbed.spec import LinkSpec, TestbedError

STACKS = ("link-ucx", "link-tcp", "socket")
SIZES = (64, 64 << 10, 2 << 20)


def _end(arguments: argparse.Namespace) -> None:
    """One end, inside a node: `benchmarks/transport/pingpong.py` with another host and other sizes."""
    import structlog
    from benchmarks.transport import pingpong

    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    vars(pingpong).update(SIZES=SIZES, HOST="0.0.0.0" if arguments.serve else arguments.host)
    if arguments.serve:
        pingpong.serve(arguments.stack, "uvloop")
        return

    few: int = max(10, arguments.rounds // 10)

    def rounds(size: int) -> int:
        return few if size >= 1 << 20 else few * 10

    if arguments.stack == "socket":
        rtt, _ = pingpong.ping_socket(arguments.port, rounds)
    else:
        rtt, _ = pingpong.run_loop(pingpong.ping_link(arguments.stack[5:], arguments.port, rounds), "uvloop")
    print(json.dumps(pingpong.summary(rtt)))


def round_trips(bed: Testbed, stack: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return median and 99th percentile in microseconds per payload size, from the first node to the second."""
    client, server = bed.nodes[:2]
    program = [sys.executable, "-m", "benchmarks.testbed.links", "--stack", stack, "--rounds", str(rounds)]
    serving = bed.popen(server, [*program, "--serve"], stdout=subprocess.PIPE, text=True)
    try:
        port = serving.stdout.readline().strip() if serving.stdout else ""
        argv = [*bed.exec_prefix(client), *program, "--host", bed.address(server), "--port", port]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, timeout=120)
    finally:
        serving.kill()
        serving.wait()
    if done.returncode:
        raise TestbedError(f"{stack} between {client} and {server} failed with exit status {done.returncode}")
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def _row(spec: LinkSpec, stack: str, measured: dict[str, dict[str, Any]]) -> str:
    cells = [f"{measured[str(size)]['p50']:.0f} ({measured[str(size)]['p99']:.0f})" for size in SIZES]
    return f"| {spec.latency_us:g} | {spec.rate_gbit:g} | {stack} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-us", type=float, nargs="+", default=[10, 50, 200])
    parser.add_argument("--rate-gbit", type=float, nargs="+", default=[1, 10, 25])
    parser.add_argument("--rounds", type=int, default=200, help="round trips per size; a tenth, but 10, from 1 MiB on")
    parser.add_argument("--stack", choices=STACKS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--host", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.stack:
        _end(arguments)
        return
    print("| latency us | Gbit/s | stack | 64 B p50 (p99) us | 64 KiB | 2 MiB |")
    print("|-:|-:|-|-:|-:|-:|")
    with Testbed(("a0", "e0")) as bed:
        for latency_us in arguments.latency_us:
            for rate_gbit in arguments.rate_gbit:
                spec = LinkSpec(latency_us=latency_us, rate_gbit=rate_gbit)
                bed.set_link(spec)
                for stack in STACKS:
                    print(_row(spec, stack, round_trips(bed, stack, arguments.rounds)), flush=True)


if __name__ == "__main__":
    main()
