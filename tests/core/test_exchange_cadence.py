"""How fast layers follow each other: what is between two dispatches of a step, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from janus.core.exchange_cadence import Cadence


def test_layers_of_a_step_follow_each_other_and_steps_do_not() -> None:
    cadence: Cadence[str] = Cadence()
    found = []
    for step, begun_s in (("first", 1.0), ("second", 100.0)):  # a client thought about it meanwhile
        for layer in range(3):
            now_s = begun_s + layer / 8
            found.append(cadence.ended("loop", layer=layer, rows=4, now_s=now_s))
            cadence.begun("loop", layer=layer, rows=4, now_s=now_s, mark=f"{step} {layer}")
    assert found == [None, ("first 0", 0.125), ("first 1", 0.125), None, ("second 0", 0.125), ("second 1", 0.125)]


def test_other_rows_or_an_interruption_are_another_step() -> None:
    cadence: Cadence[None] = Cadence()
    cadence.begun("loop", layer=0, rows=4, now_s=1.0, mark=None)
    assert cadence.ended("loop", layer=1, rows=5, now_s=2.0) is None
    assert cadence.ended("loop", layer=2, rows=4, now_s=2.0) is None
    assert cadence.ended("other", layer=1, rows=4, now_s=2.0) is None
    assert cadence.ended("loop", layer=1, rows=4, now_s=1.0) is None, "a clock that stands still says nothing"
    assert cadence.ended("loop", layer=1, rows=4, now_s=2.0) == (None, 1.0)
    cadence.interrupted("loop")
    assert cadence.ended("loop", layer=1, rows=4, now_s=2.0) is None


def test_steps_that_overlap_are_told_apart_and_forgotten_when_there_are_many() -> None:
    cadence: Cadence[int] = Cadence()
    for stream in range(100):
        cadence.begun(stream, layer=0, rows=1, now_s=float(stream), mark=stream)
    assert cadence.ended(99, layer=1, rows=1, now_s=200.0) == (99, 101.0)
    assert cadence.ended(90, layer=1, rows=1, now_s=200.0) == (90, 110.0)
    assert cadence.ended(0, layer=1, rows=1, now_s=200.0) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 2), st.floats(1e-4, 1.0)), max_size=60))
def test_an_interval_is_never_longer_than_since_the_last_dispatch_of_its_step(
    dispatches: list[tuple[int, int, int, float]],
) -> None:
    cadence: Cadence[float] = Cadence()
    now_s = 0.0
    last: dict[int, tuple[int, int, float]] = {}
    for stream, layer, rows, passed_s in dispatches:
        now_s += passed_s
        ended = cadence.ended(stream, layer=layer, rows=rows, now_s=now_s)
        expected = last.get(stream)
        if expected is not None and expected[:2] == (layer - 1, rows):
            assert ended == (expected[2], now_s - expected[2])
        else:
            assert ended is None
        cadence.begun(stream, layer=layer, rows=rows, now_s=now_s, mark=now_s)
        last[stream] = (layer, rows, now_s)
