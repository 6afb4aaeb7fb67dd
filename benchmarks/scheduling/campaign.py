"""What the benchmark runs: its cases, on as many processes as there are cores."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from benchmarks.scheduling.layer_time import modelled
from benchmarks.scheduling.quality import Effort, measure
from benchmarks.scheduling.routing import JANUS_TINY, RECORDED, ROUTINGS, SHAPES, Trace, recorded, synthetic
from benchmarks.scheduling.timing import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured."""

    shapes: Sequence[str]
    instances: Sequence[int]
    effort: Effort
    tiny_instances: Sequence[int]
    tiny_effort: Effort
    timing: Timing
    #: Shapes, batch sizes and batches of each of the layer-time model, on 16 instances.
    modelled: tuple[Sequence[str], tuple[int, ...], int]

    def jobs(self) -> Iterator[tuple[str, str]]:
        """Yield (shape, routing) of every trace, the longest first."""
        names = [trace.routing for trace in recorded(RECORDED)]
        yield from ((JANUS_TINY.name, name) for name in names)
        yield from ((shape.name, routing) for shape in SHAPES if shape.name in self.shapes for routing in ROUTINGS)


def full(draws: float) -> Plan:
    """Return the plan of the result in the repository; ``draws`` scales the number of batches."""
    batches = {1: 1000, 4: 1000, 16: 1000, 64: 1000, 256: 500, 512: 250, 1024: 150, 4096: 50}
    tiny = {1: 400, 4: 400, 16: 400, 64: 200, 256: 50}
    return Plan(
        shapes=[shape.name for shape in SHAPES],
        instances=(6, 8, 12, 16, 32, 64),
        effort=Effort(batches={size: max(2, round(n * draws)) for size, n in batches.items()}, check_every=4),
        tiny_instances=(2, 3, 4, 6, 8),
        tiny_effort=Effort(batches={size: max(2, round(n * draws)) for size, n in tiny.items()}, check_every=4),
        timing=Timing(
            batches=(1, 4, 16, 64, 256, 1024, 4096),
            shapes=[shape.name for shape in SHAPES],
            instances=(16, 64),
            seconds=0.4,
        ),
        modelled=(("deepseek-v2", "deepseek-v3", "qwen3-235b"), (256, 1024, 4096, 16384, 65536), 5),
    )


def quick() -> Plan:
    """Return a plan of seconds, which shows that everything works and nothing about the figures."""
    effort = Effort(batches={1: 40, 64: 40, 1024: 5}, check_every=10)
    return Plan(
        shapes=["deepseek-v2"],
        instances=(6, 16),
        effort=effort,
        tiny_instances=(3, 4),
        tiny_effort=Effort(batches={4: 20, 16: 20}, check_every=10),
        timing=Timing(batches=(64, 4096), shapes=["deepseek-v2"], instances=(16,), seconds=0.02),
        modelled=(("deepseek-v2",), (1024, 16384), 1),
    )


def measure_cases(plan: Plan, workers: int) -> list[dict[str, Any]]:
    """Measure every trace; the order of the cases is that of the shapes, whichever is ready first."""
    jobs = [(plan, shape, routing) for shape, routing in plan.jobs()]
    if workers == 1:
        by_job = [_measure(job) for job in jobs]
    else:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            by_job = list(pool.map(_measure, jobs))
    cases = [case for cases in by_job for case in cases]
    return sorted(cases, key=lambda case: case["shape"] == JANUS_TINY.name)


def _measure(job: tuple[Plan, str, str]) -> list[dict[str, Any]]:
    plan, shape, routing = job
    started = time.perf_counter()
    if shape == JANUS_TINY.name:
        (trace,) = (trace for trace in recorded(RECORDED) if trace.routing == routing)
        cases = measure(trace, plan.tiny_instances, plan.tiny_effort)
    else:
        cases = measure(_synthetic(shape, routing), plan.instances, plan.effort)
    say(f"{shape}, {routing}: {time.perf_counter() - started:.1f} s")
    return cases


def _synthetic(name: str, routing: str) -> Trace:
    (shape,) = (shape for shape in SHAPES if shape.name == name)
    return synthetic(shape, routing)


def model_times(plan: Plan) -> list[dict[str, Any]]:
    """Return what the layer-time model says of each of its shapes."""
    shapes, sizes, batches = plan.modelled
    return [
        entry
        for shape in SHAPES
        if shape.name in shapes
        for routing in ROUTINGS
        for entry in modelled(synthetic(shape, routing), 16, sizes, batches)
    ]


def say(text: str) -> None:
    """Tell the terminal how far it is."""
    print(text, file=sys.stderr, flush=True)
