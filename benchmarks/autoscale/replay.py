"""Sends a workload's requests when they are due, and says what became of them."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from janus.chaos.stream import Sample, complete
from janus.simulation.workloads.workload import Workload

_TIMEOUT_S = 120.0
_VOCABULARY = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What clients saw."""

    requests: int
    errors: dict[str, int]
    #: Share of all requests whose TPOT, the mean over their tokens, was within the SLO; errors are outside it.
    slo_attainment: float
    output_tokens: int
    #: Seconds; percentiles over requests.
    tpot_s: dict[str, float]
    ttft_s: dict[str, float]
    #: From the first request to the end of the last answer.
    wall_s: float

    @property
    def client_errors(self) -> int:
        """Requests that were not answered to their end."""
        return sum(self.errors.values())


async def replay(url: str, workload: Workload, *, slo_tpot_s: float, seed: int = 0) -> Outcome:
    """Send every request of ``workload`` at its time, whatever became of those before."""
    started = time.perf_counter()
    draw = random.Random(seed)
    samples: list[Sample] = []

    async def one(at_s: float, body: dict[str, Any]) -> None:
        await asyncio.sleep(max(0.0, started + at_s - time.perf_counter()))
        samples.append(await complete(url, body, timeout_s=_TIMEOUT_S))

    async with asyncio.TaskGroup() as tasks:
        for number, (at_s, prompt, output) in enumerate(
            zip(workload.at_s, workload.prompt, workload.output, strict=True)
        ):
            body = {
                "prompt": [draw.randrange(1, _VOCABULARY) for _ in range(int(prompt))],
                "max_tokens": int(output),
                "temperature": 0,
                "ignore_eos": True,
            }
            tasks.create_task(one(float(at_s), body), name=f"request-{number}")
    return _outcome(samples, slo_tpot_s, time.perf_counter() - started)


def _outcome(samples: Sequence[Sample], slo_tpot_s: float, wall_s: float) -> Outcome:
    good = [sample for sample in samples if sample.ok]
    within = sum(sample.tpot_s <= slo_tpot_s for sample in good)
    return Outcome(
        requests=len(samples),
        errors=dict(Counter(f"{sample.status}: {sample.error}" for sample in samples if not sample.ok)),
        slo_attainment=round(within / len(samples), 4) if samples else 1.0,
        output_tokens=sum(sample.tokens for sample in good),
        tpot_s=_spread([sample.tpot_s for sample in good if sample.tokens > 1]),
        ttft_s=_spread([sample.ttft_s for sample in good]),
        wall_s=round(wall_s, 2),
    )


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    ranks = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
    found = {name: ordered[min(len(ordered) - 1, int(rank * len(ordered)))] for name, rank in ranks.items()}
    return {name: round(value, 5) for name, value in {"mean": sum(ordered) / len(ordered), **found}.items()}
