"""What many runs of a scenario showed together, and whether that is what it expects."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import msgspec

from janus.chaos.figures import percentile
from janus.chaos.run import RunResult
from janus.chaos.scenario import Scenario

#: Of the runs' ``wrong`` answers, so many are written down.
_SHOWN = 5


def summary(runs: Sequence[RunResult]) -> dict[str, Any]:
    """The figures of docs/chaos.md, over all runs; None where no run has one."""
    stalls = [stall for run in runs for stall in run.stalls_s]
    ttfts = [ttft for run in runs for ttft in run.ttfts_s]
    dips = [run.goodput.dip for run in runs if run.goodput is not None]
    recovered = [run.recovered_s for run in runs]
    return {
        "runs": len(runs),
        "requests": sum(run.requests for run in runs),
        "in_flight": sum(run.in_flight for run in runs),
        "lost": sum(run.lost for run in runs),
        "repeated": sum(run.repeated for run in runs),
        "changed": sum(run.changed for run in runs),
        "client_errors": sum(run.client_errors for run in runs),
        "refused": sum(run.refused for run in runs),
        "undelivered": sum(run.undelivered for run in runs),
        "stall_p50_ms": _ms(percentile(stalls, 0.5)),
        "stall_p99_ms": _ms(percentile(stalls, 0.99)),
        "stall_max_ms": _ms(max(stalls, default=None)),
        "ttft_p50_ms": _ms(percentile(ttfts, 0.5)),
        "ttft_max_ms": _ms(max(ttfts, default=None)),
        "goodput_before": _rounded(_mean([run.goodput.before for run in runs if run.goodput is not None]), 1),
        "goodput_dip": _rounded(_mean(dips), 3),
        "goodput_dip_max": _rounded(max(dips, default=None), 3),
        # Of runs that did not recover while the load was on there is no time: they are counted.
        "recovered_s": _rounded(percentile([each for each in recovered if each is not None], 0.5), 2),
        "recovered_max_s": _rounded(max((each for each in recovered if each is not None), default=None), 2),
        "not_recovered": sum(each is None for each in recovered),
        "whole_s": _rounded(percentile([run.whole_s for run in runs], 0.5), 2),
        "whole_max_s": _rounded(max((run.whole_s for run in runs), default=None), 2),
    }


def unmet(scenario: Scenario, runs: Sequence[RunResult]) -> list[str]:
    """What the scenario expects and did not get, one sentence each."""
    expect, figures = scenario.expect, summary(runs)
    found = []
    for name in ("lost", "repeated", "changed", "client_errors", "refused"):
        limit = getattr(expect, name)
        worst = max((getattr(run, name) for run in runs), default=0)
        over = sum(getattr(run, name) > limit for run in runs)
        if over:
            found.append(f"{name} is up to {worst} in {over} of {len(runs)} runs, at most {limit} expected")
    for name, figure in (
        ("stall_p99_ms", "stall_p99_ms"),
        ("recovered_s", "recovered_s"),
        ("goodput_dip", "goodput_dip"),
    ):
        limit, value = getattr(expect, name), figures[figure]
        if limit is not None and value is not None and value > limit:
            found.append(f"{name} is {value:g}, at most {limit:g} expected")
    if expect.recovered_s is not None and figures["not_recovered"]:
        found.append(f"{figures['not_recovered']} of {len(runs)} runs did not recover while the load was on")
    return found


def as_json(scenario: Scenario, runs: Sequence[RunResult], *, seed: int) -> dict[str, Any]:
    """The report of one scenario: figures, what was not met, and each run."""
    return {
        "scenario": scenario.name,
        "about": scenario.about,
        "streams": scenario.load.streams,
        "seed": seed,
        **summary(runs),
        "unmet": unmet(scenario, runs),
        "each": [_run(run) for run in runs],
    }


def _run(run: RunResult) -> dict[str, Any]:
    first = min(step.at for step in run.steps)
    return {
        "steps": [
            {
                "do": step.do,
                "target": step.target,
                "at": round(step.at - first, 3),
                "for": round(step.over - step.at, 3),
            }
            for step in run.steps
        ],
        "requests": run.requests,
        "lost": run.lost,
        "repeated": run.repeated,
        "changed": run.changed,
        "client_errors": run.client_errors,
        "refused": run.refused,
        "stall_p50_ms": _ms(percentile(run.stalls_s, 0.5)),
        "stall_max_ms": _ms(max(run.stalls_s, default=None)),
        "goodput_before": _rounded(run.goodput.before if run.goodput else None, 1),
        "goodput_dip": _rounded(run.goodput.dip if run.goodput else None, 3),
        "tokens_per_100_ms": run.goodput.bins if run.goodput else [],
        "recovered_s": _rounded(run.recovered_s, 2),
        "whole_s": round(run.whole_s, 2),
        "moves": [msgspec.to_builtins(move) for move in run.moves.moves],
        "a_max_before": _rounded(run.moves.a_max_before, 3),
        "a_max_between": _rounded(run.moves.a_max_between, 3),
        "a_max_after": _rounded(run.moves.a_max_after, 3),
        "least_replicas": run.moves.least_replicas,
        "told": run.told,
        "wrong": [
            {
                "prompt": each.prompt,
                "error": each.error,
                "lost": each.verdict.lost,
                "repeated": each.verdict.repeated,
                "changed": each.verdict.changed,
                "first": each.verdict.first,
            }
            for each in run.wrong[:_SHOWN]
        ],
    }


def lines(scenario: Scenario, runs: Sequence[RunResult]) -> list[str]:
    """The same for people."""
    s = summary(runs)
    found = [
        f"{scenario.name}: {s['runs']} runs, {s['requests']} requests, {s['in_flight']} streams in flight meanwhile",
        f"  tokens    lost {s['lost']}, repeated {s['repeated']}, changed {s['changed']}",
        f"  clients   {s['client_errors']} errors, {s['refused']} of them of requests sent after the fault",
        f"  stall     p50 {_text(s['stall_p50_ms'])} ms, p99 {_text(s['stall_p99_ms'])} ms; first token of requests "
        f"sent after the fault: p50 {_text(s['ttft_p50_ms'])} ms, at most {_text(s['ttft_max_ms'])} ms",
        f"  goodput   {_text(s['goodput_before'])} tokens/s before, dip {_share(s['goodput_dip'])}, "
        f"back after {_text(s['recovered_s'])} s",
        f"  whole     every instance back after {_text(s['whole_s'])} s",
    ]
    told = list(dict.fromkeys(each.error for run in runs for each in run.wrong if each.error))
    found += [f"  error     {error}" for error in told[:_SHOWN]]
    return found + [f"  unmet     {problem}" for problem in unmet(scenario, runs)]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1e3 * seconds, 1)


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
