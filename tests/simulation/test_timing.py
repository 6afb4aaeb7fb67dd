"""Step times from remembered parts are those of the performance model, whatever the cluster does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.planning.host import Host
from janus.core.planning.performance import Load, step_time
from janus.simulation.runs import Run
from janus.simulation.timing import StepClock
from tests.simulation.clusters import DEVICE, MODEL, ONE_HOST, PROFILE, a_max, cluster

ROWS = st.tuples(st.integers(1, 32), st.integers(0, 96))
LAPTOP = replace(PROFILE, devices={"core": replace(DEVICE, name="core", shared_cores=2)})


@given(
    steps=st.lists(ROWS, min_size=1, max_size=6),
    experts=st.integers(2, 9),
    context=st.floats(1, 2000),
    looks_back=st.floats(0, 500),
    laptop=st.booleans(),
    micro_batches=st.integers(1, 3),
)
def test_a_step_takes_what_the_performance_model_says(  # noqa: PLR0917  (hypothesis names them)
    steps: list[tuple[int, int]], experts: int, context: float, looks_back: float, laptop: bool, micro_batches: int
) -> None:
    config = cluster(profile=LAPTOP if laptop else PROFILE, micro_batches=micro_batches)
    clock = StepClock(config)
    clock.experts = experts
    for decode, prefill in steps:
        clock.begin(decode=decode, prefill=prefill)
    for decode, prefill in steps:
        found = clock.step_s(decode=decode, prefill=prefill, context=context, prefill_context=looks_back)
        split = clock.split(decode=decode, prefill=prefill, context=context, prefill_context=looks_back)
        assert found == pytest.approx(split.total_s, rel=1e-9)


@given(decode=st.integers(1, 32), instances=st.integers(1, 6), context=st.floats(1, 2000))
def test_instances_that_are_alike_take_equation_1(decode: int, instances: int, context: float) -> None:
    """The queueing model is the paper's where it applies: one step of B streams over n_a instances."""
    config = cluster(instances)
    clock = StepClock(config)
    for _ in range(instances):
        clock.begin(decode=decode, prefill=0)
    load = Load(batch=decode * instances, context=context)
    expected = step_time(MODEL, PROFILE, config.deployment(instances, 4), load, a_max=a_max).total_s
    assert clock.step_s(decode=decode, context=context) == pytest.approx(expected, rel=1e-9)


@given(
    decode=st.integers(1, 32),
    prefill=st.integers(0, 96),
    instances=st.integers(1, 6),
    context=st.floats(1, 2000),
    micro_batches=st.integers(1, 2),
)
def test_on_one_host_instances_that_are_alike_take_what_the_planner_says(
    decode: int, prefill: int, instances: int, context: float, micro_batches: int
) -> None:
    config = cluster(instances, profile=ONE_HOST, micro_batches=micro_batches)
    clock = StepClock(config)
    clock.attention = instances
    for _ in range(instances):
        clock.begin(decode=decode, prefill=prefill, context=context)
    load = Load(batch=decode * instances, context=context, prefill=prefill * instances)
    expected = step_time(MODEL, ONE_HOST, config.deployment(instances, 4), load, a_max=a_max)
    step = {"decode": decode, "prefill": prefill, "context": context, "prefill_context": context}
    assert clock.step_s(**step) == pytest.approx(expected.total_s, rel=1e-9)
    assert clock.split(**step).waiting_s == pytest.approx(expected.waiting_s, rel=1e-6, abs=1e-12)


def test_on_one_host_a_step_waits_for_what_others_and_requests_want() -> None:
    clock = StepClock(cluster(2, profile=ONE_HOST))
    assert clock.host is not None
    clock.attention = 2
    mine = clock.begin(decode=4, prefill=0, context=100.0)
    alone = clock.step_s(decode=4, context=100.0)
    theirs = clock.begin(decode=16, prefill=64, context=100.0)
    beside = clock.step_s(decode=4, context=100.0)
    assert alone < beside <= alone + theirs
    clock.end(decode=16, prefill=64, wanted_s=theirs)
    assert clock.step_s(decode=4, context=100.0) == pytest.approx(alone)
    # A request is 3 ms of one core, and over after as long.
    clock.host.arrived(10.0)
    clock.host.arrived(10.0)
    assert clock.host.backlog_s(10.0) == pytest.approx(0.006)
    assert clock.host.backlog_s(10.004) == pytest.approx(0.002)
    assert clock.host.backlog_s(11.0) == 0
    assert clock.step_s(decode=4, context=100.0, backlog_s=0.002) == pytest.approx(alone + 0.001)
    clock.end(decode=4, prefill=0, wanted_s=mine)
    assert clock.step_s(decode=4, context=100.0) == pytest.approx(alone)


def test_a_profile_without_a_host_has_no_clock_of_one() -> None:
    assert StepClock(cluster(2)).host is None
    assert StepClock(cluster(2, profile=replace(ONE_HOST, host=Host()))).host is None
    assert StepClock(cluster(4, 4, profile=ONE_HOST, colocated=True)).host is None


def test_what_others_compute_is_noticed_beyond_the_tolerance() -> None:
    clock = StepClock(cluster(8, tolerance=0.01))
    clock.begin(decode=1, prefill=0)
    assert clock.has_shifted()
    assert not clock.has_shifted()
    clock.begin(decode=32, prefill=90)
    assert clock.has_shifted()
    clock.end(decode=32, prefill=90)
    assert clock.has_shifted()


@given(
    first=st.floats(1e-4, 1.0),
    more=st.one_of(st.just(0.0), st.floats(1e-9, 1e-3)),
    steps=st.integers(1, 4096),
    share=st.floats(0, 1.1),
)
def test_a_run_knows_how_many_of_its_steps_are_over(first: float, more: float, steps: int, share: float) -> None:
    run = Run(start_s=3.0, steps=steps, first_s=first, more_s=more, streams=2)
    now = 3.0 + share * run.length_s(steps)
    done = run.done_by(now)
    assert 0 <= done <= steps
    assert run.end_s(done) <= now or done == 0
    assert done == steps or run.end_s(done + 1) > now
    assert run.done_by(run.end_s()) == steps
