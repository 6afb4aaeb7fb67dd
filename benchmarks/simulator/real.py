"""The points on real clusters: every request timed by its client, and what the router chose."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from benchmarks.serving.machine import CpuMeter
from benchmarks.simulator.observed import Observed, Seen, table_of
from benchmarks.simulator.pace import ALIKE, Pace, memory_gb_s
from benchmarks.simulator.points import Cluster, ModelName, Point

from janus.chaos.scenario import ClusterNeeds
from janus.chaos.stream import Sample, complete
from janus.chaos.suite import with_cluster
from janus.cluster.environment import usable_cores
from janus.cluster.state import ClusterState, RunDirectory
from janus.cluster.trace_client import TraceClient
from janus.profiling.models import Measured
from janus.simulation.workloads import ClosedLoop

_TIMEOUT_S = 120.0
#: Of each point so many runs at the pace of the profile, where that many are to be had in ``_MOST``. Of those that
#: others disturbed least, within ``_ALIKE`` cores, the median TPOT's counts.
RUNS = 3
_MOST = 9
_ALIKE = 0.1
#: As the shipped profile was measured: one step at a time, one way to exchange; all instances share the cores, as
#: ``janus up`` has it.
OPTIONS: dict[str, str | int | float | bool] = {
    "dtype": "float32",
    "micro-batches": "1",
    "exchange": "direct",
    "restart": "never",
    "placement": "static",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of one point."""

    samples: list[Sample]
    wall_s: float
    others_cores: float
    pace: Pace

    @property
    def tpot_s(self) -> float:
        """Mean over the requests."""
        return statistics.fmean(sample.tpot_s for sample in self.samples if sample.tokens > 1)


async def observe(
    models: dict[ModelName, Measured],
    points: Sequence[Point],
    tell: Callable[[str], None],
    *,
    reference_gb_s: float = 0.0,
) -> list[Observed]:
    """Run all points; a cluster is started once for those in a row that share it.

    ``reference_gb_s``: the machine's pace when the profile was measured; 0 = any will do.
    """
    found: list[Observed] = []
    for cluster, some in groupby(points, key=lambda point: point.cluster):
        mine = list(some)
        measured = models[cluster.model]

        async def work(name: str, cluster: Cluster = cluster, mine: list[Point] = mine) -> None:
            state = RunDirectory(name).read()
            client = _Client(state, models[cluster.model].vocab_size)
            await client.run(mine[0])  # what is slow only the first time
            seen = [await _observed(client, point, reference_gb_s, tell) for point in mine]
            trace = await asyncio.to_thread(lambda: TraceClient(name=name).fetch())
            found.append(
                Observed(
                    cluster=cluster,
                    sizes=models[cluster.model].sizes,
                    seen=tuple(seen),
                    a_max=table_of(cluster, models[cluster.model].sizes, np.asarray(trace.expert_ids)),
                )
            )

        needs = ClusterNeeds(attention=cluster.attention, experts=cluster.experts, options=OPTIONS)
        before = len(found)
        await with_cluster(needs, work, model=measured.path, name=f"simulator-{os.getpid()}", tell=lambda _: None)
        if len(found) == before:
            raise RuntimeError(f"{mine[0].name}: the cluster ended before it was measured; see its log, and run again")
    return found


async def _observed(client: _Client, point: Point, reference: float, tell: Callable[[str], None]) -> Seen:
    runs: list[Run] = []
    cores = usable_cores()
    pace = await asyncio.to_thread(memory_gb_s, cores)
    while len(alike := at_pace(runs, reference)) < RUNS and len(runs) < _MOST:
        meter = client.meter()
        samples, wall_s = await client.run(point)
        others, before = meter.read().others_cores, pace
        pace = await asyncio.to_thread(memory_gb_s, cores)
        runs.append(Run(samples=samples, wall_s=wall_s, others_cores=others, pace=Pace(before, pace)))
    least = min(run.others_cores for run in alike)
    quiet = sorted((run for run in alike if run.others_cores <= least + _ALIKE), key=lambda run: run.tpot_s)
    chosen = quiet[len(quiet) // 2]
    seen = Seen(
        point=point,
        tpot_s=chosen.tpot_s,
        ttft_s=statistics.fmean(sample.ttft_s for sample in chosen.samples),
        tokens_per_s=sum(sample.tokens for sample in chosen.samples) / chosen.wall_s,
        others_cores=round(chosen.others_cores, 3),
        runs_tpot_s=tuple(run.tpot_s for run in runs),
        memory_gb_s=chosen.pace.mean,
    )
    tell(
        f"{point.name}: TPOT {1e3 * seen.tpot_s:.2f} ms, {seen.tokens_per_s:.0f} tokens/s, others "
        f"{seen.others_cores:.2f} cores, memory {seen.memory_gb_s:.1f} GB/s, {len(runs)} runs"
    )
    return seen


def at_pace(runs: Sequence[Run], reference_gb_s: float, *, most: int = _MOST) -> list[Run]:
    """Return those at the pace of ``reference_gb_s``, all if it is 0; of ``most`` runs, which are all, the nearest."""
    if not reference_gb_s:
        return list(runs)
    alike = [run for run in runs if run.pace.differs(reference_gb_s) <= ALIKE]
    if len(alike) < RUNS and len(runs) >= most:
        return sorted(runs, key=lambda run: run.pace.differs(reference_gb_s))[:RUNS]
    return alike


class _Client:
    """Sends a point's requests to one cluster."""

    def __init__(self, state: ClusterState, vocab_size: int) -> None:
        self._state = state
        self._vocab_size = vocab_size
        self._random = random.Random(0)

    def meter(self) -> CpuMeter:
        """Of what neither the cluster nor this process uses."""
        return CpuMeter({"own": [os.getpid()], "cluster": [instance.pid for instance in self._state.instances]})

    async def run(self, point: Point) -> tuple[list[Sample], float]:
        """Return every request's times, and the seconds that all took."""
        samples: list[Sample] = []
        started = time.perf_counter()

        async def ask(prompt: int, output: int) -> None:
            sample = await complete(f"{self._state.url}/v1", self._body(prompt, output), timeout_s=_TIMEOUT_S)
            if not sample.ok or sample.tokens != output:
                raise RuntimeError(f"{point.name}: a request failed: {sample.error or sample.tokens}")
            samples.append(sample)

        async def at(when: float, prompt: int, output: int) -> None:
            await asyncio.sleep(max(0.0, when - (time.perf_counter() - started)))
            await ask(prompt, output)

        async def stream() -> None:
            for _ in range(point.rounds):
                await ask(point.prompt, point.output)

        async with asyncio.TaskGroup() as tasks:
            if isinstance(point.workload(), ClosedLoop):
                for number in range(point.streams):
                    tasks.create_task(stream(), name=f"stream-{number}")
            else:
                for number, (when, prompt, output) in enumerate(point.arrivals()):
                    tasks.create_task(at(when, prompt, output), name=f"request-{number}")
        return samples, time.perf_counter() - started

    def _body(self, prompt: int, output: int) -> dict[str, object]:
        return {
            "model": self._state.served_model_name,
            "prompt": [self._random.randrange(2, self._vocab_size) for _ in range(prompt)],
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
        }


def models(directory: Path) -> dict[ModelName, Measured]:
    """Return the checkpoints; the one with random weights is written into ``directory``."""
    from janus.profiling.models import measured, write_models

    bundled = Path(__file__).parents[2] / "models" / "janus-tiny"
    large = next(m for m in write_models(directory, dtype="float32", quick=True) if m.path.name == "random-large")
    return {"tiny": measured(bundled, dtype="float32"), "large": large}
