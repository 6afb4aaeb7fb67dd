"""Many random joins, leaves, kills and moves under load; what must hold is looked at after each.

    python -m benchmarks.chaos.soak [--events 200] [--seed 0]

After each event the cluster becomes whole, every expert has a replica, and every answer until then was right. At the
end, memory, file descriptors and connections of the processes that lived through it are what they were. Writes
benchmarks/results/chaos-soak.json, and ends with status 1 when something is wrong, each thing named in one line.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import random
import shlex
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from benchmarks.load.watch import Holdings, holdings, median
from benchmarks.serving.machine import commit, hardware

from janus.chaos.control import SocketControl
from janus.chaos.events import Bounds, Event, Sequence
from janus.chaos.judge import judge
from janus.chaos.load import TIMEOUT_S, Running, texts, undisturbed
from janus.chaos.scenario import ClusterNeeds, Load
from janus.chaos.suite import with_cluster
from janus.chaos.target import Look, Target
from janus.cluster.state import RunDirectory
from janus.errors import JanusError

RESULTS = Path(__file__).parents[1] / "results" / "chaos-soak.json"
ROOT = RESULTS.parents[2]
#: Of the numbers of instances at the start; 8 slots on any two of them hold all 16 experts of the bundled model.
NEEDS = ClusterNeeds(attention=2, experts=4, slots_per_instance=8)
#: Growth that is still noise: allocator arenas, a log buffer, a connection that is being opened.
RSS_SLACK_MB, RSS_SLACK_SHARE, FDS_SLACK = 16.0, 0.05, 3
#: Looks that a process is judged by, at its beginning and at its end.
_LOOKS = 3
_WHOLE_LIMIT_S = 60.0


@dataclass(slots=True)
class Soak:
    """One sequence of events on one cluster."""

    target: Target
    control: SocketControl
    running: Running
    reference: dict[str, list[str]]
    problems: list[str] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: int = 0
    #: Of them, those that came while there was no attention instance.
    refused: int = 0
    #: (instance, pid) -> what it held whenever the cluster had the numbers of instances of the start.
    held: dict[tuple[str, int], list[Holdings]] = field(default_factory=dict)

    async def run(self, sequence: Sequence, count: int) -> None:
        """Do every event, and look after each."""
        async with asyncio.TaskGroup() as group:
            looks: list[Look] = []
            watcher = group.create_task(self.target.watch(looks.append), name="watch")
            streams = group.create_task(self.running.run(), name="load")
            await self.running.until_begun(timeout_s=30.0)
            for event in sequence.draw(count):
                await asyncio.sleep(event.pause_s)
                looks.clear()
                await self._do(event)
                whole = await self._settled(event)
                self._judge(event, looks)
                if not whole:
                    break
                if (event.attention, event.experts) == (sequence.attention, sequence.experts):
                    self._hold()
            self.running.over.set()
            async with asyncio.timeout(2 * TIMEOUT_S):
                await streams
            watcher.cancel()
        self._answers("at the end")
        self.problems += self._growth()

    async def _do(self, event: Event) -> None:
        started = time.perf_counter()
        try:
            if event.do in ("join", "leave"):
                await self.control.scale(attention=event.attention, experts=event.experts)
            elif event.do == "kill":
                self.target.send(event.target, signal.SIGKILL)
            else:
                self.running.prompts = texts(event.prompts)
                await self.control.restart(event.target)
        except JanusError as error:
            self.problems.append(f"{event.index} ({event}): {error}")
        self.events.append({**asdict(event), "seconds": round(time.perf_counter() - started, 2)})

    async def _settled(self, event: Event) -> bool:
        started = time.perf_counter()
        try:
            look = await self.target.until_whole(timeout_s=_WHOLE_LIMIT_S)
        except JanusError as error:
            self.problems.append(f"{event.index} ({event}): {error}")
            return False
        self.events[-1]["whole_s"] = round(look.at - started, 2)
        least = look.placed.least_replicas if look.placed else None
        if not least:
            self.problems.append(f"{event.index} ({event}): the cluster is whole, and an expert has no replica")
        return True

    def _judge(self, event: Event, looks: list[Look]) -> None:
        """While an expert is nowhere, the controller must say so; every answer must be right."""
        silent = sum(not look.problems for look in looks if look.placed and look.placed.least_replicas == 0)
        if silent:
            self.problems.append(
                f"{event.index} ({event}): an expert is nowhere in {silent} looks, and nothing is said"
            )
        self._answers(f"{event.index} ({event})", alone=event.target.startswith("attention") and event.attention == 1)

    def _answers(self, when: str, *, alone: bool = False) -> None:
        """Judge what is over. ``alone``: the only attention instance was killed, so that new requests are refused."""
        over, self.running.requests = self.running.requests, []
        self.requests += len(over)
        for request in over:
            sample = request.sample
            verdict = judge(self.reference[request.prompt], sample.token_texts, whole=sample.ok)
            if alone and sample.error.startswith("503"):
                self.refused += 1
            elif sample.error:
                self.problems.append(f"{when}: client error: {sample.error}")
            if not verdict.right:
                self.problems.append(f"{when}: {verdict}")

    def _hold(self) -> None:
        for instance in self.target.state().instances:
            try:
                held = holdings(psutil.Process(instance.pid), time.perf_counter())
            except psutil.NoSuchProcess:
                continue
            self.held.setdefault((instance.name, instance.pid), []).append(held)

    def _growth(self) -> list[str]:
        """What a process holds more at its last looks than at its first: medians, as single ones meet connections."""
        found = []
        for (name, pid), looks in self.held.items():
            # The very first look may be of its start.
            early, late = looks[1 : 1 + _LOOKS], looks[-_LOOKS:]
            if len(looks) <= 2 * _LOOKS:
                continue
            before, after = median(early, "rss_mb"), median(late, "rss_mb")
            if after - before > max(RSS_SLACK_MB, RSS_SLACK_SHARE * before):
                found.append(f"{name} ({pid}): memory grew from {before:g} to {after:g} MiB")
            for figure in ("fds", "connections", "threads"):
                before, after = median(early, figure), median(late, figure)
                if after - before > FDS_SLACK:
                    found.append(f"{name} ({pid}): {figure} grew from {before:g} to {after:g}")
        return found


async def soak(name: str, *, count: int, seed: int, load: Load) -> dict[str, Any]:
    """Run it on the cluster ``name``; the key ``problems`` is empty when all is well."""
    target = Target(RunDirectory(name))
    prompts = texts(load.prompts)
    await target.until_whole(timeout_s=_WHOLE_LIMIT_S)
    reference = await undisturbed(target.url, load, prompts)
    running = Running(target.url, load, random.Random(seed), prompts)
    run = Soak(target, SocketControl(name), running, reference)
    bounds = Bounds(attention=(1, 3), experts=(3, 5))
    started = time.perf_counter()
    await run.run(Sequence(seed=seed, attention=NEEDS.attention, experts=NEEDS.experts, bounds=bounds), count)
    return {
        "problems": run.problems,
        "seed": seed,
        "streams": load.streams,
        "events_done": len(run.events),
        "requests": run.requests,
        "refused": run.refused,
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "held": {
            f"{name} ({pid})": [asdict(look) for look in (looks[0], looks[-1])]
            for (name, pid), looks in run.held.items()
        },
        "events": run.events,
    }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "janus-tiny")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    found: dict[str, Any] = {}

    async def work(name: str) -> None:
        found.update(await soak(name, count=given.events, seed=given.seed, load=Load(streams=given.streams)))

    asyncio.run(with_cluster(NEEDS, work, model=given.model, name="chaos-soak", tell=_tell))
    result = {
        "command": shlex.join(["python", "-m", "benchmarks.chaos.soak", *sys.argv[1:]]),
        "hardware": hardware(os.cpu_count() or 1),
        "commit": commit(ROOT),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **found,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{found['events_done']} events, {found['requests']} requests, {len(found['problems'])} problems")
    for problem in found["problems"]:
        print(f"problem: {problem}", file=sys.stderr)
    return int(bool(found["problems"]))


def _tell(line: str) -> None:
    print(f"chaos: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
