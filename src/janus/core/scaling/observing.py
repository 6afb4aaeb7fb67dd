"""Observations from what instances report: sums from gateways, states from attention and expert instances."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from janus.core.latency import LatencyHistogram
from janus.core.scaling.contract import Counts, Observation
from janus.messages.control import Heartbeat, Traffic

#: Reports of one instance that are kept of a window; those between are skipped.
_KEPT = 64
#: A gateway that reports once per second and has been silent for so long is not known any more.
SILENT_S = 4.0


@dataclass(frozen=True, slots=True)
class _Report:
    at: float
    traffic: Traffic


@dataclass(slots=True)
class _Gateway:
    """Reports of one process, oldest first."""

    incarnation: str
    reports: deque[_Report] = field(default_factory=deque)
    #: Not kept yet, as it is too close to the last one that is.
    newest: _Report | None = None

    def last(self) -> _Report:
        return self.newest or self.reports[-1]

    def between(self, after: float) -> tuple[_Report, _Report]:
        """The last report that is no later than ``after``, or the first one that is there; and the newest."""
        base = self.reports[0]
        for report in self.reports:
            if report.at > after:
                break
            base = report
        return base, self.last()

    def since(self, start: float) -> tuple[_Report, _Report]:
        """The first report from ``start`` on, and the newest."""
        return next((report for report in self.reports if report.at >= start), self.last()), self.last()


class _Sample(NamedTuple):
    """One heartbeat, as far as it matters here."""

    at: float
    running: int
    waiting: int
    kv_usage: float
    a_max: float
    compute_s: float
    wait_s: float


@dataclass(slots=True)
class _Instance:
    """Heartbeats of one process."""

    incarnation: str
    max_running: int = 0
    samples: deque[_Sample] = field(default_factory=deque)


class Observer:
    """Keeps what was reported for as long as a window is. Seconds of any clock; ``now`` never goes back."""

    def __init__(self, window_s: float, *, percentile: float) -> None:
        """``percentile``: of the SLO, over requests; 0 = their mean."""
        self._window_s = window_s
        self._percentile = percentile
        self._gateways: dict[str, _Gateway] = {}
        self._instances: dict[str, _Instance] = {}
        self._changed_at: float | None = None

    # -- reports -------------------------------------------------------------------------------------------------

    def traffic(self, name: str, incarnation: str, traffic: Traffic, now: float) -> None:
        """A gateway reports its sums."""
        gateway = self._gateways.get(name)
        if gateway is None or gateway.incarnation != incarnation:
            gateway = self._gateways[name] = _Gateway(incarnation)
        report = _Report(now, traffic)
        kept = gateway.reports
        if kept and now - kept[-1].at < self._window_s / _KEPT:
            gateway.newest = report
            return
        kept.append(report)
        gateway.newest = None
        while len(kept) > 2 and kept[1].at <= now - self._window_s:
            kept.popleft()

    def beat(self, name: str, incarnation: str, beat: Heartbeat, now: float) -> None:
        """An attention or expert instance reports its state."""
        instance = self._instances.get(name)
        if instance is None or instance.incarnation != incarnation:
            instance = self._instances[name] = _Instance(incarnation)
        instance.max_running = beat.max_running
        samples = instance.samples
        if samples and now - samples[-1].at < self._window_s / (4 * _KEPT):
            return
        a_max = _a_max(beat.activated)
        sample = _Sample(now, beat.running, beat.waiting, beat.kv_usage, a_max, beat.compute_s, beat.wait_s)
        samples.append(sample)
        while samples[0].at < now - self._window_s:
            samples.popleft()

    def changed(self, now: float) -> None:
        """The cluster changes, or has just changed: what clients saw before says nothing about it."""
        self._changed_at = now
        for instance in self._instances.values():
            instance.samples.clear()

    def keep(self, names: Iterable[str]) -> None:
        """Forget everyone but ``names``."""
        known = set(names)
        for reports in (self._gateways, self._instances):
            for name in [name for name in reports if name not in known]:
                del reports[name]

    # -- what they amount to -------------------------------------------------------------------------------------

    def observe(
        self,
        now: float,
        *,
        present: Counts,
        gateways: Iterable[str],
        attention: Iterable[str],
        least_experts: int = 0,
        starting: int = 0,
        draining: int = 0,
        problems: Iterable[str] = (),
    ) -> Observation:
        """Return what is known now. ``gateways``, ``attention``: those that serve."""
        found = list(problems)
        there = {name: self._gateways[name] for name in gateways if name in self._gateways}
        found += [f"{name} has not reported what clients see" for name in gateways if name not in there]
        found += [
            f"{name} has not reported what clients see for {now - each.last().at:.0f} s"
            for name, each in there.items()
            if now - each.last().at > SILENT_S
        ]
        start = max(now - self._window_s, self._changed_at if self._changed_at is not None else float("-inf"))
        seen = [each.since(start) for each in there.values()]
        window_s = min((last.at - base.at for base, last in seen), default=0.0)
        arrived = [each.between(now - self._window_s) for each in there.values()]
        # Fields of ``Observation`` by name.
        values: dict[str, Any] = {
            **self._arrivals(arrived),
            **self._clients(seen, window_s),
            **self._servers(list(attention), start),
        }
        return Observation(
            window_s=window_s,
            present=present,
            least_experts=least_experts,
            starting=starting,
            draining=draining,
            problems=tuple(found),
            **values,
        )

    @staticmethod
    def _arrivals(pairs: list[tuple[_Report, _Report]]) -> dict[str, float]:
        rate = sum(
            (last.traffic.arrived - base.traffic.arrived) / (last.at - base.at)
            for base, last in pairs
            if last.at > base.at
        )
        admitted = sum(
            last.traffic.arrived - last.traffic.refused - base.traffic.arrived + base.traffic.refused
            for base, last in pairs
        )
        prompts = sum(last.traffic.prompt_tokens - base.traffic.prompt_tokens for base, last in pairs)
        return {"arrivals_s": rate, "prompt_tokens": prompts / admitted if admitted else 0.0}

    def _clients(self, pairs: list[tuple[_Report, _Report]], window_s: float) -> dict[str, object]:
        def total(name: str) -> float:
            return float(sum(getattr(last.traffic, name) - getattr(base.traffic, name) for base, last in pairs))

        def latencies(name: str) -> LatencyHistogram:
            found = LatencyHistogram()
            for base, last in pairs:
                newer = LatencyHistogram.of_pairs(getattr(last.traffic, name))
                found = found.plus(newer.since(LatencyHistogram.of_pairs(getattr(base.traffic, name))))
            return found

        def mean(sum_of: str, count: str) -> float | None:
            return total(sum_of) / total(count) if total(count) else None

        tpot, ttft = latencies("tpot"), latencies("ttft")
        tpot_mean, ttft_mean = mean("gaps_s", "gaps"), mean("first_s", "firsts")
        at_mean = self._percentile == 0
        return {
            "finished": int(total("finished")),
            "refused": int(total("refused")),
            "output_tokens": mean("answer_tokens", "finished") or 0.0,
            "output_tokens_s": total("output_tokens") / window_s if window_s > 0 else 0.0,
            "tpot_mean_s": tpot_mean,
            "tpot_tail_s": tpot_mean if at_mean else tpot.percentile(self._percentile),
            "tpot_samples": tpot.total,
            "ttft_mean_s": ttft_mean,
            "ttft_tail_s": ttft_mean if at_mean else ttft.percentile(self._percentile),
        }

    def _servers(self, names: list[str], start: float) -> dict[str, object]:
        instances = [self._instances[name] for name in names if name in self._instances]
        recent = [[sample for sample in each.samples if sample.at >= start] for each in instances]
        compute = sum(samples[-1].compute_s - samples[0].compute_s for samples in recent if samples)
        wait = sum(samples[-1].wait_s - samples[0].wait_s for samples in recent if samples)
        a_max = [sample.a_max for samples in recent for sample in samples if sample.a_max > 0]
        return {
            "running": sum(_mean([sample.running for sample in samples]) for samples in recent),
            "queued": sum(_mean([sample.waiting for sample in samples]) for samples in recent),
            "kv_usage": max((_mean([sample.kv_usage for sample in samples]) for samples in recent), default=0.0),
            "streams_most": min((each.max_running for each in instances), default=0),
            "expert_share": wait / (compute + wait) if compute + wait > 0 else None,
            "a_max": _mean(a_max) if a_max else None,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _a_max(activated: Mapping[str, list[int]]) -> float:
    """Mean over layers of the most experts that a step activated on one instance."""
    layers = list(zip(*activated.values(), strict=False))
    return sum(max(counts) for counts in layers) / len(layers) if layers else 0.0
