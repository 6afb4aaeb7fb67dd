"""Who is waited for: members that come, as long as waiting pays."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus.core.linger import Linger


def send(linger: Linger, *present: str, layer: int = 0) -> None:
    linger.sent(present, layer=layer)


def expected(linger: Linger, *present: str, layer: int = 0) -> frozenset[str]:
    return linger.expected(present, layer=layer)


def test_nobody_is_waited_for_until_it_has_come_by_itself() -> None:
    linger = Linger()
    assert expected(linger, "a") == frozenset()
    send(linger, "a")
    assert expected(linger, "a") == frozenset()
    send(linger, "a", "b")
    assert expected(linger, "a") == {"b"}
    assert expected(linger, "b") == {"a"}
    assert expected(linger, "a", "b") == frozenset()


def test_two_misses_in_a_row_end_the_waiting_until_the_member_comes_again() -> None:
    linger = Linger()
    send(linger, "a", "b")
    send(linger, "a")
    assert expected(linger, "a") == {"b"}
    send(linger, "a")
    assert expected(linger, "a") == frozenset()
    send(linger, "a", "b")
    assert expected(linger, "a") == {"b"}


def test_one_that_is_ahead_is_not_waited_for_in_this_layer_but_in_the_next() -> None:
    linger = Linger()
    for layer in (0, 1):
        send(linger, "a", "b", layer=layer)
    send(linger, "b", layer=0)
    assert expected(linger, "a", layer=0) == frozenset(), "b has sent this layer already"
    assert expected(linger, "b", layer=1) == {"a"}, "and waits for a in the next"
    for _ in range(5):
        send(linger, "a", layer=0)
        assert expected(linger, "a", layer=1) == {"b"}, "to be ahead is not to miss"
        send(linger, "b", layer=0)


def test_one_that_is_gone_is_not_waited_for() -> None:
    linger = Linger()
    send(linger, "a", "b")
    linger.forget("b")
    assert expected(linger, "a") == frozenset()


@given(st.lists(st.tuples(st.sets(st.sampled_from("abcd"), min_size=1), st.integers(0, 2)), max_size=60))
def test_whoever_is_there_is_never_waited_for_and_who_stays_away_is_not_for_long(
    bundles: list[tuple[set[str], int]],
) -> None:
    linger = Linger()
    for present, layer in bundles:
        assert not linger.expected(present, layer=layer) & present
        linger.sent(present, layer=layer)
    for layer in range(3):
        for _ in range(len(bundles) + 2):  # as often as any member can be ahead, and the misses
            send(linger, "z", layer=layer)
    assert expected(linger, "z", layer=0) == frozenset()
