"""Measure an OpenAI-compatible endpoint under N concurrent streams.

    python -m benchmarks.load.client --url http://127.0.0.1:8000/v1 --concurrency 32

As a library: ``await run_load(url, LoadSpec(concurrency=32))``. The report says what the client itself cost in CPU.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import uvloop

from janus.chaos.stream import Sample, complete


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSpec:
    """What to send. Prompts are random token ids, so that no tokenizer and no prefix cache is measured."""

    concurrency: int = 1
    #: Requests in all; 0: as many as fit into ``duration_s``. All streams are kept busy until then.
    requests: int = 0
    duration_s: float = 0.0
    prompt_tokens: int = 16
    max_tokens: int = 64
    #: Prompt ids are drawn below this.
    vocab_size: int = 4096
    temperature: float = 0.0
    model: str | None = None
    seed: int = 0
    timeout_s: float = 300.0

    def body(self, index: int) -> dict[str, Any]:
        """The body of request ``index``; the same for the same seed."""
        draw = random.Random(self.seed * 1_000_003 + index)
        body: dict[str, Any] = {
            "prompt": [draw.randrange(1, self.vocab_size) for _ in range(self.prompt_tokens)],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "ignore_eos": True,
        }
        return body | ({"model": self.model} if self.model else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and percentiles, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread | None:
        """None of nothing."""
        if not seconds:
            return None
        ordered = sorted(1e3 * value for value in seconds)

        def at(share: float) -> float:
            return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

        mean = round(statistics.fmean(ordered), 3)
        return cls(mean=mean, p50=at(0.5), p90=at(0.9), p99=at(0.99), max=round(ordered[-1], 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What one run measured."""

    concurrency: int
    requests: int
    #: Requests that were not answered to their end, by what was said.
    errors: dict[str, int]
    output_tokens: int
    wall_s: float
    output_tokens_per_s: float
    ttft_ms: Spread | None
    #: Per request: time per output token after the first.
    tpot_ms: Spread | None
    #: Between two pieces of text of a request; a piece is what the server sent at once.
    itl_ms: Spread | None
    #: CPU time of this client per output token.
    client_cpu_us_per_token: float

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


async def run_load(url: str, spec: LoadSpec, *, on_sample: Callable[[Sample], None] | None = None) -> LoadReport:
    """Keep ``spec.concurrency`` streams busy and report. ``on_sample`` is called as each request ends."""
    samples: list[Sample] = []
    started, cpu = time.perf_counter(), time.process_time()
    total = spec.requests or (0 if spec.duration_s else spec.concurrency)
    indices = iter(range(total)) if total else iter(range(1 << 62))

    async def stream() -> None:
        for index in indices:
            if not total and time.perf_counter() - started >= spec.duration_s:
                return
            sample = await complete(url, spec.body(index), timeout_s=spec.timeout_s)
            samples.append(sample)
            if on_sample is not None:
                on_sample(sample)

    async with asyncio.TaskGroup() as tasks:
        for number in range(spec.concurrency):
            tasks.create_task(stream(), name=f"stream-{number}")
    return _report(spec, samples, time.perf_counter() - started, time.process_time() - cpu)


def _report(spec: LoadSpec, samples: Sequence[Sample], wall_s: float, cpu_s: float) -> LoadReport:
    good = [sample for sample in samples if sample.ok]
    tokens = sum(sample.tokens for sample in good)
    gaps = [b - a for sample in good for a, b in pairwise(sample.pieces_at)]
    return LoadReport(
        concurrency=spec.concurrency,
        requests=len(samples),
        errors=dict(Counter(sample.error for sample in samples if not sample.ok)),
        output_tokens=tokens,
        wall_s=round(wall_s, 4),
        output_tokens_per_s=round(tokens / wall_s, 2),
        ttft_ms=Spread.of([sample.ttft_s for sample in good]),
        tpot_ms=Spread.of([sample.tpot_s for sample in good if sample.tokens > 1]),
        itl_ms=Spread.of(gaps),
        client_cpu_us_per_token=round(1e6 * cpu_s / max(1, tokens), 2),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True, help="base URL, ending in /v1")
    parser.add_argument("--concurrency", type=int, default=1, help="streams at a time")
    parser.add_argument("--requests", type=int, default=0, help="requests in all (default: one per stream)")
    parser.add_argument("--duration", type=float, default=0.0, help="seconds, instead of --requests")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=4096, help="prompt ids are drawn below this")
    parser.add_argument("--model", help="name to ask for (default: leave it out)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spec = LoadSpec(
        concurrency=given.concurrency,
        requests=given.requests,
        duration_s=given.duration,
        prompt_tokens=given.prompt_tokens,
        max_tokens=given.max_tokens,
        vocab_size=given.vocab_size,
        model=given.model,
        seed=given.seed,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(run_load(given.url, spec))
    print(json.dumps(report.as_json(), indent=2))


if __name__ == "__main__":
    main()
