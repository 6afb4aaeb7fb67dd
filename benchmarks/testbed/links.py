"""Round trips of Janus links between two nodes: the ends of `benchmarks/transport/pingpong.py`, one in either node."""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys

from benchmarks.testbed.bed import Testbed
from benchmarks.testbed.spec import TestbedError

STACKS = ("link-ucx", "link-tcp", "socket")
SIZES = (64, 64 << 10, 2 << 20)
_TIMEOUT_S = 120


def round_trips(bed: Testbed, stack: str, rounds: int) -> dict[str, dict[str, float]]:
    """Return p50 and p99 in microseconds per payload size, from the first node to the second.

    Args:
        bed: a testbed that is up.
        stack: one of ``STACKS``; "socket" is plain blocking sockets.
        rounds: round trips per size; a tenth, but at least 10, from 1 MiB on.

    Raises:
        TestbedError: the two nodes cannot talk to each other.
    """
    client, server = bed.nodes[:2]
    program = [sys.executable, "-m", "benchmarks.testbed.links", stack]
    serving = bed.popen(server, program, stdout=subprocess.PIPE, text=True)
    try:
        port = serving.stdout.readline().strip() if serving.stdout else ""
        argv = [*bed.exec_prefix(client), *program, "--client", bed.address(server), port, str(rounds)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False, timeout=_TIMEOUT_S)
    finally:
        serving.kill()
        serving.wait()
        if serving.stdout:
            serving.stdout.close()
    if done.returncode:
        raise TestbedError(f"{stack} between {client} and {server} failed with exit status {done.returncode}")
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def _main() -> None:
    """One end, inside a node."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stack", choices=STACKS)
    parser.add_argument("--client", nargs=3, metavar=("ADDRESS", "PORT", "ROUNDS"))
    arguments = parser.parse_args()
    import structlog
    from benchmarks.transport import pingpong

    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    vars(pingpong).update(SIZES=SIZES, HOST=arguments.client[0] if arguments.client else "0.0.0.0")
    if not arguments.client:
        pingpong.serve(arguments.stack, "uvloop")
        return
    port, rounds = map(int, arguments.client[1:])

    def how_often(size: int) -> int:
        return rounds if size < 1 << 20 else max(10, rounds // 10)

    if arguments.stack == "socket":
        rtt, _ = pingpong.ping_socket(port, how_often)
    else:
        rtt, _ = pingpong.run_loop(pingpong.ping_link(arguments.stack[5:], port, how_often), "uvloop")
    print(json.dumps(pingpong.summary(rtt)))


if __name__ == "__main__":
    _main()
