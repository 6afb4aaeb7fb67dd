"""What holds of the autoscaler whatever the cluster and the load are."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from janus.core.scaling import Counts, Reason
from janus.core.scaling.demand import Demand
from janus.core.scaling.learned import LearnedModel
from janus.core.scaling.target import bears, fewest
from tests.core.scaling_plant import CONFIG, Plant, Run

SETTINGS = settings(max_examples=25, deadline=None)
#: Of hours of a cluster each: a failure is shown as it was found.
FEW = settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])

plants = st.builds(
    Plant,
    fixed_s=st.floats(0.001, 0.05),
    row_s=st.floats(0.0, 0.005),
    expert_s=st.floats(0.0, 0.003),
    streams_most=st.sampled_from([2, 8, 64, 1024]),
    output_tokens=st.floats(5, 500),
    noise=st.sampled_from([0.0, 0.05, 0.3]),
    seed=st.integers(0, 1000),
)
loads = st.lists(st.floats(0.0, 40.0), min_size=1, max_size=6)
bounds = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(0, 6), st.integers(0, 6))


@SETTINGS
@given(plant=plants, rates=loads, bound=bounds)
def test_never_out_of_bounds_and_never_many_at_once(
    plant: Plant, rates: list[float], bound: tuple[int, int, int, int]
) -> None:
    low = Counts(attention=bound[0], experts=bound[1])
    high = low.plus(attention=bound[2], experts=bound[3])
    plant.counts = low
    run = Run.of(plant, replace(CONFIG, low=low, high=high))
    for rate in rates:
        run.hold(rate, 120)
    for decision in run.decisions:
        assert decision.wanted.covers(low)
        assert high.covers(decision.wanted)
        if decision.reason is Reason.SURPLUS:
            assert 1 <= decision.present.total - decision.wanted.total <= max(1, decision.present.total // 8)
        elif decision.changes:
            assert decision.wanted.covers(decision.present)
            assert decision.wanted.attention <= 2 * decision.present.attention
            assert decision.wanted.experts <= 2 * decision.present.experts
        assert decision.why


@FEW
@given(plant=plants, rate=st.floats(0.1, 20.0))
def test_a_noisy_constant_load_does_not_make_the_numbers_flap(plant: Plant, rate: float) -> None:
    plant.noise = min(plant.noise, 0.05)
    run = Run.of(plant)
    run.every_s = 10.0
    run.hold(rate, 1800)
    settled = len(run.decisions)
    run.hold(rate, 5400)
    grows = [d.reason is not Reason.SURPLUS for d in run.decisions[settled:] if d.changes]
    turns = sum(early != late for early, late in itertools.pairwise(grows))
    # Down and up again may happen while it learns, never back and forth: numbers that were too few are remembered.
    assert turns <= 3, [(d.at, d.reason, str(d.present), str(d.wanted), d.why) for d in run.changes()]


@SETTINGS
@given(plant=plants, rate=st.floats(0.5, 30.0))
def test_a_step_of_load_is_answered_within_a_few_observations(plant: Plant, rate: float) -> None:
    plant.noise = 0.0
    run = Run.of(plant)
    run.hold(0.05, 180)
    idle = run.plant.counts
    batch, tpot = plant.steady(rate)
    breached = 1.1 * tpot > 1.02 * CONFIG.slo_tpot_s
    queued = batch > 1.25 * plant.counts.attention * plant.streams_most
    run.hold(rate, 3 * run.every_s)
    if breached or queued:
        assert run.plant.counts.total > idle.total


@SETTINGS
@given(
    tpot=st.floats(0.001, 0.5),
    share=st.floats(0.0, 1.0),
    running=st.floats(1.0, 200.0),
    rates=st.lists(st.floats(0.0, 1e4), min_size=2, max_size=10),
    streams=st.sampled_from([0, 4, 64]),
)
def test_more_load_never_asks_for_fewer(
    tpot: float, share: float, running: float, rates: list[float], streams: int
) -> None:
    model = LearnedModel(CONFIG, experts=64, top_k=2)
    seen = Plant().observe(1.0)
    seen = replace(seen, tpot_mean_s=tpot, expert_share=share, running=running)
    model.learn(seen, Demand(), 30.0)
    low, high = Counts(attention=1, experts=1), Counts(attention=24, experts=24)
    totals = []
    for rate in sorted(rates):
        outlook = model.outlook(Demand(tokens_s=rate, kv_share=0.01), slo_s=0.1, most=high, streams_most=streams)
        found = fewest(functools.partial(bears, outlook), low, high)
        totals.append(found.total if found else high.total + 1)
    assert totals == sorted(totals)


@SETTINGS
@given(border=st.lists(st.integers(1, 12), min_size=8, max_size=8))
def test_the_staircase_finds_the_fewest(border: list[int]) -> None:
    """``border[a - 1]``: experts that ``a`` attention instances need; falls with ``a``."""
    border = sorted(border, reverse=True)
    asked = []

    def enough(counts: Counts) -> bool:
        asked.append(counts)
        return counts.experts >= border[counts.attention - 1]

    low, high = Counts(attention=1, experts=1), Counts(attention=8, experts=10)
    every = [Counts(attention=a, experts=e) for a in range(1, 9) for e in range(1, 11)]
    suffice = [counts for counts in every if counts.experts >= border[counts.attention - 1]]
    best = min(suffice, key=lambda counts: (counts.total, counts.attention), default=None)
    assert fewest(enough, low, high) == best
    assert len(asked) <= 2 * (8 + 10)


@FEW
@given(plant=plants, rate=st.floats(0.0, 40.0))
def test_a_cluster_that_is_degraded_is_left_alone(plant: Plant, rate: float) -> None:
    run = Run.of(plant)
    run.hold(rate, 600, problems=("attention-0 is gone",))
    assert run.changes() == []
    assert run.reasons() == {Reason.BLOCKED}


@SETTINGS
@given(
    fixed=st.floats(0.005, 0.03),
    row=st.floats(0.0002, 0.002),
    expert=st.floats(0.0001, 0.001),
    rate=st.floats(1.0, 12.0),
)
def test_without_noise_it_ends_where_the_slo_holds(fixed: float, row: float, expert: float, rate: float) -> None:
    """Whatever the coefficients are, nobody has told them to it."""
    plant = Plant(fixed_s=fixed, row_s=row, expert_s=expert)
    run = Run.of(plant)
    run.hold(rate, 1200)
    _, tpot = plant.steady(rate)
    assert 1.1 * tpot <= CONFIG.slo_tpot_s
    # Hardly more than what bears the load with headroom and margin.
    most = Counts(attention=12, experts=12)

    def enough(counts: Counts) -> bool:
        smaller = replace(plant, counts=counts)
        batch, step = smaller.steady(rate * (1 + CONFIG.headroom) * (1 + CONFIG.margin))
        slo_s = CONFIG.slo_tpot_s * (1 - CONFIG.slack)
        return 1.1 * step <= slo_s and batch <= CONFIG.streams * counts.attention * plant.streams_most

    best = fewest(enough, Counts(attention=1, experts=1), most) or most
    assert plant.counts.total <= best.total + 2
