"""Who is waited for: members that come, as long as waiting pays."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from janus.core.linger import Linger

WORTH_S = 100e-6


def send(linger: Linger, *present: str, waited_s: float = 0.0) -> None:
    linger.sent(present, waited_s=waited_s, worth_s=WORTH_S)


def test_nobody_is_waited_for_until_it_has_come_by_itself() -> None:
    linger = Linger()
    assert linger.expected(["a"]) == frozenset()
    send(linger, "a")
    assert linger.expected(["a"]) == frozenset()
    send(linger, "a", "b")
    assert linger.expected(["a"]) == {"b"}
    assert linger.expected(["b"]) == {"a"}
    assert linger.expected(["a", "b"]) == frozenset()


def test_two_misses_in_a_row_end_the_waiting_until_the_member_comes_again() -> None:
    linger = Linger()
    send(linger, "a", "b")
    send(linger, "a")
    assert linger.expected(["a"]) == {"b"}
    send(linger, "a")
    assert linger.expected(["a"]) == frozenset()
    send(linger, "a", "b")
    assert linger.expected(["a"]) == {"b"}


def test_one_that_is_gone_is_not_waited_for() -> None:
    linger = Linger()
    send(linger, "a", "b")
    linger.forget("b")
    assert linger.expected(["a"]) == frozenset()


def test_falling_into_step_costs_one_long_wait_and_is_kept() -> None:
    linger = Linger()
    send(linger, "a", "b", waited_s=10 * WORTH_S)
    for _ in range(100):
        assert linger.expected(["a"]) == {"b"}
        send(linger, "a", "b", waited_s=0.1 * WORTH_S)


def test_waiting_for_longer_than_it_saves_is_given_up_for_longer_each_time() -> None:
    linger = Linger()
    send(linger, "a", "b")
    waited = []
    for _ in range(1000):
        waits = bool(linger.expected(["a"]))
        waited.append(waits)
        send(linger, "a", "b", waited_s=3 * WORTH_S if waits else 0.0)
    pauses = [len(list(run)) for waits, run in itertools.groupby(waited) if not waits]
    tries = [len(list(run)) for waits, run in itertools.groupby(waited) if waits]
    assert pauses[:3] == [64, 128, 256]
    assert max(tries) <= 16


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.floats(0, 1)), max_size=60))
def test_whoever_is_there_is_never_waited_for(bundles: list[tuple[set[str], float]]) -> None:
    linger = Linger()
    for present, waited_s in bundles:
        assert not linger.expected(present) & present
        send(linger, *present, waited_s=waited_s)
