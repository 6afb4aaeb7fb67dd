"""The autoscaler with the planner's model: how it asks, and that a wrong profile converges."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from janus.core.exchange_cost import LinkCost
from janus.core.planning.hardware import Device, HardwareProfile
from janus.core.planning.plan import Problem
from janus.core.planning.pricing import planes
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.steady import Traffic
from janus.core.scaling import Autoscaler, Counts, Observation
from janus.core.scaling.contract import Reason
from janus.core.scaling.demand import Demand
from janus.core.scaling.planned import PlannedModel
from janus.core.scaling.target import bears, fewest
from tests.core.scaling_plant import CONFIG, Plant, Run

SLO_S = 0.05
MODEL = ModelSizes(
    name="small",
    hidden=2048,
    layers=24,
    moe_layers=24,
    experts=64,
    top_k=6,
    expert_params=8_000_000,
    attention_params=16_000_000,
    shared_params=0,
    dense_params=0,
    embedding_params=200_000_000,
    head_params=200_000_000,
    kv_elements=1024,
    context_flops=8192,
)
DEVICE = Device(name="gpu", memory_bytes=80e9, weight_bytes_s=1e12, kv_bytes_s=1e12, flops_s=2e14)
LINK = LinkCost(message_s=5e-6, latency_s=5e-6, byte_s=1e-11)
PROFILE = HardwareProfile(name="test", kind="published", devices={"gpu": DEVICE}, intra=LINK, inter=LINK)


def a_max(experts: Any, batch: Any) -> Any:
    return MODEL.experts * (1 - (1 - MODEL.top_k / MODEL.experts) ** batch) / experts


PROBLEM = Problem(
    model=MODEL, profile=PROFILE, slo_tpot_s=SLO_S, a_max=lambda slots: a_max, batch=1.0, context=100.0, slots=64
)
SCALING = replace(CONFIG, slo_tpot_s=SLO_S, percentile=0.0)


@dataclass(kw_only=True)
class Truth(Plant):
    """A cluster that takes ``factor`` times what the profile says."""

    factor: float = 1.0
    streams_most: int = 1024
    output_tokens: float = 200.0
    known: dict[tuple[Counts, float], tuple[float, float]] = field(default_factory=dict)

    def steady(self, arrivals_s: float) -> tuple[float, float]:
        key = self.counts, arrivals_s
        if key not in self.known:
            traffic = Traffic(requests_s=self.factor * arrivals_s, prompt_tokens=50.0, output_tokens=self.output_tokens)
            problem = replace(
                PROBLEM,
                traffic=traffic,
                batch=0.0,
                most_attention=self.counts.attention,
                most_experts=self.counts.experts,
                max_running=self.streams_most,
            )
            plane = next(planes(problem))
            batch, tpot = float(plane.batch[-1, -1]), float(plane.tpot_s[-1, -1])
            overloaded = tpot == float("inf")
            self.known[key] = (4 * batch, 0.1 * self.factor) if overloaded else (batch, self.factor * tpot)
        return self.known[key]

    def observe(self, arrivals_s: float, window_s: float = 30.0, **other: object) -> Observation:
        seen = super().observe(arrivals_s, window_s, **other)
        return replace(seen, tpot_tail_s=seen.tpot_mean_s, expert_share=None)


def test_it_finds_what_the_search_finds() -> None:
    demand = Demand(tokens_s=20_000, requests_s=100, prompt_tokens=50, output_tokens=200)
    most = Counts(attention=12, experts=12)
    outlook = PlannedModel(PROBLEM).outlook(demand, slo_s=SLO_S, most=most, streams_most=1024)
    found = fewest(lambda counts: bears(outlook, counts), Counts(attention=1, experts=1), most)
    traffic = Traffic(requests_s=100, prompt_tokens=50, output_tokens=200)
    problem = replace(PROBLEM, traffic=traffic, batch=0.0, most_attention=12, most_experts=12, max_running=1024)
    plane = next(planes(problem))
    best = min(
        (a + e + 2 for a in range(12) for e in range(12) if plane.feasible[a, e]),
        default=None,
    )
    assert found is not None
    assert found.total == best
    assert outlook.predict(found).tpot_mean_s <= SLO_S


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_a_wrong_profile_converges(factor: float) -> None:
    truth = Truth(factor=factor)
    model = PlannedModel(PROBLEM)
    run = Run(plant=truth, scaler=Autoscaler(SCALING, model=model))
    run.every_s = 20.0
    rate = 40.0 / factor
    run.hold(rate, 800)
    _, tpot = truth.steady(rate)
    assert tpot <= SCALING.slo_tpot_s
    assert model.correction == pytest.approx(factor, rel=0.2)
    assert run.decisions[-1].model == "test"
    # What the right profile would have found, give or take one.
    right = PlannedModel(PROBLEM)
    right.learn(truth.observe(rate), Demand(tokens_s=1.0, output_tokens=200), 1.0)
    demand = Demand(tokens_s=1.2 * rate * 200, requests_s=1.2 * rate, prompt_tokens=50, output_tokens=200)
    most = Counts(attention=12, experts=12)
    outlook = right.outlook(demand, slo_s=0.85 * SLO_S, most=most, streams_most=1024)
    best = fewest(lambda counts: bears(outlook, counts), Counts(attention=1, experts=1), most)
    assert best is not None
    assert truth.counts.total <= best.total + 2


def test_at_its_bounds_it_says_what_more_would_be_needed() -> None:
    """Clients see more than the SLO, and there are as many instances as there may be."""
    most = Counts(attention=2, experts=4)
    scaler = Autoscaler(replace(SCALING, high=most), model=PlannedModel(PROBLEM))
    truth = Truth(factor=1.0, counts=most)
    decisions = [scaler.observe(truth.observe(500.0), now) for now in (0.0, 60.0, 120.0)]
    due = [decision for decision in decisions if decision.due]
    assert due
    assert {decision.wanted for decision in due} == {most}
    assert due[-1].reason is Reason.LIMIT


def test_without_load_there_is_nothing_to_bear() -> None:
    most = Counts(attention=2, experts=2)
    outlook = PlannedModel(PROBLEM).outlook(Demand(), slo_s=SLO_S, most=most, streams_most=0)
    assert outlook.strain(Counts(attention=1, experts=1)) == 0
