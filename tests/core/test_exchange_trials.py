"""Trials of the ways to exchange: they end at the fastest, cost little, and only what is theirs decides."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.exchange_routes import MODES, Mode
from janus.core.exchange_trials import FIRST_GAP, SKIP, WINDOW, Contest

EVEN: dict[Mode, float] = dict.fromkeys(MODES, 0.0)


@dataclass
class World:
    """A node whose ways take ``actual`` seconds per layer, more or less; its members follow the leader one layer late.

    ``layers``: after so many dispatches one is followed by no other: a step is over.
    """

    actual: Mapping[Mode, float]
    noise: Callable[[], float] = lambda: 1.0
    layers: int = 24
    contest: Contest = field(default_factory=Contest)
    taken: list[Mode] = field(default_factory=list)

    def run(self, dispatches: int, ways: tuple[Mode, ...] = MODES) -> list[Mode]:
        """Return the ways of so many dispatches."""
        before = len(self.taken)
        followed: Mode = self.taken[-1] if self.taken else "direct"
        for number in range(dispatches):
            mode, window = self.contest.choose(ways, lambda: EVEN)
            assert mode in ways
            # Half of what a layer takes is up to the members.
            seconds = (self.actual[mode] + self.actual[followed]) / 2 * self.noise()
            followed = mode
            self.taken.append(mode)
            if number % self.layers != self.layers - 1:
                self.contest.took(window, seconds)
        return self.taken[before:]


def noisy(seed: int, spread: float) -> Callable[[], float]:
    """Log-normal noise, and now and then somebody else has the core."""
    source = random.Random(seed)
    return lambda: math.exp(source.gauss(0, spread)) * (8.0 if source.random() < 0.02 else 1.0)


costs = st.fixed_dictionaries({mode: st.floats(1e-3, 3e-3) for mode in MODES})


@settings(max_examples=40, deadline=None)
@given(actual=costs, seed=st.integers(0, 999), spread=st.sampled_from([0.0, 0.05, 0.2]))
def test_it_ends_at_a_way_that_is_as_good_as_the_best(actual: dict[Mode, float], seed: int, spread: float) -> None:
    world = World(actual, noisy(seed, spread))
    world.run(1000)
    assert world.contest.settled(MODES)
    best = min(actual.values())
    assert world.contest.usual is not None
    # 3 % are as good as nothing, once more for each of two challengers; scatter does the rest.
    assert actual[world.contest.usual] <= best * (1.08 + spread / 2)


@settings(max_examples=20, deadline=None)
@given(actual=costs, seed=st.integers(0, 999))
def test_looking_around_is_cheap_in_the_long_run(actual: dict[Mode, float], seed: int) -> None:
    world = World(actual, noisy(seed, 0.1))
    world.run(4000)
    late = world.run(8000)
    best = min(actual.values())
    regret = sum(actual[mode] / best - 1 for mode in late) / len(late)
    assert regret < 0.08
    slow = sum(actual[mode] > 1.15 * best for mode in late)
    assert slow <= 0.02 * len(late), "hardly a dispatch goes a way that is clearly slower"


def test_a_hopeless_way_is_cut_off_within_its_first_window() -> None:
    world = World({"direct": 5e-3, "aggregated": 6e-3, "two-phase": 1e-3})
    taken = world.run(60)
    for mode in ("direct", "aggregated"):
        assert 0 < taken.count(mode) <= SKIP + 3, mode
    assert world.contest.settled(MODES)
    # It may have met with a burst of other load: it is looked at again, as shortly.
    again = world.run(400)
    assert 0 < again.count("direct") <= 2 * (SKIP + 3)


def test_the_longer_a_way_has_lost_the_rarer_it_is_tried() -> None:
    world = World({"direct": 1.3e-3, "aggregated": 1.3e-3, "two-phase": 1e-3}, noisy(3, 0.05))
    thousands = [world.run(10_000) for _ in range(6)]
    tried = [sum(mode != "two-phase" for mode in taken) for taken in thousands]
    assert tried[0] > 0
    assert sum(tried[3:]) <= tried[0]
    assert sum(tried[1:]) < 0.01 * 50_000


def test_of_ways_that_are_as_good_the_one_with_the_fewest_frames_is_taken() -> None:
    world = World(dict.fromkeys(MODES, 1e-3), noisy(5, 0.02))
    world.run(1, ("direct",))
    world.run(1000)
    assert world.contest.usual == "two-phase"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), at=st.integers(500, 3000))
def test_a_way_that_becomes_much_better_is_found(seed: int, at: int) -> None:
    actual: dict[Mode, float] = {"direct": 1e-3, "aggregated": 1.4e-3, "two-phase": 1.4e-3}
    world = World(actual, noisy(seed, 0.1))
    world.run(at)
    assert world.contest.usual == "direct"
    actual["direct"] = 3e-3  # the usual way shows it: nobody waits for the next trial that is due
    world.run(2 * FIRST_GAP + 400)
    assert world.contest.usual != "direct"


def test_drift_and_pauses_between_steps_change_nothing() -> None:
    """All ways become slower and slower, threefold within the time of a trial or two."""
    passed = 0

    def drift() -> float:
        nonlocal passed
        passed += 1
        return 1 + passed / 300

    world = World({"direct": 1e-3, "aggregated": 1.2e-3, "two-phase": 1.2e-3}, drift)
    world.run(1500)
    assert world.contest.usual == "direct"


def test_bursts_of_other_load_do_not_decide() -> None:
    """Five times as slow for as long as a window, again and again."""
    count = 0

    def bursts() -> float:
        nonlocal count
        count += 1
        return 5.0 if count % 70 < 10 else 1.0

    world = World({"direct": 1e-3, "aggregated": 1.25e-3, "two-phase": 1.25e-3}, bursts)
    late = world.run(3000)[1000:]
    assert late.count("direct") > 0.9 * len(late)


@given(
    which=st.lists(st.sets(st.sampled_from(MODES), min_size=1).map(lambda ways: tuple(sorted(ways))), max_size=12),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_ways_come_and_go_and_only_those_that_are_there_are_taken(which: list[tuple[Mode, ...]], seed: int) -> None:
    world = World({"direct": 1e-3, "aggregated": 1.5e-3, "two-phase": 2e-3}, noisy(seed, 0.1))
    source = random.Random(seed)
    for ways in which:
        world.run(source.randrange(1, 80), ways)  # each choice is checked to be among them
    world.run(2500)
    assert world.contest.usual == "direct"


def test_intervals_of_another_window_do_not_count() -> None:
    contest = Contest()
    windows = [contest.choose(MODES, lambda: EVEN)[1] for _ in range(SKIP + 1)]
    assert windows[:SKIP] == [0] * SKIP
    now = windows[-1]
    for _ in range(3 * WINDOW):
        contest.took(now - 1, 1e-3)
        contest.took(now + 1, 1e-3)
        contest.took(now, 0.0)
    assert {contest.choose(MODES, lambda: EVEN) for _ in range(50)} == {("two-phase", now)}, "nothing was learned"


@pytest.mark.parametrize("prior", [{"direct": 0.0, "aggregated": 1.0, "two-phase": 2.0}])
def test_it_begins_with_what_it_is_told_and_goes_on_with_what_it_knows(prior: dict[Mode, float]) -> None:
    contest = Contest()
    assert contest.choose(MODES, lambda: prior)[0] == "direct"
    # The usual way vanishes: of the others, the one that is thought to be better.
    assert contest.choose(("aggregated", "two-phase"), lambda: prior)[0] == "aggregated"
    # What was measured counts for more.
    contest.levels = {"direct": -0.5, "aggregated": 0.0, "two-phase": -0.4}
    contest.usual = "direct"
    assert contest.choose(("aggregated", "two-phase"), lambda: prior)[0] == "two-phase"
