"""Figure 11: GPU-hours of a day of bursty traffic, every system with the fewest GPUs that keep its objective.

Every interval each system is given the smallest deployment that serves the busiest minute of the interval within the
TPOT objective; what it can serve at most follows from its steps. Traffic is known in advance, for all systems alike.
What Janus does beyond the paper is priced on the same day: other intervals, deciding by what was (not by what comes)
with and without headroom, an objective for P99, and the paper's placement and scheduler in place of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from benchmarks.paper import published
from benchmarks.paper.routing import PAPER
from benchmarks.paper.rows import Found, Row
from benchmarks.paper.systems import JANUS, SYSTEMS, World, load_of
from benchmarks.paper.throughput import PAPERS, WORDS

from janus.core.planning.baselines import Setting, System
from janus.core.planning.plan import Problem
from janus.core.planning.pricing import planes
from janus.core.planning.steady import Traffic
from janus.simulation.workloads import Lengths, bursty, diurnal

_Floats: TypeAlias = npt.NDArray[np.float64]

MODEL = "DeepSeek-V2"
SLO_S = published.TPOT_SLO_S[0]
#: The systems whose GPU-hours are counted: of those that can serve the day at all.
COUNTED = ("monolithic", "megascale", "xdeepserve")
#: GPUs that systems may use; Janus's peak is scaled to the paper's 56.
MOST = 96
#: Batches at which steps are priced: a system's limit is found to within such a factor.
_GROWTH = 1.1
#: An objective that every step keeps.
_ANY_S = 1e6
#: Rates likewise, for an objective that depends on prompts or on a percentile: up to 29,000 tokens per second.
_LEAST_TOKENS_S, _RATE_GROWTH, _RATES = 500.0, 1.07, 61
_BATCHES = tuple(float(size) for size in 8 * _GROWTH ** np.arange(78))
#: Requests per second, mean of the day before it is scaled: enough for a minute's count to be steady.
_RATE_S = 20.0
_MINUTES = 24 * 60
#: Shares of requests that follow the day, and that come in bursts of ten minutes.
_DAILY, _BURSTY = 0.75, 0.25


def day(seed: int = 0) -> _Floats:
    """Return requests per second of every minute of a day.

    Three quarters follow the hour, with a peak of 2.5 times their mean; a quarter comes in bursts of 7.5 times its mean
    (section 2 of the paper), ten minutes long in the mean.
    """
    lengths = Lengths(prompt=published.PROMPT, output=published.ANSWER)
    seconds = 60.0 * _MINUTES
    hourly = diurnal(_DAILY * _RATE_S, seconds, peak_to_mean=2.5, lengths=lengths, seed=seed)
    bursts = bursty(
        _BURSTY * _RATE_S, seconds, peak_to_mean=published.PEAK_OVER_MEAN, burst_s=600.0, lengths=lengths, seed=seed
    )
    minutes = np.zeros(_MINUTES)
    for workload in (hourly, bursts):
        minutes += np.histogram(workload.at_s, bins=_MINUTES, range=(0.0, seconds))[0] / 60.0
    return minutes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capacity:
    """Output tokens per second that a system serves within the objective with at most d GPUs, at index d."""

    tokens_s: _Floats

    def gpus(self, demand: _Floats) -> npt.NDArray[np.int64]:
        """Return the fewest GPUs that serve each demand; the most that there are where none do."""
        enough = np.searchsorted(self.tokens_s, demand, side="left")
        return np.minimum(enough, len(self.tokens_s) - 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """Every deployment of a system at every batch: GPUs, seconds of a step, streams."""

    gpus: npt.NDArray[np.int64]
    seconds: _Floats
    streams: _Floats

    def capacity(self, slo_s: float, slower: float = 1.0, most: int = MOST) -> Capacity:
        """Return the best of all deployments that keep the objective, where steps take ``slower`` times as long."""
        best = np.zeros(most + 1)
        kept = (self.seconds * slower <= slo_s) & (self.gpus <= most)
        np.maximum.at(best, self.gpus[kept], self.streams[kept] / (self.seconds[kept] * slower))
        return Capacity(tokens_s=np.maximum.accumulate(best))


def priced(system: System, setting: Setting, most: int = MOST) -> Priced:
    """Price everything that a system could run, one deployment at a time."""
    found = [
        (offer.devices, float(offer.step.total_s), batch)
        for batch in _BATCHES
        for offer in system.offers(setting, load_of(batch), most)
        if not offer.misfit
    ]
    gpus, seconds, streams = np.array(found).T
    return Priced(gpus=gpus.astype(np.int64), seconds=seconds, streams=streams)


def priced_janus(setting: Setting, most: int = MOST, micro_batches: Sequence[int] = (1,)) -> Priced:
    """Price everything that Janus could run, a plane of deployments at a time, as ``janus plan`` does."""
    gpus, seconds, streams = [], [], []
    for batch in _BATCHES:
        load = load_of(batch)
        question = {"batch": load.batch, "context": load.context, "micro_batches": micro_batches}
        for plane in planes(_problem(setting, _ANY_S, most, **question)):
            gpus.append(plane.devices[plane.feasible].astype(np.int64))
            seconds.append(plane.tpot_s[plane.feasible])
            streams.append(np.full(len(gpus[-1]), batch))
    return Priced(gpus=np.concatenate(gpus), seconds=np.concatenate(seconds), streams=np.concatenate(streams))


def capacity_at_percentile(setting: Setting, slo_s: float, percentile: float, most: int = MOST) -> Capacity:
    """Return the same where the objective is for a percentile of requests (0: for the mean), prompts included."""
    best = np.zeros(most + 1)
    for tokens_s in _LEAST_TOKENS_S * _RATE_GROWTH ** np.arange(_RATES):
        rate = tokens_s / published.ANSWER
        traffic = Traffic(requests_s=rate, prompt_tokens=published.PROMPT, output_tokens=published.ANSWER)
        for plane in planes(_problem(setting, slo_s, most, traffic=traffic, percentile=percentile)):
            if plane.feasible.any():
                fewest = int(plane.devices[plane.feasible].min())
                if fewest <= most:
                    best[fewest] = max(best[fewest], tokens_s)
    return Capacity(tokens_s=np.maximum.accumulate(best))


def _problem(setting: Setting, slo_s: float, most: int, **question: Any) -> Problem:
    return Problem(
        model=setting.model,
        profile=setting.profile,
        slo_tpot_s=slo_s,
        a_max=lambda _: setting.a_max,
        slots=setting.slots,
        most_attention=most // 2,
        most_experts=most,
        **question,
    )


def provisioned(capacity: Capacity, demand: _Floats, minutes: int) -> npt.NDArray[np.int64]:
    """Return GPUs per minute where every interval has what its busiest minute needs."""
    return np.repeat(capacity.gpus(demand.reshape(-1, minutes).max(axis=1)), minutes)


def reactive(capacity: Capacity, demand: _Floats, minutes: int, headroom: float) -> npt.NDArray[np.int64]:
    """Return GPUs per minute where every interval has what the busiest minute of the last one needed, and more."""
    seen = demand.reshape(-1, minutes).max(axis=1)
    return np.repeat(capacity.gpus(np.r_[seen[0], seen[:-1]] * (1 + headroom)), minutes)


def within(capacity: Capacity, gpus: npt.NDArray[np.int64], demand: _Floats) -> float:
    """Return the share of requests that come in minutes whose demand the GPUs serve within the objective."""
    served = capacity.tokens_s[gpus] >= demand
    return float(demand[served].sum() / demand.sum())


def figure_11(worlds: Mapping[str, World], slower: Mapping[str, float], slo_s: float = SLO_S, seed: int = 0) -> Found:
    """Count GPU-hours; the day is scaled in every world so that Janus's peak needs the paper's 56 GPUs.

    ``slower``: how many times as long a baseline's steps take as they are predicted to, where figure 8 says so; what
    follows for the day is reported too, in the first of ``worlds``.
    """
    rows: list[Row] = []
    data: dict[str, Any] = {"slo_ms": 1e3 * slo_s, "model": MODEL, "interval_s": published.INTERVAL_S}
    first, *_ = worlds
    for name, world in worlds.items():
        settings = {system: world.setting(SYSTEMS[system], MODEL) for system in ("janus", *COUNTED)}
        janus = priced_janus(settings["janus"]).capacity(slo_s)
        others = {system: priced(SYSTEMS[system], settings[system]) for system in COUNTED}
        capacities = {system: each.capacity(slo_s) for system, each in others.items()}
        demand = _scaled(day(seed), janus)
        of_world = data[name] = _count({"janus": janus, **capacities}, demand)
        rows += [_row(system, f"{WORDS[system]}; {name}", of_world) for system in COUNTED]
        if name == first:
            slow = {system: others[system].capacity(slo_s, factor) for system, factor in slower.items()}
            slowed = data["as slow as figure 8 says"] = _count({"janus": janus, **slow}, demand)
            rows += [
                _row(s, f"{WORDS[s]}, its steps {f:.2f} times as long, as figure 8 says", slowed)
                for s, f in slower.items()
            ]
            data["beyond"] = _beyond(world, janus, slo_s, demand)
            least = Row(
                figure="11",
                what="fewest GPUs of Janus in the day",
                unit="GPUs",
                paper=float(published.GPUS[0]),
                ours=float(min(of_world["gpus"]["janus"])),
                kind="predicted",
                why="most: 56, to which the day is scaled",
            )
            rows.append(least)
    return Found(number="11", title="GPU-hours of a day of bursty traffic", rows=rows, data=data)


def _count(capacities: Mapping[str, Capacity], demand: _Floats) -> dict[str, Any]:
    """Return GPUs and GPU-hours of every system, as the result file has them."""
    minutes = int(published.INTERVAL_S // 60)
    gpus = {system: provisioned(capacity, demand, minutes) for system, capacity in capacities.items()}
    return {
        "demand_tokens_s": {"mean": round(float(demand.mean()), 1), "most": round(float(demand.max()), 1)},
        "gpu_hours": {system: round(_hours(each), 1) for system, each in gpus.items()},
        "within": {system: round(within(capacities[system], each, demand), 4) for system, each in gpus.items()},
        "gpus": {system: each[::minutes].tolist() for system, each in gpus.items()},
    }


def _row(system: str, words: str, of_world: Mapping[str, Any]) -> Row:
    served = of_world["within"][system]
    change = published.GPU_HOURS_CHANGE.get(PAPERS[system])
    return Row(
        figure="11",
        what=f"GPU-hours over those of {words}",
        unit="ratio",
        paper=None if change is None else 1 + change,
        ours=of_world["gpu_hours"]["janus"] / of_world["gpu_hours"][system],
        kind="predicted",
        why="" if served == 1 else f"with {MOST} GPUs at most, it serves {served:.0%} of the requests",
    )


def _scaled(minutes: _Floats, janus: Capacity) -> _Floats:
    """Return tokens per second of every minute, such that the busiest needs as many GPUs as the paper's."""
    most = float(janus.tokens_s[published.GPUS[1]])
    return minutes * (most / float(minutes.max()))


def _hours(gpus: npt.NDArray[np.int64]) -> float:
    return float(gpus.sum()) / 60


def _beyond(world: World, ours: Capacity, slo_s: float, demand: _Floats) -> list[dict[str, Any]]:
    """Return GPU-hours and the share of requests within the objective of what Janus does beyond the paper."""
    base = _hours(provisioned(ours, demand, 15))
    setting = world.setting(JANUS, MODEL)
    papers = replace(setting, a_max=_papers_table(world))
    mean, p99 = (capacity_at_percentile(setting, slo_s, percentile, 64) for percentile in (0.0, 99.0))
    overlapped = priced_janus(setting, micro_batches=(1, 2, 3)).capacity(slo_s)
    cases: Sequence[tuple[str, Capacity, npt.NDArray[np.int64]]] = [
        ("15 minutes, traffic known", ours, provisioned(ours, demand, 15)),
        ("60 minutes, traffic known", ours, provisioned(ours, demand, 60)),
        ("5 minutes, traffic known", ours, provisioned(ours, demand, 5)),
        ("1 minute, traffic known", ours, provisioned(ours, demand, 1)),
        ("15 minutes, by the last interval", ours, reactive(ours, demand, 15, 0.0)),
        ("15 minutes, by the last interval, 30 % headroom", ours, reactive(ours, demand, 15, 0.3)),
        ("5 minutes, by the last interval, 30 % headroom", ours, reactive(ours, demand, 5, 0.3)),
        ("1 minute, by the last interval, 30 % headroom", ours, reactive(ours, demand, 1, 0.3)),
        ("paper's placement and scheduler, 15 minutes", *_with(priced_janus(papers).capacity(slo_s), demand)),
        ("micro-batches: 1, 2 or 3, 15 minutes", *_with(overlapped, demand)),
        ("prompts counted, mean TPOT, 15 minutes", *_with(mean, demand)),
        ("prompts counted, P99 TPOT, 15 minutes", *_with(p99, demand)),
        ("the busiest minute's GPUs all day", ours, np.full(_MINUTES, published.GPUS[1])),
    ]
    return [
        {
            "what": what,
            "gpu_hours": round(_hours(gpus), 1),
            "change": round(_hours(gpus) / base - 1, 4),
            "within": round(within(capacity, gpus, demand), 4),
        }
        for what, capacity, gpus in cases
    ]


def _with(capacity: Capacity, demand: _Floats) -> tuple[Capacity, npt.NDArray[np.int64]]:
    return capacity, provisioned(capacity, demand, 15)


def _papers_table(world: World) -> Any:
    """Return a_max under the paper's placement and scheduler."""
    system = replace(JANUS, name="paper", placement=PAPER.placement, scheduler=PAPER.scheduler)
    return world.setting(system, MODEL).a_max
