"""One run: a cluster of its own, the workload on it, and how many instances there were at what time."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from benchmarks.autoscale.quota import Quotas
from benchmarks.autoscale.replay import Outcome, replay
from benchmarks.load.cluster import running_cluster

from janus.cluster.state import ClusterState, RunDirectory
from janus.errors import ConfigError
from janus.simulation.workloads.workload import Workload

_LOOK_EVERY_S = 0.1
#: Instances do not spin while they wait: they would use their quota up for nothing. Whoever comes waits, and is not
#: sent away: a run that falls behind shows that in TTFT.
_ENVIRONMENT = {"JANUS_UCX_SPIN_US": "0", "JANUS_GATEWAY_MAX_QUEUE": "1024"}


@dataclass(slots=True)
class Watch:
    """Follows a cluster's state file: gives newcomers their quota, and notes the numbers when they change."""

    directory: RunDirectory
    quotas: Quotas
    #: (seconds since the start, attention instances, expert instances)
    counts: list[tuple[float, int, int]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Once."""
        try:
            state = self.directory.read()
        except ConfigError:
            return  # it starts or stops
        roles = [instance.role for instance in state.instances]
        pids = [instance.pid for instance in state.instances if instance.role in ("attention", "expert")]
        for pid in pids:
            self.quotas.hold(pid)
        self.quotas.keep(pids)
        now = (roles.count("attention"), roles.count("expert"))
        if not self.counts or self.counts[-1][1:] != now:
            self.counts.append((round(time.perf_counter() - self.started, 2), *now))

    def begin(self) -> None:
        """The workload begins now."""
        self.started, self.counts = time.perf_counter(), []
        self.look()

    def instance_minutes(self, end_s: float) -> float:
        """Attention and expert instances, integrated over time."""
        ends = [at for at, _, _ in self.counts[1:]] + [end_s]
        seconds = [
            (attention + experts) * (end - at) for (at, attention, experts), end in zip(self.counts, ends, strict=True)
        ]
        return round(sum(seconds) / 60, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one."""

    outcome: Outcome
    instance_minutes: float
    counts: list[tuple[float, int, int]]
    decisions: list[dict[str, Any]]

    @property
    def most(self) -> tuple[int, int]:
        """The largest numbers of each role."""
        return max(a for _, a, _ in self.counts), max(e for _, _, e in self.counts)


async def run(
    arguments: Sequence[str], workload: Workload, *, slo_tpot_s: float, cores: float, settle_s: float = 2.0
) -> Run:
    """Start a cluster with ``arguments`` of ``janus up``, replay the workload on it, stop it."""
    with Quotas(cores) as quotas:
        async with cluster(arguments) as (url, directory, state):
            watch = Watch(directory, quotas)
            watch.look()
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(watch.run(), name="watch")
                await replay(url, workload.between(0.0, settle_s), slo_tpot_s=slo_tpot_s)  # everything is warm then
                watch.begin()
                began = time.time()
                outcome = await replay(url, workload, slo_tpot_s=slo_tpot_s)
                watching.cancel()
            decisions = await _decisions(state, began)
    return Run(
        outcome=outcome,
        instance_minutes=watch.instance_minutes(outcome.wall_s),
        counts=watch.counts,
        decisions=decisions,
    )


@contextlib.asynccontextmanager
async def cluster(arguments: Sequence[str]) -> AsyncIterator[tuple[str, RunDirectory, ClusterState]]:
    """Run a cluster in a run directory of its own; yields its URL, the directory and its state."""
    with tempfile.TemporaryDirectory(prefix="janus-autoscale-") as runtime:
        environment = {**_ENVIRONMENT, "XDG_RUNTIME_DIR": runtime}
        async with running_cluster(arguments, environment=environment) as running:
            directory = RunDirectory("default", environ={**os.environ, **environment})
            yield running.url, directory, directory.read()


async def _decisions(state: ClusterState, began: float) -> list[dict[str, Any]]:
    """What the autoscaler decided since ``began``; nothing where there is none."""
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        response = await client.get(f"{state.controller_ops}/scaling")
    if response.status_code != 200:
        return []
    now = time.time()
    return [
        {
            "at_s": round(now - decision["age_s"] - began, 1),
            **{name: decision[name] for name in ("reason", "why", "present", "wanted", "correction")},
        }
        for decision in response.json()["decisions"]
        if now - decision["age_s"] >= began
    ]
