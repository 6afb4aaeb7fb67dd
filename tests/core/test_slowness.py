"""Who is late, for how long it is left out, who gets less work: for any timings, on a clock of the test."""

from __future__ import annotations

import math
from statistics import median_low

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.slowness import BACK_OFF_S, FLOOR_S, LONGEST_BACK_OFF_S, Slowness

TIMEOUT_S = 30.0
NAMES = ("expert-0", "expert-1", "expert-2", "expert-3")
SIZES = st.sampled_from([1, 4, 16, 64, 1024])
JITTER = st.floats(0.6, 1.6)


class Cluster:
    """Expert instances that answer after the seconds given; dispatches are hedged as an exchange does."""

    def __init__(self, slowness: Slowness) -> None:
        self.slowness = slowness
        self.now_s = 0.0
        self.waited_s = 0.0

    def dispatch(self, seconds: dict[str, float], *, rows: int = 16) -> tuple[str, ...]:
        """Ask everybody who is not left out; returns who was late."""
        slowness = self.slowness
        slowness.readmit(now_s=self.now_s)
        asked = {name: s for name, s in seconds.items() if name not in slowness.suspects}
        hedge_s = slowness.hedge_after_s("direct", rows)
        late = tuple(name for name, s in asked.items() if s > hedge_s)
        if late and len(late) < len(asked) and slowness.may_hedge():
            self.waited_s = hedge_s
            slowness.late(late, now_s=self.now_s + hedge_s)
        else:
            late = ()
            self.waited_s = max(asked.values())
            slowness.answered("direct", rows, list(asked.items()))
        self.now_s += self.waited_s
        return late


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-4, 2.0), st.lists(st.tuples(JITTER, JITTER, JITTER, JITTER), min_size=10, max_size=60), SIZES)
def test_a_cluster_that_is_slow_as_a_whole_suspects_nobody(
    usual_s: float, jitter: list[tuple[float, ...]], rows: int
) -> None:
    cluster = Cluster(Slowness(timeout_s=TIMEOUT_S))
    for factors in jitter:
        late = cluster.dispatch({n: usual_s * f for n, f in zip(NAMES, factors, strict=True)}, rows=rows)
        assert late == ()
    assert cluster.slowness.suspects == frozenset()


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-4, 1.0), st.sampled_from(NAMES), st.integers(4, 40))
def test_one_that_stops_is_late_soon_and_the_others_are_not_held_up_again(
    usual_s: float, stopped: str, before: int
) -> None:
    cluster = Cluster(Slowness(timeout_s=TIMEOUT_S))
    usual = dict.fromkeys(NAMES, usual_s)
    for _ in range(before):
        cluster.dispatch(usual)
    assert cluster.dispatch(usual | {stopped: math.inf}) == (stopped,)
    assert cluster.waited_s <= min(max(FLOOR_S, 6 * usual_s) * 1.001, TIMEOUT_S / 2)
    until_s = cluster.now_s + BACK_OFF_S
    assert cluster.slowness.due_s == pytest.approx(until_s)
    while cluster.now_s < until_s - usual_s:
        assert cluster.dispatch(usual | {stopped: math.inf}) == ()
    # It has recovered: it is back within the back-off, and stays.
    cluster.now_s = until_s
    assert cluster.dispatch(usual) == ()
    assert cluster.slowness.suspects == frozenset()


def test_before_anything_is_known_half_of_the_deadline_is_waited() -> None:
    assert Slowness(timeout_s=TIMEOUT_S).hedge_after_s("direct", 7) == TIMEOUT_S / 2


def test_what_is_not_known_is_taken_from_the_nearest_size() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for _ in range(8):
        slowness.answered("two-phase", 16, [("expert-0", 0.05)])
    known_s = slowness.hedge_after_s("two-phase", 16)
    assert known_s == pytest.approx(0.3)
    assert slowness.hedge_after_s("two-phase", 3) == known_s, "fewer rows take no longer"
    assert slowness.hedge_after_s("two-phase", 64) == pytest.approx(4 * known_s)
    assert slowness.hedge_after_s("direct", 16) == known_s, "another way is a first guess"
    assert slowness.hedge_after_s("two-phase", 1 << 20) == TIMEOUT_S / 2


@given(st.lists(st.floats(1e-5, 100.0), min_size=4, max_size=40), SIZES)
def test_a_wait_is_never_shorter_than_the_floor_nor_longer_than_half_the_deadline(
    timings: list[float], rows: int
) -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for seconds in timings:
        slowness.answered("direct", rows, [(name, seconds) for name in NAMES])
        assert FLOOR_S <= slowness.hedge_after_s("direct", rows) <= TIMEOUT_S / 2


def test_a_single_slow_instance_does_not_make_the_others_wait_longer() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for _ in range(100):
        slowness.answered("direct", 16, [("expert-0", 0.002), ("expert-1", 3.0)])
    assert slowness.hedge_after_s("direct", 16) == FLOOR_S


def test_the_back_off_doubles_up_to_a_limit_and_is_forgiven_after_as_long() -> None:
    slowness, now_s, spans = Slowness(timeout_s=TIMEOUT_S), 100.0, []
    for _ in range(9):
        slowness.late(["expert-0"], now_s=now_s)
        spans.append(slowness.due_s - now_s)
        now_s = slowness.due_s
        assert slowness.readmit(now_s=now_s) == ("expert-0",)
    assert spans == [min(BACK_OFF_S * 2**n, LONGEST_BACK_OFF_S) for n in range(9)]
    now_s += LONGEST_BACK_OFF_S + 1
    slowness.late(["expert-0"], now_s=now_s)
    assert slowness.due_s - now_s == BACK_OFF_S


def test_a_late_answer_brings_it_back_the_first_time_only() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    slowness.late(["expert-0"], now_s=0.0)
    assert slowness.alive("expert-0", now_s=0.1)
    assert slowness.suspects == frozenset()
    assert not slowness.alive("expert-0", now_s=0.2), "it is no suspect"
    slowness.late(["expert-0"], now_s=0.3)
    assert not slowness.alive("expert-0", now_s=0.4)
    assert slowness.suspects == {"expert-0"}
    assert slowness.readmit(now_s=0.3 + 2 * BACK_OFF_S) == ("expert-0",)


def test_those_that_are_needed_are_used_whatever_they_did() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    slowness.late(["expert-0", "expert-1"], now_s=0.0)
    assert slowness.readmit(now_s=0.1, all_but=frozenset(["expert-1"])) == ("expert-0",)
    assert slowness.suspects == {"expert-1"}


def test_who_is_gone_is_forgotten() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for _ in range(8):
        slowness.answered("direct", 1, [("expert-0", 1.0), ("expert-1", 0.001)])
        slowness.answered("direct", 1, [("expert-0", 1.0)])
    slowness.late(["expert-0"], now_s=0.0)
    slowness.forget(["expert-0"])
    assert slowness.suspects == frozenset()
    assert slowness.due_s == math.inf
    slowness.answered("direct", 1, [("expert-1", 0.001)])
    assert slowness.hedge_after_s("direct", 1) == FLOOR_S


def test_hedges_are_a_small_share_of_dispatches() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    made = sum(slowness.may_hedge() for _ in range(100))
    assert 4 <= made <= 16
    for _ in range(40):
        slowness.answered("direct", 1, [("expert-0", 0.001)])
    assert 1 <= sum(slowness.may_hedge() for _ in range(100)) <= 10


# -- who gets less work --------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-4, 0.1), st.lists(st.tuples(*[st.floats(0.85, 1.2)] * 4), min_size=20, max_size=200))
def test_on_an_ordinary_cluster_nobody_gets_less(usual_s: float, jitter: list[tuple[float, ...]]) -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for factors in jitter:
        slowness.answered("direct", 16, [(n, usual_s * f) for n, f in zip(NAMES, factors, strict=True)])
        assert slowness.biases == {}


def test_stalls_now_and_then_take_nothing_away() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for number in range(400):
        seconds = dict.fromkeys(NAMES, 0.005)
        if number % 20 == 0:
            seconds[NAMES[number // 20 % 4]] = 0.5
        slowness.answered("direct", 16, list(seconds.items()))
        assert slowness.biases == {}


@pytest.mark.parametrize("factor", [2.0, 4.0])
def test_one_that_is_slower_gets_less_until_it_keeps_up_and_more_when_it_has_recovered(factor: float) -> None:
    """AEBS evens out experts plus bias: with 40 for four instances, a bias of b leaves 10 - 3b/4 for the slow one."""
    slowness = Slowness(timeout_s=TIMEOUT_S)

    def dispatch(slow: float) -> tuple[float, float]:
        bias = slowness.biases.get("expert-0", 0)
        less = max(0.0, 10 - 0.75 * bias)
        rest = (40 - less) / 3
        timings = [(name, 1e-3 * rest) for name in NAMES[1:]]
        if less > 0:
            timings.append(("expert-0", slow * 1e-3 * less))
        slowness.answered("direct", 16, timings)
        return slow * less, rest

    worst = [max(dispatch(factor)) for _ in range(600)]
    assert max(worst[-50:]) < 1.7 * median_low(worst[-50:])
    assert max(worst[-50:]) < 0.8 * worst[0]
    assert set(slowness.biases) == {"expert-0"}
    for _ in range(600):
        dispatch(1.0)
    assert slowness.biases == {}


def test_one_that_gets_nothing_any_more_is_tried_again() -> None:
    slowness = Slowness(timeout_s=TIMEOUT_S)
    for _ in range(200):
        slowness.answered("direct", 16, [("expert-0", 0.5), ("expert-1", 0.001), ("expert-2", 0.001)])
    assert slowness.biases["expert-0"] > 4
    for _ in range(64 * 16):
        slowness.answered("direct", 16, [("expert-1", 0.001), ("expert-2", 0.001)])
    assert slowness.biases == {}
