"""Stalls and goodput of streams whose tokens came at known moments."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.chaos.figures import goodput, percentile, stall_s

moments = st.lists(st.floats(0, 10), min_size=1, max_size=50).map(sorted)


def stall(sent_at: float, tokens: list[float], ended_at: float, fault_at: float, over_at: float = 0.0) -> float | None:
    return stall_s(sent_at, tokens, ended_at, fault_at=fault_at, over_at=max(fault_at, over_at))


def test_the_stall_is_the_longest_wait_that_was_over_after_the_fault() -> None:
    tokens = [1.0, 3.5, 4.0, 4.8, 5.0]
    assert stall(0.5, tokens, 5.0, fault_at=4.1) == pytest.approx(0.8)
    assert stall(0.5, tokens, 5.0, fault_at=3.4) == pytest.approx(2.5), "it had begun before"


def test_a_stream_that_breaks_off_waited_until_then() -> None:
    assert stall(0.0, [1.0], 9.0, fault_at=2.0) == 8.0


def test_a_stream_that_was_not_in_flight_has_no_stall() -> None:
    assert stall(0.0, [1.0], 2.0, fault_at=2.0) is None
    assert stall(3.0, [4.0, 5.0], 5.0, fault_at=2.0) is None


def test_while_a_fault_lasts_streams_that_begin_count_from_their_first_token() -> None:
    assert stall(3.0, [6.0, 6.5, 6.6], 6.6, fault_at=2.0, over_at=4.0) == pytest.approx(0.5)
    assert stall(1.5, [6.0, 6.5, 6.6], 6.6, fault_at=2.0, over_at=4.0) == pytest.approx(4.5)


@given(moments, st.floats(0, 10), st.floats(0, 10))
def test_a_stall_is_no_longer_than_its_stream(tokens: list[float], fault_at: float, lasts: float) -> None:
    found = stall(0.0, tokens, 10.0, fault_at, fault_at + lasts)
    if fault_at >= 10.0:
        assert found is None
    else:
        assert found is not None
        assert 0 < found <= 10.0


@given(st.lists(st.floats(0, 100), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_with_its_share_below(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 0.5) is None


def steady(start: float, end: float, per_s: int) -> list[float]:
    return [start + (k + 0.5) / per_s for k in range(round((end - start) * per_s))]


def test_a_pause_is_a_dip_of_its_length_and_ends_with_it() -> None:
    found = goodput([*steady(0, 4, 100), *steady(4.5, 10, 100)], start=0, fault_at=4, end=10)
    assert found is not None
    assert found.before == pytest.approx(100)
    assert found.dip == pytest.approx(0.5)
    # The second from 4.4 on lacks a tenth.
    assert found.recovered_s == pytest.approx(0.4)
    assert found.bins[:6] == [0, 0, 0, 0, 0, 10]


def test_a_dip_that_comes_late_counts() -> None:
    found = goodput([*steady(0, 6, 100), *steady(6, 8, 40), *steady(8, 12, 100)], start=0, fault_at=4, end=12)
    assert found is not None
    assert found.dip == pytest.approx(0.6, abs=0.02)
    assert found.recovered_s == pytest.approx(3.9, abs=0.11)


def test_what_never_dips_has_recovered_at_once() -> None:
    found = goodput(steady(0, 10, 100), start=0, fault_at=4, end=10)
    assert found is not None
    assert found.dip == pytest.approx(0, abs=0.02)
    assert found.recovered_s == 0


def test_what_does_not_come_back_has_not_recovered() -> None:
    found = goodput([*steady(0, 4, 100), *steady(4, 10, 50)], start=0, fault_at=4, end=10)
    assert found is not None
    assert found.recovered_s is None


@pytest.mark.parametrize(("fault_at", "end"), [(0.1, 10.0), (4.0, 4.9)])
def test_a_load_too_short_tells_nothing(fault_at: float, end: float) -> None:
    assert goodput(steady(0, 10, 100), start=0, fault_at=fault_at, end=end) is None


@given(moments, st.floats(0.3, 5), st.floats(1.1, 5))
def test_a_dip_is_a_share(tokens: list[float], fault_at: float, after: float) -> None:
    found = goodput(tokens, start=0, fault_at=fault_at, end=fault_at + after)
    assert found is not None
    assert 0 <= found.dip <= 1
    assert sum(found.bins) <= len(tokens)
