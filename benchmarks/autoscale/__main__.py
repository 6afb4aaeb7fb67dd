"""Replay a workload against a local cluster: autoscaled, and with fixed numbers of instances.

    python -m benchmarks.autoscale                        # a day of two minutes, made up
    python -m benchmarks.autoscale --trace azure.csv --start 3600 --shrink 16

Every attention and expert instance has a share of a core of its own (a cgroup quota), as if it ran on a device of its
own: instances of one machine share its cores otherwise, and more of them serve no more. Needs Linux and root for that.

First it is measured what one instance of each role gives few and many streams. The SLO is what it gives 40, and the day
that is made up has at its peak half as much load again as one of each bears within it; both can be given instead.

Fixed numbers that are tried: those that the autoscaled run had at most (provisioned for the peak), and some between
that and one of each; with ``--candidates planned``, those that the planner has on its frontier within the peak's, where
the SLO is just kept. The best of them is the one with the fewest instances that reaches the target.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import uvloop
from benchmarks.autoscale import candidates
from benchmarks.autoscale.calibration import OneOfEach, calibrate
from benchmarks.autoscale.quota import QuotaError, Quotas
from benchmarks.autoscale.runs import Run, run
from benchmarks.serving.machine import CpuMeter, commit, hardware

from janus.profiles import load_profile
from janus.simulation.workloads.spec import workload_of
from janus.simulation.workloads.workload import Workload
from janus_cli.plan import model_sizes
from janus_cli.plan_traffic import traffic_of

RESULTS = Path(__file__).parents[1] / "results" / "autoscale.json"
#: Of the day that is made up: the peak over the mean, and the mean tokens of prompts and answers.
PEAK, PROMPT, OUTPUT = 2.5, 24, 64
#: The planner is asked about the busiest stretch of so many seconds.
_BUSIEST_S = 15.0


def workload(given: argparse.Namespace, rate: float) -> Workload:
    """Return what is replayed; ``rate``: requests per second that one of each bears."""
    if given.trace:
        whole = workload_of(given.trace, duration_s=0.0)
        found = whole.between(given.start, given.start + given.seconds * given.speed).faster(given.speed)
    else:
        mean = given.peak * rate / PEAK
        day = f"diurnal:{mean:.3f},peak={PEAK},period={given.seconds},prompt={PROMPT},output={OUTPUT},spread=0.3"
        found = workload_of(given.workload or day, duration_s=given.seconds, seed=given.seed)
    shrunk = {name: (getattr(found, name) // given.shrink).clip(1, given.longest) for name in ("prompt", "output")}
    return replace(found, **shrunk)


def arguments(given: argparse.Namespace, attention: int, experts: int) -> list[str]:
    """Return those of ``janus up``."""
    return [
        *("--model", given.model, "--port", "0", "--threads", "1", "--log-format", "json"),
        *("--attention", str(attention), "--experts", str(experts), "--drain-timeout", "60"),
    ]


def autoscaled(given: argparse.Namespace, slo_s: float) -> list[str]:
    """Return those of the autoscaled run."""
    return [
        *arguments(given, 1, 1),
        *("--autoscale", "on", "--slo-tpot", str(slo_s), "--slo-percentile", str(given.percentile)),
        *("--max-attention", str(given.most), "--max-experts", str(given.most)),
        *("--scale-interval", str(given.interval), "--scale-look-back", str(given.look_back)),
        *("--scale-headroom", str(given.headroom)),
    ]


def fixed(most: tuple[int, int], tries: int) -> list[tuple[int, int]]:
    """Return the numbers to try, the peak's first and then fewer, evenly down to one of each."""
    attention, experts = most
    found: list[tuple[int, int]] = []
    for number in range(tries):
        share = 1 - number / max(1, tries - 1)
        counts = (1 + round(share * (attention - 1)), 1 + round(share * (experts - 1)))
        if counts not in found:
            found.append(counts)
    return found


def planned(
    given: argparse.Namespace, most: tuple[int, int], load: Workload, known: OneOfEach, slo_s: float
) -> list[tuple[int, int]]:
    """Return the numbers to try by the planner, with ``--hardware`` corrected by what one of each gives."""
    model, profile = model_sizes(given.model), candidates.apart(load_profile(given.hardware))
    traffic = traffic_of(load, _BUSIEST_S)
    factor = candidates.correction(
        model, profile, streams=known.middle, context=traffic.context, tpot_s=known.tpot_s(known.middle)
    )
    every = candidates.priced(most, model, profile, traffic, slo_s=slo_s, factor=factor)
    return candidates.frontier(every, most, slo_s=slo_s, most=given.tries)


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run everything; returns what is written."""
    meter = CpuMeter({})
    known = await calibrate(arguments(given, 1, 1), cores=given.cores, prompt=PROMPT, output=OUTPUT)
    print(f"one of each: {known}", file=sys.stderr)
    slo_s = _seconds(given.slo_tpot) if given.slo_tpot else round(known.tpot_s(known.middle), 3)
    load = workload(given, known.rate(slo_s, OUTPUT))
    print(
        f"{load.name}: {len(load)} requests in {load.duration_s:g} s, {load.tokens_per_s:.0f} tokens/s", file=sys.stderr
    )
    scaled = await run(autoscaled(given, slo_s), load, slo_tpot_s=slo_s, cores=given.cores)
    _tell("autoscaled", scaled)
    static: dict[str, Run] = {}
    if given.candidates == "planned":
        numbers = planned(given, scaled.most, load, known, slo_s)
    else:
        numbers = fixed(scaled.most, given.tries)
    for attention, experts in numbers:
        name = f"{attention}A{experts}E"
        static[name] = await run(arguments(given, attention, experts), load, slo_tpot_s=slo_s, cores=given.cores)
        _tell(name, static[name])
    peak = next(iter(static))
    good = [name for name, each in static.items() if each.outcome.slo_attainment >= given.target]
    best = (
        min(good, key=lambda name: static[name].instance_minutes)
        if good
        else max(static, key=lambda name: static[name].outcome.slo_attainment)
    )
    runs = {"autoscaled": scaled, "best_static": static[best], "peak_static": static[peak]}
    return {
        "client_errors": {name: each.outcome.client_errors for name, each in runs.items()},
        "slo_attainment": {name: each.outcome.slo_attainment for name, each in runs.items()},
        "instance_minutes": {name: each.instance_minutes for name, each in runs.items()},
        "best_static": best,
        "peak_static": peak,
        "slo_tpot_s": slo_s,
        "target": given.target,
        "candidates": given.candidates,
        "one_of_each": asdict(known),
        "devices": Quotas(given.cores).about,
        "workload": {
            "name": load.name,
            "requests": len(load),
            "seconds": load.duration_s,
            "mean_rate": round(load.rate, 3),
            "peak_to_mean_10s": round(load.peak_to_mean(10.0), 2),
        },
        "runs": {name: asdict(each) for name, each in {"autoscaled": scaled, **static}.items()},
        "cores_busy": round(sum(os.getloadavg()[:1]), 2),
        "wall_s": round(meter.read().wall_s, 1),
        "command": "python -m benchmarks.autoscale " + " ".join(sys.argv[1:]),
        "hardware": hardware(os.cpu_count() or 1),
        "commit": commit(RESULTS.parents[2]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _seconds(text: str) -> float:
    from janus.config.fields import parse_duration

    return parse_duration(text)


def _tell(name: str, done: Run) -> None:
    outcome = done.outcome
    print(
        f"{name}: {outcome.slo_attainment:.1%} within the SLO, {done.instance_minutes:g} instance-minutes, "
        f"{outcome.client_errors} errors, TPOT {outcome.tpot_s}, TTFT {outcome.ttft_s}, {done.counts}",
        file=sys.stderr,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/janus-tiny")
    parser.add_argument("--trace", default="", help="CSV of arrivals and lengths (Azure LLM inference, BurstGPT)")
    parser.add_argument("--start", type=float, default=0.0, help="second of the trace at which the slice begins")
    parser.add_argument("--speed", type=float, default=1.0, help="replay the slice so many times as fast")
    parser.add_argument("--shrink", type=int, default=1, help="divide the trace's lengths by this")
    parser.add_argument("--longest", type=int, default=256, help="tokens of a prompt or an answer at most")
    parser.add_argument("--workload", default="", help="without a trace: as for janus simulate (default: a day)")
    parser.add_argument("--peak", type=float, default=1.5, help="of the day, over what one of each bears")
    parser.add_argument("--seconds", type=float, default=110.0, help="length of what is replayed")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--slo-tpot", default="", help="default: what one of each gives 40 streams")
    parser.add_argument("--percentile", type=float, default=90.0, help="of the SLO, for the autoscaler")
    parser.add_argument("--target", type=float, default=0.9, help="share within the SLO that fixed numbers must reach")
    parser.add_argument("--cores", type=float, default=0.15, help="of each attention and expert instance")
    parser.add_argument("--most", type=int, default=3, help="instances of each role at most")
    parser.add_argument("--interval", type=float, default=4.0)
    parser.add_argument("--look-back", type=float, default=12.0)
    parser.add_argument("--headroom", type=float, default=0.4, help="a day of minutes rises faster than one of hours")
    parser.add_argument("--tries", type=int, default=3, help="fixed numbers of instances that are tried")
    parser.add_argument(
        "--candidates", choices=("even", "planned"), default="even", help="which those are: see above (default: even)"
    )
    parser.add_argument("--hardware", default="cpu-epyc", help="profile that the planner has for --candidates planned")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(measure(given))
    except QuotaError as error:
        sys.exit(f"error: {error}; run it as root on a Linux machine with control groups")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    shown = ("client_errors", "slo_attainment", "instance_minutes", "best_static", "peak_static")
    print(json.dumps({name: result[name] for name in shown}, indent=2))
    sys.exit(bool(result["client_errors"]["autoscaled"]))


if __name__ == "__main__":
    main()
