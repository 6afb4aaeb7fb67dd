"""The autoscaler that the controller runs follows a load in virtual time; any other one can be plugged in."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from janus.core.scaling.autoscaler import Autoscaler
from janus.core.scaling.contract import Counts, Decision, Observation, Reason, ScalingConfig
from janus.simulation.config import Slo
from janus.simulation.simulator import Simulation
from janus.simulation.workloads import Lengths, constant, diurnal
from tests.simulation.clusters import cluster

LENGTHS = Lengths(prompt=32, output=60, spread=0.3)


@dataclass
class Script:
    """Wants what it is told to, when it is told to, and remembers what it saw."""

    at: dict[float, Counts]
    seen: list[Observation] = field(default_factory=list)

    def observe(self, seen: Observation, now: float) -> Decision:
        self.seen.append(seen)
        wanted = self.at.get(now, seen.present)
        return Decision(at=now, reason=Reason.LOAD, why="the script", present=seen.present, wanted=wanted)

    def failed(self, problem: str, now: float) -> None:
        raise AssertionError(problem)


def test_more_and_fewer_instances_serve_without_losing_a_request() -> None:
    script = Script({10.0: Counts(attention=3, experts=6), 60.0: Counts(attention=1, experts=4)})
    workload = constant(20, 100, lengths=LENGTHS)
    simulation = Simulation(cluster(1), workload, scaler=script)
    report = simulation.run()
    assert report.outcomes == {"finished": len(workload)}
    assert [(size.at_s, size.attention, size.experts) for size in report.sizes] == [(10.0, 3, 6), (60.0, 1, 4)]
    assert simulation.control.present == Counts(attention=1, experts=4)
    # Paid for from the launch until it has left.
    assert 100 + 2 * 50 <= 3600 * report.device_hours["attention"] < 100 + 2 * 60
    assert 400 + 2 * 50 <= 3600 * report.device_hours["expert"] < 400 + 2 * 60
    busy = [seen for seen in script.seen if not seen.problems]
    assert max(seen.running for seen in busy if seen.present.attention == 1) > 0
    assert any(seen.problems for seen in script.seen)


def test_what_is_observed_is_what_happened() -> None:
    script = Script({})
    workload = constant(20, 90, lengths=Lengths(prompt=32, output=60, spread=0))
    simulation = Simulation(cluster(2), workload, scaler=script)
    report = simulation.run()
    last = [seen for seen in script.seen if seen.finished][10]
    assert last.arrivals_s == pytest.approx(20, rel=0.02)
    assert last.window_s == pytest.approx(30)
    assert last.prompt_tokens == pytest.approx(32)
    assert last.output_tokens == pytest.approx(60)
    assert last.tpot_mean_s == pytest.approx(report.tpot_s.mean, rel=0.02)
    assert last.output_tokens_s == pytest.approx(20 * 60, rel=0.05)
    assert last.tpot_samples == pytest.approx(600, rel=0.02)
    assert last.running == pytest.approx(report.in_flight, abs=6)
    assert last.least_experts == 2
    assert 0 < (last.expert_share or 0) < 1


def test_the_autoscaler_that_serves_follows_a_day() -> None:
    """A short day: it grows with the load, shrinks after it, and costs less than the peak all day."""
    config = cluster(1, 2)
    workload = diurnal(25, 300, peak_to_mean=3, period_s=300, lengths=LENGTHS, seed=1)
    scaling = ScalingConfig(
        slo_tpot_s=0.015,
        low=Counts(attention=1, experts=2),
        high=Counts(attention=6, experts=8),
        interval_s=10,
        look_back_s=30,
    )
    simulation = Simulation(config, workload, slo=Slo(tpot_s=0.015), scaler=Autoscaler(scaling))
    report = simulation.run()
    assert report.outcomes["finished"] == report.requests
    sizes = [size.attention + size.experts for size in report.sizes]
    assert sizes
    assert max(sizes) > 3
    assert sizes[-1] < max(sizes)
    peak = max(sizes) * workload.duration_s / 3600
    assert sum(report.device_hours.values()) < 0.85 * peak
