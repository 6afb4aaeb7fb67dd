"""How many micro-batches: the better choice wins, looking for it costs little, and what cannot pay is not tried."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.micro_batches import AutoMicroBatches, FixedMicroBatches, Limits, StepSample

#: (micro-batches, streams) -> seconds of a step, idle share of it.
World = Callable[[int, int], tuple[float, float]]


def run(
    policy: AutoMicroBatches,
    world: World,
    steps: int,
    *,
    streams: int = 16,
    noise: float = 0.0,
    settled: float = 1.0,
    seed: int = 0,
) -> list[int]:
    """The choices of ``steps`` steps in a world that does not change."""
    source, choices = random.Random(seed), []
    for _ in range(steps):
        count = policy.choose(streams)
        choices.append(count)
        step_s, idle = world(count, streams)
        step_s *= 1 + source.uniform(-noise, noise)
        policy.record(
            StepSample(
                micro_batches=count,
                streams=streams,
                step_s=step_s,
                idle_s=idle * step_s,
                settled=source.random() < settled,
            )
        )
    return choices


def kept(choices: list[int]) -> int:
    """The choice of most of the last steps; now and then one is a trial."""
    return statistics.mode(choices[-200:])


def world_of(*seconds: float, idle: float = 0.5) -> World:
    """``seconds[n - 1]`` is what a step takes with n micro-batches."""
    return lambda count, _: (seconds[count - 1], idle)


@pytest.mark.parametrize(("count", "streams", "chosen"), [(1, 9, 1), (2, 9, 2), (4, 3, 3), (4, 1, 1), (2, 0, 1)])
def test_a_fixed_number_is_kept_as_far_as_there_are_streams(count: int, streams: int, chosen: int) -> None:
    assert FixedMicroBatches(count).choose(streams) == chosen


def test_it_begins_with_one_and_goes_to_two_where_that_pays() -> None:
    policy = AutoMicroBatches(Limits(most=2))
    choices = run(policy, world_of(0.010, 0.007), 100)
    assert choices[:16] == [1] * 16
    assert choices[16:] == [2] * 84


def test_it_stays_with_one_where_two_are_slower() -> None:
    policy = AutoMicroBatches(Limits(most=2))
    choices = run(policy, world_of(0.010, 0.013), 5000)
    assert kept(choices) == 1
    assert choices.count(2) <= 16 + 0.02 * 5000 / 1.3


def test_a_gain_that_noise_could_make_is_not_taken() -> None:
    policy = AutoMicroBatches(Limits(most=2))
    assert kept(run(policy, world_of(0.0100, 0.0098), 3000)) == 1


def test_it_goes_back_when_the_gain_is_gone() -> None:
    policy = AutoMicroBatches(Limits(most=2))
    assert kept(run(policy, world_of(0.010, 0.007), 2000)) == 2
    assert kept(run(policy, world_of(0.010, 0.012), 10_000)) == 1


def test_it_climbs_to_as_many_as_pay() -> None:
    choices = run(AutoMicroBatches(), world_of(0.020, 0.012, 0.009, 0.010), 2000)
    assert choices[:80] == [1] * 16 + [2] * 16 + [3] * 16 + [4] * 16 + [3] * 16
    assert kept(choices) == 3


def test_what_cannot_pay_is_never_tried() -> None:
    """Hardly any idle time: the second micro-batch would only read every expert once more."""
    policy = AutoMicroBatches()
    assert set(run(policy, world_of(0.010, 0.001, idle=0.04), 5000)) == {1}
    assert policy.explored_steps == 0


def test_one_stream_is_never_split() -> None:
    policy = AutoMicroBatches()
    assert kept(run(policy, world_of(0.020, 0.010, 0.010, 0.010), 500)) > 1
    assert set(run(policy, world_of(0.020, 0.001), 500, streams=1)) == {1}
    assert policy.choose(0) == 1


def test_there_are_never_more_micro_batches_than_streams() -> None:
    assert max(run(AutoMicroBatches(), world_of(0.04, 0.02, 0.01, 0.001), 5000, streams=2)) == 2


def test_each_number_of_streams_is_judged_by_itself() -> None:
    def world(count: int, streams: int) -> tuple[float, float]:
        return (0.010 if count == 1 else 0.007 if streams > 8 else 0.015), 0.5

    policy = AutoMicroBatches(Limits(most=2))
    assert kept(run(policy, world, 3000, streams=32)) == 2
    assert kept(run(policy, world, 3000, streams=4)) == 1
    assert kept(run(policy, world, 10, streams=32)) == 2


def test_a_stream_more_or_less_changes_nothing() -> None:
    """At the edge between two levels the choice must not go to and fro."""
    policy = AutoMicroBatches(Limits(most=2))
    run(policy, world_of(0.010, 0.007), 1000, streams=22)
    choices = [policy.choose(streams) for streams in (22, 23, 24, 22, 23) * 3]
    assert set(choices) == {2}


def test_a_trial_without_settled_steps_ends() -> None:
    policy = AutoMicroBatches(Limits(most=2))
    run(policy, world_of(0.010, 0.007), 16)
    assert policy.choose(16) == 2
    choices = run(policy, world_of(0.010, 0.007), 200, settled=0.0)
    assert choices == [2] * 64 + [1] * 136


def test_steps_that_are_not_settled_are_no_evidence() -> None:
    assert set(run(AutoMicroBatches(), world_of(0.010, 0.001), 500, settled=0.0)) == {1}


@settings(max_examples=40, deadline=None)
@given(
    other=st.floats(0.4, 3.0).filter(lambda ratio: not 0.92 <= ratio <= 1.03),
    extra_idle=st.floats(0.0, 0.3),
    streams=st.integers(2, 64),
    settled=st.floats(0.4, 1.0),
    seed=st.integers(0, 10_000),
)
def test_the_better_of_two_wins_and_looking_is_cheap(
    *, other: float, extra_idle: float, streams: int, settled: float, seed: int
) -> None:
    """Overlap hides at most what is idle, so the idle share is at least what two micro-batches win."""
    idle = min(0.95, max(0.0, 1 - other) + extra_idle)
    policy = AutoMicroBatches(Limits(most=2))
    steps = 8000
    choices = run(
        policy,
        world_of(0.010, 0.010 * other, idle=idle),
        steps,
        streams=streams,
        noise=0.05,
        settled=settled,
        seed=seed,
    )
    better = 2 if other < 1 else 1
    tail = choices[-2000:]
    assert tail.count(better) >= 0.95 * len(tail)
    assert policy.explored_steps <= policy.limits.trial_steps + policy.limits.explored * steps


@settings(max_examples=40, deadline=None)
@given(
    slope=st.lists(st.floats(0.6, 1.6).filter(lambda ratio: not 0.9 <= ratio <= 1.03), min_size=3, max_size=3),
    seed=st.integers(0, 10_000),
)
def test_it_climbs_to_the_first_best(slope: list[float], seed: int) -> None:
    """Up for as long as one more pays; there is no way down from a choice that is better than its neighbours."""
    seconds, best = [0.010], 1
    for index, ratio in enumerate(slope):
        seconds.append(seconds[-1] * ratio)
        if ratio < 1 and best == index + 1:
            best = index + 2
    choices = run(AutoMicroBatches(), world_of(*seconds), 12_000, noise=0.03, seed=seed)
    tail = choices[-2000:]
    assert tail.count(best) >= 0.9 * len(tail)


@settings(max_examples=40, deadline=None)
@given(
    phases=st.lists(
        st.tuples(st.integers(0, 70), st.integers(1, 400), st.floats(0.5, 2.0), st.floats(0.0, 1.0)), max_size=30
    ),
    seed=st.integers(0, 1000),
)
def test_looking_is_cheap_whatever_happens(phases: list[tuple[int, int, float, float]], seed: int) -> None:
    policy = AutoMicroBatches()
    for streams, steps, ratio, settled in phases:
        seconds = [0.01 * ratio**index for index in range(4)]
        choices = run(policy, world_of(*seconds), steps, streams=streams, settled=settled, seed=seed)
        assert all(1 <= choice <= max(1, min(4, streams)) for choice in choices)
    assert policy.steps == sum(steps for _, steps, _, _ in phases)
    # Every trial is paid for before the next one but on the way up; the last may not be yet.
    limits = policy.limits
    assert policy.explored_steps <= (limits.most - 1) * limits.trial_steps + limits.explored * policy.steps
