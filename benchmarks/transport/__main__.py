"""``python -m benchmarks.transport``: round trips of Janus links beside ucxx itself and plain sockets, on this machine.

Each stack has two processes, and all stacks take turns, a few round trips of one size at a time, so that whatever else
the machine does meets all of them. Prints the tables; with ``--record`` also writes the result file and
docs/transport.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_into
from benchmarks.serving.machine import CpuMeter, commit, hardware
from benchmarks.transport.pingpong import HOST, SIZES, STACKS
from benchmarks.transport.report import tables

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "transport.json"
_DOCUMENT = _REPOSITORY / "docs" / "transport.md"
#: Round trips in a turn: enough for a median, few enough that a turn is over in milliseconds.
_TRIPS = 100
_BYTES_PER_TURN = 32 << 20


class Pair:
    """Both processes of a stack. Where one has a thread that never sleeps, they are stopped between their turns."""

    def __init__(self, stack: str, loop: str) -> None:
        program = [sys.executable, "-m", "benchmarks.transport.process", stack, loop]
        self.server = subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY)
        assert self.server.stdout is not None
        port = self.server.stdout.readline().strip()
        self.client = subprocess.Popen(
            [*program, f"{HOST}:{port}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_REPOSITORY
        )
        self._stands_still = stack == "ucxx-public"

    def turn(self, size: int) -> dict[str, Any]:
        """Return the seconds of some round trips of ``size`` bytes, and of processor time at the client."""
        assert self.client.stdin is not None
        assert self.client.stdout is not None
        count = max(8, min(_TRIPS, _BYTES_PER_TURN // size))
        self._signal(signal.SIGCONT)
        self.client.stdin.write(f"{size} {count}\n")
        self.client.stdin.flush()
        answer = self.client.stdout.readline()
        if not answer:
            raise RuntimeError(f"the client of {self.client.args!r} has died")
        result: dict[str, Any] = json.loads(answer)
        self._signal(signal.SIGSTOP)
        return result

    def _signal(self, number: signal.Signals) -> None:
        if self._stands_still:
            self.server.send_signal(number)
            self.client.send_signal(number)

    def end(self) -> None:
        """Kill both."""
        for process in (self.client, self.server):
            process.kill()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
            process.wait()


def measure(stacks: Sequence[str], sizes: Sequence[int], rounds: int, loop: str) -> tuple[list[dict[str, Any]], float]:
    """Return the figures per stack and size, and how many cores others used meanwhile.

    ``trip_us`` is one way, half a round trip: the median of the turns' medians. ``turns_us`` has these, in the order in
    which all stacks took turns. ``client_cpu_us`` is the measuring process's processor time per round trip.
    """
    pairs: dict[str, Pair] = {}
    turns: dict[tuple[str, int], list[dict[str, Any]]] = {(stack, size): [] for size in sizes for stack in stacks}
    order = random.Random(1)
    try:
        for stack in stacks:
            pairs[stack] = Pair(stack, loop)
            pairs[stack].turn(sizes[0])
        meter = CpuMeter({"own": [os.getpid()]})
        for _ in range(rounds):
            for size in sizes:
                for stack in order.sample(list(stacks), len(stacks)):
                    turns[stack, size].append(pairs[stack].turn(size))
        others_cores = meter.read().others_cores
    finally:
        for pair in pairs.values():
            pair.end()
    return [_figures(stack, size, taken) for (stack, size), taken in turns.items()], others_cores


def _figures(stack: str, size: int, turns: list[dict[str, Any]]) -> dict[str, Any]:
    medians = [statistics.median(turn["trips_s"]) * 0.5e6 for turn in turns]
    every = sorted(trip for turn in turns for trip in turn["trips_s"])
    return {
        "stack": stack,
        "bytes": size,
        "trip_us": round(statistics.median(medians), 1),
        "best_us": round(min(medians), 1),
        "p99_us": round(every[int(len(every) * 0.99)] * 0.5e6, 1),
        "client_cpu_us": round(statistics.median(turn["cpu_s"] / len(turn["trips_s"]) * 1e6 for turn in turns), 1),
        "turns_us": [round(median, 1) for median in medians],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="turns per stack and size (default: %(default)s)")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--stacks", nargs="+", choices=STACKS, default=STACKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="bytes of payload")
    parser.add_argument("--record", action="store_true", help="write the result file and docs/transport.md")
    given = parser.parse_args(arguments)
    load_before = os.getloadavg()[0]
    figures, others_cores = measure(given.stacks, given.sizes, given.rounds, given.loop)
    result = {
        "command": shlex.join(
            ["python", "-m", "benchmarks.transport", *(sys.argv[1:] if arguments is None else arguments)]
        ),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
        "load": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "others_cores": round(others_cores, 2),
        "rounds": given.rounds,
        "loop": given.loop,
        "figures": figures,
    }
    text = tables(result)
    print(text)
    if given.record:
        _RESULT.write_text(json.dumps(result, indent=1) + "\n")
        write_into(_DOCUMENT, text, result="transport.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
