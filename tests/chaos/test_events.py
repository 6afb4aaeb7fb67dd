"""Random events stay within what the cluster can be, name instances that there are, and come again with the seed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus.chaos.events import Bounds, Sequence

BOUNDS = Bounds(attention=(1, 3), experts=(2, 4))


def sequence(seed: int) -> Sequence:
    return Sequence(seed=seed, attention=2, experts=3, bounds=BOUNDS)


@given(seed=st.integers(), count=st.integers(0, 60))
def test_events_are_possible_one_after_the_other(seed: int, count: int) -> None:
    sizes = {"attention": 2, "experts": 3}
    events = list(sequence(seed).draw(count))
    assert [event.index for event in events] == list(range(count))
    for event in events:
        step = {"join": 1, "leave": -1}.get(event.do, 0)
        assert event.attention + event.experts == sum(sizes.values()) + step
        if event.target:
            role, _, number = event.target.partition("-")
            there = {"attention": sizes["attention"], "expert": sizes["experts"], "controller": 1}[role]
            assert int(number) < there
        assert (event.do in ("kill", "move")) == bool(event.target)
        sizes = {"attention": event.attention, "experts": event.experts}
        assert 1 <= event.attention <= 3
        assert 2 <= event.experts <= 4
    if count >= 6:
        assert sizes == {"attention": 2, "experts": 3}, "the last events bring back what there was"


@given(seed=st.integers())
def test_the_same_seed_gives_the_same_events(seed: int) -> None:
    assert list(sequence(seed).draw(30)) == list(sequence(seed).draw(30))


def test_two_hundred_events_are_of_every_kind_on_every_role() -> None:
    events = list(sequence(0).draw(200))
    assert {event.do for event in events} == {"join", "leave", "kill", "move"}
    assert {event.target.partition("-")[0] for event in events if event.do == "kill"} == {
        "attention",
        "controller",
        "expert",
    }
