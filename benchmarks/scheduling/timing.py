"""CPU time per call of the compiled schedulers, as an attention instance makes them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.scheduling.quality import POLICIES
from benchmarks.scheduling.routing import SHAPES, Trace, seeded, synthetic

from janus.model.kernels.scheduling import fastest_scheduler

#: Different batches in turn, so that no branch predictor learns one by heart.
_BATCHES = 32
_ROUTING = "uniform"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What to time, and for how long each."""

    #: Batch sizes with every policy, on ``detail``'s shape and 16 instances.
    batches: Sequence[int]
    #: Shapes timed with aebs at 64 and 4096 tokens, on each of these numbers of instances.
    shapes: Sequence[str]
    instances: Sequence[int]
    seconds: float
    detail: str = "qwen3-235b"


def measure_times(timing: Timing) -> Iterator[dict[str, Any]]:
    """Yield one entry per shape, number of instances, policy and batch size; microseconds of one call."""
    for shape in SHAPES:
        if shape.name == timing.detail:
            trace = synthetic(shape, _ROUTING)
            for size in timing.batches:
                yield from (_entry(trace, 16, policy, size, timing.seconds) for policy in POLICIES)
        if shape.name in timing.shapes:
            trace = synthetic(shape, _ROUTING)
            for instances in timing.instances:
                if shape.name != timing.detail or instances != 16:
                    yield from (_entry(trace, instances, "aebs", size, timing.seconds) for size in (64, 4096))


def _entry(trace: Trace, instances: int, policy: str, size: int, seconds: float) -> dict[str, Any]:
    placement = trace.placement(instances)
    random = seeded("times", trace.shape, instances, size)
    batches = [trace.batch(random, size)[0] for _ in range(_BATCHES)]
    scheduler = fastest_scheduler(policy)
    spent: list[int] = []
    until = time.perf_counter() + seconds
    for ids_BK in batches:
        scheduler(ids_BK, placement, 0)
    while time.perf_counter() < until or len(spent) < _BATCHES:
        for ids_BK in batches:
            started = time.perf_counter_ns()
            scheduler(ids_BK, placement, 0)
            spent.append(time.perf_counter_ns() - started)
    return {
        "shape": trace.shape.name,
        "routing": trace.routing,
        "instances": instances,
        "slots": placement.slots_per_instance,
        "policy": policy,
        "batch": size,
        "median": round(statistics.median(spent) / 1e3, 2),
        "best": round(min(spent) / 1e3, 2),
        "calls": len(spent),
    }
