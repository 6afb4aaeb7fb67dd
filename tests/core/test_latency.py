"""The histogram of latencies: what it counts, how exact its percentiles are, and that sums and differences agree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.latency import LatencyHistogram

latencies = st.lists(st.floats(2e-4, 900.0), max_size=60)


def histogram(values: list[float]) -> LatencyHistogram:
    found = LatencyHistogram()
    for value in values:
        found.add(value)
    return found


def test_of_nothing_there_is_no_percentile() -> None:
    assert LatencyHistogram().percentile(99) is None
    assert LatencyHistogram().total == 0


@given(values=latencies.filter(bool), percent=st.floats(0, 100))
def test_percentiles_are_within_a_bucket(values: list[float], percent: float) -> None:
    found = histogram(values).percentile(percent)
    rank = max(1, -(-percent * len(values) // 100))
    exact = sorted(values)[int(rank) - 1]
    assert found == pytest.approx(exact, rel=0.026)


@given(early=latencies, late=latencies)
def test_a_difference_is_what_came_after(early: list[float], late: list[float]) -> None:
    total = histogram(early).plus(histogram(late))
    assert total.pairs() == histogram(early + late).pairs()
    assert total.since(histogram(early)).pairs() == histogram(late).pairs()


@given(values=latencies)
def test_it_survives_the_wire(values: list[float]) -> None:
    found = histogram(values)
    assert LatencyHistogram.of_pairs(found.pairs()).pairs() == found.pairs()


def test_what_is_out_of_range_is_counted_at_the_ends_and_buckets_that_cannot_be_are_not() -> None:
    found = histogram([0.0, 1e-9, 1e9])
    assert found.total == 3
    assert found.percentile(100) == pytest.approx(1000, rel=0.06)
    assert LatencyHistogram.of_pairs([(-1, 5), (10**9, 5), (3, 0), (3, -2)]).total == 0
