"""``python -m benchmarks.exchange.ladder``: time per output token of a whole cluster, up the paper's ladder.

The paper's figure 12: gate with the experts or with attention, one phase or two, token-balanced scheduling or AEBS. A
cluster of 4 attention and 4 expert instances on 2 + 2 nodes of the testbed, with the bundled model, is started for each
step, in turn, several times over, and measured once every stream has had some tokens. Adds ``fig12`` and ``ladder`` to
benchmarks/results/exchange.json, and a table to docs/exchange.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.exchange.record import climbed, update
from benchmarks.markdown import table, write_into
from benchmarks.serving.machine import commit, hardware
from benchmarks.testbed import LinkSpec, Testbed, unavailable

from janus.cluster.environment import child_environment
from janus.cluster.instances import MODULES
from janus.messages.control import Role

_REPOSITORY = Path(__file__).parents[2]
_RESULT = _REPOSITORY / "benchmarks" / "results" / "exchange.json"
_DOCUMENT = _REPOSITORY / "docs" / "exchange.md"
_MODEL = _REPOSITORY / "models" / "janus-tiny"
_CONTROLLER_PORT, _HTTP_PORT = 7700, 8000
_START_S, _LOAD_S = 120.0, 300.0
#: Tokens of each stream before it is measured: in so many layers auto has tried every way.
_WARM_TOKENS = 96


@dataclass(frozen=True, slots=True)
class Step:
    """One cluster of the ladder."""

    name: str
    exchange: str
    gate: str
    scheduler: str


STEPS = (
    Step("1PC + EGate", "direct", "expert", "token-balanced"),
    Step("1PC + AGate", "direct", "attention", "token-balanced"),
    Step("2PC + EGate", "two-phase", "expert", "token-balanced"),
    Step("2PC + AGate", "two-phase", "attention", "token-balanced"),
    Step("2PC + AGate + AEBS", "two-phase", "attention", "aebs"),
    Step("auto + AGate + AEBS", "auto", "attention", "aebs"),
)


class Cluster:
    """Every service of Janus, on the nodes of a testbed."""

    def __init__(self, bed: Testbed, step: Step, *, instances: int, slots: int, logs: Path) -> None:
        self._bed = bed
        self._step = step
        self._count = instances
        self._slots = slots
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start everything and wait until the gateway has experts and attention behind it."""
        step, count = self._step, self._count
        expected = {"expect_attention": count, "expect_experts": count, "expect_gateways": 1}
        self._spawn("controller", "controller", "a0", port=_CONTROLLER_PORT, slots_per_instance=self._slots, **expected)
        self._spawn("gateway", "gateway", "a0", http_port=_HTTP_PORT)
        for index in range(count):
            self._spawn(
                "attention",
                f"attention-{index}",
                f"a{2 * index // count}",
                threads=1,
                exchange=step.exchange,
                gate=step.gate,
                scheduler=step.scheduler,
                micro_batches=1,
            )
            self._spawn("expert", f"expert-{index}", f"e{2 * index // count}", threads=1, gate=step.gate)
        self._await_ready()

    def _spawn(self, role: Role, name: str, node: str, **options: Any) -> None:
        given = {"model": _MODEL, "name": name, "node": node, "host": self._bed.address(node), **options}
        if role != "controller":
            given["controller"] = f"{self._bed.address('a0')}:{_CONTROLLER_PORT}"
        command = [sys.executable, "-m", MODULES[role]]
        for key, value in given.items():
            command += [f"--{key.replace('_', '-')}", str(value)]
        with (self._logs / f"{name}.log").open("wb") as log:
            environment = child_environment(role, 1, secret="a secret of the ladder", base=os.environ)
            process = self._bed.popen(node, command, env=environment, stdout=log, stderr=log, cwd=_REPOSITORY)
        self._processes.append(process)

    def _await_ready(self) -> None:
        """Ask for one token until there is one: only then every instance is linked."""
        deadline = time.monotonic() + _START_S
        while True:
            with contextlib.suppress(RuntimeError):
                self.load(concurrency=1, requests=1, max_tokens=2)
                return
            dead = [process.args for process in self._processes if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(f"the cluster did not become ready, see {self._logs}; ended: {dead}")
            time.sleep(0.2)

    def load(self, *, concurrency: int, requests: int, max_tokens: int) -> dict[str, Any]:
        """Run the load client beside the gateway; returns its report.

        Raises:
            RuntimeError: a request was not answered to its end.
        """
        command = [sys.executable, "-m", "benchmarks.load.client", "--url", f"http://127.0.0.1:{_HTTP_PORT}/v1"]
        command += ["--concurrency", str(concurrency), "--requests", str(requests), "--max-tokens", str(max_tokens)]
        with self._bed.popen(
            "a0", command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=_REPOSITORY
        ) as client:
            try:
                text, _ = client.communicate(timeout=_LOAD_S)
            except subprocess.TimeoutExpired:
                client.kill()
                raise RuntimeError("the load did not end in time") from None
        report: dict[str, Any] = json.loads(text) if text.strip() else {"errors": "no report"}
        if report["errors"]:
            raise RuntimeError(f"requests failed: {report['errors']}")
        return report

    def stop(self) -> None:
        """End every process."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(10)


@contextlib.contextmanager
def running(bed: Testbed, step: Step, *, instances: int, slots: int) -> Iterator[Cluster]:
    """A cluster that is ready, and gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="janus-ladder-") as logs:
        cluster = Cluster(bed, step, instances=instances, slots=slots, logs=Path(logs))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return TPOT and throughput by step and number of streams."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {step.name: {} for step in STEPS}
    streams = [int(text) for text in given.streams.split(",")]
    latency_us, rate_gbit = (float(text) for text in given.network.split("/"))
    with Testbed(("a0", "a1", "e0", "e1"), LinkSpec(latency_us=latency_us, rate_gbit=rate_gbit)) as bed:
        for number in range(given.rounds):
            for step in STEPS:
                with running(bed, step, instances=given.instances, slots=given.slots) as cluster:
                    for concurrency in streams:
                        cluster.load(concurrency=concurrency, requests=concurrency, max_tokens=_WARM_TOKENS)
                        report = cluster.load(
                            concurrency=concurrency, requests=concurrency, max_tokens=given.max_tokens
                        )
                        turn = {
                            "tpot_ms": report["tpot_ms"]["mean"],
                            "tokens_per_s": report["output_tokens_per_s"],
                        }
                        found[step.name].setdefault(str(concurrency), []).append(turn)
                        print(
                            f"round {number}: {step.name}, {concurrency} streams: {turn}", file=sys.stderr, flush=True
                        )
    return {
        "command": shlex.join(["python", "-m", "benchmarks.exchange.ladder", *sys.argv[1:]]),
        "commit": commit(_REPOSITORY),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": hardware(os.cpu_count() or 1),
        "instances": [given.instances, given.instances],
        "slots_per_instance": given.slots,
        "latency_us": latency_us,
        "rate_gbit": rate_gbit,
        "steps": {
            name: {
                concurrency: {
                    "tpot_ms": statistics.median(turn["tpot_ms"] for turn in turns),
                    "tpot_ms_each": [turn["tpot_ms"] for turn in turns],
                    "tokens_per_s": statistics.median(turn["tokens_per_s"] for turn in turns),
                }
                for concurrency, turns in by_streams.items()
            }
            for name, by_streams in found.items()
        },
    }


def tables(ladder: dict[str, Any]) -> str:
    """Return the ladder as Markdown."""
    streams = list(next(iter(ladder["steps"].values())))
    heading = ["step", *(f"TPOT, {n} streams" for n in streams), *(f"tokens/s, {n}" for n in streams)]
    rows = [
        [
            name,
            *(f"{by[n]['tpot_ms']:.1f} ms" for n in streams),
            *(f"{by[n]['tokens_per_s']:.0f}" for n in streams),
        ]
        for name, by in ladder["steps"].items()
    ]
    about = (
        f"`{ladder['command']}`, {ladder['date']}, commit {ladder['commit']}, {ladder['hardware']['cpu']}: "
        f"{ladder['instances'][0]} attention and {ladder['instances'][1]} expert instances on 2 + 2 nodes, "
        f"{ladder['slots_per_instance']} slots per instance, {ladder['latency_us']:g} us and {ladder['rate_gbit']:g} "
        f"Gbit/s between nodes, {ladder['hardware']['cores_used']} cores for everything."
    )
    return f"{about}\n\n{table([heading, *rows])}\n"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange.ladder", description=__doc__)
    parser.add_argument("--instances", type=int, default=4, help="attention, and expert, instances (%(default)s)")
    parser.add_argument("--slots", type=int, default=6, help="slots per expert instance (%(default)s)")
    parser.add_argument("--streams", default="16,64", help="concurrent requests (%(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, help="output tokens per request (%(default)s)")
    parser.add_argument("--network", default="50/10", help="latency in us / rate in Gbit/s (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="clusters of each step (%(default)s)")
    parser.add_argument("--output", type=Path, default=_RESULT, help="result file that it is added to (%(default)s)")
    parser.add_argument("--document", type=Path, default=_DOCUMENT, help="document with the table, or none")
    given = parser.parse_args()
    problem = unavailable()
    if problem:
        print(f"no testbed here: {problem}", file=sys.stderr)
        return 0
    ladder = measure(given)
    update(given.output, {**climbed(ladder), "ladder": ladder})
    text = tables(ladder)
    if given.document.name != "none":
        write_into(given.document, text, result="exchange.json ladder")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
