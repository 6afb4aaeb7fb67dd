"""The autoscaler: what it answers to load, to breaches, and to clusters that are not whole."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from janus.core.scaling import Autoscaler, Counts, Observation, Reason, ScalingConfig
from janus.errors import ConfigError
from tests.core.scaling_plant import CONFIG, Plant, Run


def counts(attention: int, experts: int) -> Counts:
    return Counts(attention=attention, experts=experts)


def test_no_load_asks_for_nothing() -> None:
    run = Run.of(Plant())
    run.hold(0.0, 1200)
    assert run.changes() == []
    assert run.reasons() == {Reason.STEADY}


def test_load_is_met_with_the_fewest_that_hold_the_slo_and_left_again_slowly() -> None:
    run = Run.of(Plant())
    run.hold(12.0, 600)
    grown = run.plant.counts
    assert run.plant.steady(12.0)[1] * 1.1 <= CONFIG.slo_tpot_s
    assert grown.total > 2
    # One fewer of either role would not bear a fifth more load.
    for fewer in (grown.plus(attention=-1), grown.plus(experts=-1)):
        if fewer.attention and fewer.experts:
            smaller = replace(run.plant, counts=fewer)
            batch, tpot = smaller.steady(12.0 * 1.2 * 1.15 * 1.05)
            assert tpot * 1.1 > CONFIG.slo_tpot_s * 0.85 or batch > 0.9 * fewer.attention * smaller.streams_most
    before = len(run.decisions)
    run.hold(0.5, CONFIG.look_back_s - 10)
    assert run.plant.counts == grown, "fewer before the look-back has passed"
    run.hold(0.5, CONFIG.interval_s * grown.total)
    assert run.plant.counts == counts(1, 1)
    shrinking = [decision for decision in run.decisions[before:] if decision.changes]
    assert {decision.reason for decision in shrinking} == {Reason.SURPLUS}
    assert all(decision.present.total - decision.wanted.total == 1 for decision in shrinking)
    times = [decision.at for decision in shrinking]
    assert all(late - early >= CONFIG.interval_s for early, late in itertools.pairwise(times))


def test_a_breach_is_answered_at_once_and_with_figures() -> None:
    run = Run.of(Plant(fixed_s=0.06))
    run.hold(1.0, 100)
    assert run.plant.counts == counts(1, 1)
    started = run.now
    run.hold(9.0, 30)
    first = run.changes()[0]
    assert first.at - started <= 3 * run.every_s
    assert first.reason in (Reason.SLO, Reason.LOAD)
    assert "SLO of 100 ms" in first.why
    assert "9 requests/s" in first.why
    assert first.predicted is not None
    assert first.predicted.counts == first.wanted


def test_a_queue_asks_for_attention_instances_whatever_tpot_is() -> None:
    plant = Plant(streams_most=2, row_s=0.0, expert_s=0.0)
    run = Run.of(plant)
    run.hold(3.0, 60)
    assert run.plant.counts.attention >= 3
    assert run.plant.counts.experts == 1
    assert Reason.QUEUE in run.reasons()
    assert "streams wait" in run.changes()[0].why


def test_refusals_are_a_queue_that_cannot_be_seen() -> None:
    run = Run.of(Plant())
    run.step(1.0, refused=3, kv_usage=0.95)
    decision = run.step(1.0, refused=3, kv_usage=0.95)
    assert decision.reason is Reason.QUEUE
    assert decision.wanted == counts(2, 1)
    assert "3 were refused" in decision.why


def test_what_gateways_refuse_while_instances_have_room_is_not_theirs_to_cure() -> None:
    run = Run.of(Plant())
    run.hold(1.0, 120, refused=3)
    assert run.changes() == []
    assert "the gateways refused 3 that instances have room for" in run.decisions[-1].why


def test_a_large_cluster_does_not_shrink_for_hours() -> None:
    run = Run.of(Plant(counts=counts(12, 12)))
    run.hold(0.5, CONFIG.look_back_s + 20 * CONFIG.interval_s)
    assert run.plant.counts == counts(1, 1)
    assert [d.present.total - d.wanted.total for d in run.changes()][:2] == [3, 2]


def test_ttft_has_an_slo_of_its_own_where_one_is_given() -> None:
    seen = {"ttft_mean_s": 2.0, "ttft_tail_s": 3.0}
    without = Run.of(Plant())
    without.hold(1.0, 60, **seen)
    assert without.changes() == []
    run = Run.of(Plant(), replace(CONFIG, slo_ttft_s=1.0))
    run.hold(1.0, 10, **seen)
    (change,) = run.changes()
    assert change.wanted == counts(2, 1)
    assert "P99 TTFT 3 s exceeds the SLO of 1 s" in change.why


@pytest.mark.parametrize("slower", ["attention", "experts"])
def test_the_role_that_makes_steps_long_is_the_one_that_grows(slower: str) -> None:
    costs: dict[str, Any] = (
        {"row_s": 0.006, "expert_s": 0.0001} if slower == "attention" else {"row_s": 0.0001, "expert_s": 0.006}
    )
    run = Run.of(Plant(**costs))
    run.hold(4.0, 900)
    grown = run.plant.counts
    assert run.plant.steady(4.0)[1] * 1.1 <= CONFIG.slo_tpot_s
    assert (grown.attention > grown.experts) == (slower == "attention")


@pytest.mark.parametrize(
    "trouble", ["expert-1 has not registered", "scale --experts 2 is under way", "the controller has just started"]
)
def test_a_cluster_that_is_not_whole_is_left_alone(trouble: str) -> None:
    run = Run.of(Plant())
    run.hold(1.0, 60)
    decisions = run.hold(20.0, 600, problems=(trouble,))
    assert {decision.reason for decision in decisions} == {Reason.BLOCKED}
    assert not any(decision.changes for decision in decisions)
    assert all(trouble in decision.why for decision in decisions)


def test_what_was_seen_before_a_change_is_not_judged() -> None:
    scaler = Autoscaler(CONFIG)
    plant = Plant()
    for now in range(0, 300, 5):
        decision = scaler.observe(plant.observe(20.0, window_s=CONFIG.settle_s / 2), float(now))
        assert not decision.due


def test_a_failed_operation_is_tried_again_later_and_later() -> None:
    run = Run.of(Plant())
    tried: list[float] = []
    while run.now < 3600 and len(tried) < 5:
        decision = run.step(20.0)
        if decision.changes:
            tried.append(run.now)
            run.plant.counts = decision.present
            run.scaler.failed("no memory", run.now)
    gaps = [late - early for early, late in itertools.pairwise(tried)]
    assert gaps == sorted(gaps)
    assert gaps[0] >= CONFIG.backoff_s
    assert gaps[-1] >= 8 * CONFIG.backoff_s
    assert "no memory" in next(d for d in run.decisions if d.reason is Reason.BACKOFF).why


def test_numbers_out_of_bounds_are_brought_back() -> None:
    run = Run.of(Plant(counts=counts(14, 1)))
    run.hold(0.0, 65)
    assert run.plant.counts == counts(12, 1)
    assert run.decisions[0].reason is Reason.BOUNDS
    run = Run.of(Plant())
    run.hold(0.0, 65, least_experts=3)
    assert run.plant.counts == counts(1, 3), "every expert keeps its replicas"


def test_experts_that_hold_the_last_replicas_stay() -> None:
    run = Run.of(Plant(counts=counts(3, 4)))
    run.hold(0.0, 1200, least_experts=2)
    assert run.plant.counts == counts(1, 2)


def test_at_the_bounds_it_says_so_and_not_all_the_time() -> None:
    run = Run.of(Plant(), replace(CONFIG, high=counts(1, 1)))
    run.hold(30.0, 1200)
    assert run.changes() == []
    assert run.reasons() <= {Reason.LIMIT}
    assert "at most 1A1E" in run.decisions[-1].why
    assert len(run.decisions) <= 1200 / CONFIG.interval_s + 6


def test_growth_that_does_not_help_ends() -> None:
    """Processes that share the same cores: more of them make nothing faster."""

    class Shared(Plant):
        def step_s(self, counts: Counts, batch: float) -> float:
            del counts
            return 0.12

    run = Run.of(Shared())
    run.hold(1.0, 1200)
    assert run.plant.counts.total <= 2 + 6
    assert run.decisions[-1].reason is Reason.FUTILE
    assert "something else limits it" in run.decisions[-1].why


def test_a_monolithic_cluster_has_attention_instances_alone() -> None:
    class Monolithic(Plant):
        def step_s(self, counts: Counts, batch: float) -> float:
            return 0.02 + 0.003 * batch / counts.attention

        def observe(self, arrivals_s: float, window_s: float = 30.0, **other: object) -> Observation:
            experts, self.counts = self.counts, replace(self.counts, experts=1)
            seen = super().observe(arrivals_s, window_s, **other)
            self.counts = experts
            return replace(seen, present=experts, expert_share=None)

    run = Run.of(Monolithic(counts=counts(1, 0)), replace(CONFIG, low=counts(1, 0), high=counts(8, 0)))
    run.hold(8.0, 600)
    assert run.plant.counts.attention > 1
    assert run.plant.counts.experts == 0


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("--slo-tpot", {"slo_tpot_s": 0.0}),
        ("--slo-percentile", {"percentile": 100.0}),
        ("--max-attention", {"high": Counts(attention=0, experts=4)}),
        ("--max-experts", {"low": Counts(attention=1, experts=13)}),
        ("--scale-look-back", {"look_back_s": 10.0}),
    ],
)
def test_a_bad_configuration_names_its_option(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(CONFIG, **changes)
    assert caught.value.field == field


def test_the_mean_may_be_what_the_slo_is_about() -> None:
    assert ScalingConfig(slo_tpot_s=0.1, percentile=0).tail == "mean"
    assert ScalingConfig(slo_tpot_s=0.1, percentile=99.9).tail == "P99.9"
