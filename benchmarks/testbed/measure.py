"""Round trip and rate between two nodes, by ``probe.py`` at either end."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.testbed.spec import Measured, TestbedError

#: Isolated and without site-packages: starts in a third of the time.
PROBE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("probe.py"))]
_TIMEOUT_S = 30.0


def between(
    source: Sequence[str], destination: Sequence[str], address: str, *, rounds: int, seconds: float
) -> Measured:
    """Measure from one node to another, given what to put before a command line to run it in either.

    Raises:
        TestbedError: they cannot talk to each other.
    """
    serve = [*destination, *PROBE, "serve"]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip()
            done = subprocess.run(
                [*source, *PROBE, "measure", address, port, str(rounds), str(seconds)],
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S + seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise TestbedError(f"no answer from {address} in {error.timeout:g} s") from error
        finally:
            server.kill()
    if done.returncode:
        raise TestbedError(f"cannot measure to {address}: {done.stderr.strip().rpartition(chr(10))[2]}")
    return summary(json.loads(done.stdout))


def summary(result: dict[str, Any]) -> Measured:
    """Return the figures from what ``probe.py measure`` printed."""
    rtt = sorted(result["rtt_us"])
    return Measured(
        rtt_p50_us=statistics.median(rtt),
        rtt_p99_us=rtt[int(len(rtt) * 0.99)],
        gbit_per_s=result["bytes"] * 8 / result["seconds"] / 1e9,
    )
