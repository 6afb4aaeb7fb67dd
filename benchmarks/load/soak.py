"""Keep a cluster under load for minutes, then overload it: no error, no growth, refusals at once.

    python -m benchmarks.load.soak --streams 64 --minutes 3

Starts its own cluster (``janus up``), writes benchmarks/results/soak.json, and ends with status 1 when something is
wrong, each thing named in one line.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import random
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import uvloop
from benchmarks.load.client import LoadSpec, Spread, run_load
from benchmarks.load.cluster import RunningCluster, running_cluster
from benchmarks.load.watch import Watch, holdings
from benchmarks.serving.machine import commit, hardware

from janus.chaos.stream import Sample, complete

RESULTS = Path(__file__).parents[1] / "results" / "soak.json"

#: Growth between the second minute and the end that is still noise: allocator arenas, a log buffer, one connection.
RSS_SLACK_MB, RSS_SLACK_SHARE = 8.0, 0.02
FDS_SLACK = 2
#: A refusal that takes longer than this has queued somewhere.
REFUSAL_LIMIT_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakSpec:
    """How long and how hard."""

    model: str = "models/janus-tiny"
    attention: int = 1
    experts: int = 2
    streams: int = 64
    seconds: float = 180.0
    #: Requests of the overload, as a multiple of what the gateway admits.
    overload: int = 5

    @property
    def settle_s(self) -> float:
        """What a process holds after this long is what it needs: growth counts from here."""
        return self.seconds / 3


async def soak(spec: SoakSpec) -> dict[str, Any]:
    """Run it; the key ``problems`` is empty when all is well."""
    arguments = ["--model", spec.model, "--attention", str(spec.attention), "--experts", str(spec.experts)]
    # The gateway admits exactly what the soak sends, so that the overload is one by a known factor.
    limits = {"JANUS_GATEWAY_MAX_QUEUE": str(spec.streams)}
    async with running_cluster([*arguments, "--port", "0", "--dtype", "float32"], environment=limits) as cluster:
        load, growth = await _load(cluster, spec)
        overload = await _overload(cluster, spec)
        left = await _left_behind(cluster)
    problems = [*load.pop("problems"), *growth.pop("problems"), *overload.pop("problems"), *left]
    return {
        "problems": problems,
        "load": load,
        "growth": growth,
        "overload": overload,
        "command": f"python -m benchmarks.load.soak --streams {spec.streams} --minutes {spec.seconds / 60:g}",
        "hardware": hardware(os.cpu_count() or 1),
        "commit": commit(RESULTS.parents[2]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


async def _load(cluster: RunningCluster, spec: SoakSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    watch = Watch(cluster.processes)
    sampling = asyncio.create_task(watch.run(), name="watch")
    # Mixed lengths, so that requests begin and end at all times.
    shapes = [(16, 64), (48, 24), (120, 48), (5, 100)]
    per_shape = spec.streams // len(shapes)
    try:
        async with asyncio.TaskGroup() as tasks:
            runs = [
                tasks.create_task(
                    run_load(
                        cluster.url,
                        LoadSpec(
                            concurrency=per_shape,
                            duration_s=spec.seconds,
                            prompt_tokens=prompt,
                            max_tokens=output,
                            seed=prompt,
                        ),
                    ),
                    name=f"load-{prompt}-{output}",
                )
                for prompt, output in shapes
            ]
    finally:
        sampling.cancel()
    reports = [run.result() for run in runs]
    errors = sum((Counter(report.errors) for report in reports), Counter[str]())
    load = {
        "streams": per_shape * len(shapes),
        "seconds": spec.seconds,
        "requests": sum(report.requests for report in reports),
        "output_tokens": sum(report.output_tokens for report in reports),
        "output_tokens_per_s": round(sum(report.output_tokens_per_s for report in reports), 1),
        "by_shape": {f"{p}+{o}": report.as_json() for (p, o), report in zip(shapes, reports, strict=True)},
        "problems": [f"{count} requests failed: {error}" for error, count in errors.items()],
    }
    return load, _growth(watch, spec)


def _growth(watch: Watch, spec: SoakSpec) -> dict[str, Any]:
    window_s = spec.seconds / 6
    growth: dict[str, Any] = {"problems": []}
    for name in watch.seen:
        early = watch.medians(name, spec.settle_s, spec.settle_s + window_s)
        late = watch.medians(name, spec.seconds - window_s, spec.seconds)
        growth[name] = {"early": early, "late": late}
        allowed = {"rss_mb": max(RSS_SLACK_MB, RSS_SLACK_SHARE * early["rss_mb"])}
        for figure, before in early.items():
            # Connections of clients come and go; their median may sit one or two higher by chance.
            if late[figure] - before > allowed.get(figure, FDS_SLACK):
                growth["problems"].append(f"{name}: {figure} grew from {before} to {late[figure]}")
    return growth


async def _overload(cluster: RunningCluster, spec: SoakSpec) -> dict[str, Any]:
    count = spec.overload * spec.streams
    bodies = LoadSpec(prompt_tokens=16, max_tokens=64, seed=random.Random(1).randrange(1000))
    async with asyncio.TaskGroup() as tasks:
        requests = [
            tasks.create_task(complete(cluster.url, bodies.body(i), timeout_s=120.0), name=f"overload-{i}")
            for i in range(count)
        ]
    samples = [request.result() for request in requests]
    refused = [sample for sample in samples if sample.status in (429, 503)]
    waits = [sample.ended_at - sample.sent_at for sample in refused]
    problems = [f"an overloaded request was neither served nor refused: {s.error}" for s in samples if _lost(s)]
    if not refused:
        problems.append(f"nothing was refused of {count} requests at once")
    if waits and max(waits) > REFUSAL_LIMIT_S:
        problems.append(f"a refusal took {max(waits):.2f} s")
    problems += ["a refusal had no Retry-After"] * any(sample.retry_after_s is None for sample in refused)
    return {
        "requests": count,
        "served": sum(sample.ok for sample in samples),
        "refused": len(refused),
        "refusal_ms": Spread.of(waits),
        "problems": problems,
    }


def _lost(sample: Sample) -> bool:
    return not sample.ok and sample.status not in (429, 503)


async def _left_behind(cluster: RunningCluster) -> list[str]:
    """After the last request no client connection may be left on the gateway."""
    gateway = cluster.processes["gateway-0"]
    others = sum(name.startswith(("attention", "controller")) for name in cluster.processes)
    for _ in range(20):
        # UCX over TCP opens a few sockets per peer; client connections would be dozens.
        connections = holdings(gateway, 0.0).connections
        if connections <= 8 * others:
            return []
        await asyncio.sleep(0.5)
    return [f"the gateway still holds {connections} connections after the last request"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SoakSpec.__dataclass_fields__["model"].default)
    parser.add_argument("--attention", type=int, default=1, help="attention instances")
    parser.add_argument("--experts", type=int, default=2, help="expert instances")
    parser.add_argument("--streams", type=int, default=64, help="concurrent streams")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the result goes")
    given = parser.parse_args()
    spec = SoakSpec(
        model=given.model,
        attention=given.attention,
        experts=given.experts,
        streams=given.streams,
        seconds=60 * given.minutes,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(soak(spec))
    text = json.dumps(result, indent=2, default=asdict)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text + "\n")
    print(f"{result['load']['requests']} requests, {result['load']['output_tokens_per_s']} output tokens/s")
    print(f"overload: {result['overload']['served']} served, {result['overload']['refused']} refused at once")
    for problem in result["problems"]:
        print(f"problem: {problem}", file=sys.stderr)
    sys.exit(bool(result["problems"]))


if __name__ == "__main__":
    main()
