"""Where replicas come from, and at what rate: with the time passed in."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.core.load_source import DISK, RateLimit, SourceChoice

MB = 1 << 20


def test_what_is_unknown_is_tried_and_then_the_faster_is_kept() -> None:
    choice = SourceChoice("auto")
    for _ in range(2):
        source = choice.order(["expert-1"], 0.0)[0]
        choice.measured(source, MB, 1.0 if source == DISK else 0.25)
    assert choice.speeds == {DISK: MB, "expert-1": 4 * MB}
    assert choice.order(["expert-1"], 0.0) == ["expert-1", DISK]
    assert choice.order([], 0.0) == [DISK]


def test_a_source_that_becomes_slow_is_left() -> None:
    choice = SourceChoice("auto")
    choice.measured(DISK, MB, 1.0)
    choice.measured("expert-1", MB, 0.5)
    measured = 0
    while choice.order(["expert-1"], 0.0)[0] == "expert-1":
        choice.measured("expert-1", MB, 4.0)
        measured += 1
    assert 1 <= measured <= 4


def test_the_slower_source_is_measured_again_now_and_then() -> None:
    choice = SourceChoice("auto")

    def load(replicas: int, disk_s: float) -> list[str]:
        sources = []
        for _ in range(replicas):
            sources.append(choice.order(["expert-1"], 0.0)[0])
            choice.measured(sources[-1], MB, disk_s if sources[-1] == DISK else 0.5)
        return sources

    assert load(66, disk_s=1.0).count(DISK) == 3
    # It has become the faster one, and is found out.
    load(64, disk_s=0.01)
    assert choice.order(["expert-1"], 0.0)[0] == DISK


def test_a_source_that_failed_is_the_last_resort_for_a_while() -> None:
    choice = SourceChoice("auto")
    choice.measured(DISK, MB, 1.0)
    choice.measured("expert-1", MB, 0.1)
    choice.failed("expert-1", 100.0)
    assert choice.order(["expert-1"], 101.0) == [DISK, "expert-1"]
    assert choice.order(["expert-1"], 131.0) == ["expert-1", DISK]


def test_the_mode_says_what_is_tried() -> None:
    peers = ["a", "b", "c"]
    assert SourceChoice("disk").order(peers, 0.0) == [DISK]
    assert SourceChoice("peer").order(peers, 0.0) == ["a", "b", DISK]
    assert SourceChoice("peer").order([], 0.0) == [DISK]


@given(
    mode=st.sampled_from(["auto", "disk", "peer"]),
    events=st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", DISK]), st.floats(1e-6, 1e3), st.booleans(), st.floats(0, 60)),
        max_size=60,
    ),
)
def test_every_order_has_the_checkpoint_once_and_only_holders(
    mode: str, events: list[tuple[str, float, bool, float]]
) -> None:
    choice, now = SourceChoice(mode), 0.0  # type: ignore[arg-type]
    for source, seconds, fails, later in events:
        now += later
        if fails:
            choice.failed(source, now)
        else:
            choice.measured(source, MB, seconds)
        order = choice.order(["a", "b", "a"], now)
        assert order.count(DISK) == 1
        assert len(set(order)) == len(order) <= 3
        assert set(order) <= {"a", "b", DISK}


@given(
    rate=st.floats(1.0, 1e9),
    pieces=st.lists(st.tuples(st.integers(1, 50 * MB), st.floats(0, 10)), min_size=1, max_size=50),
)
def test_no_more_than_the_rate_passes_in_any_window(rate: float, pieces: list[tuple[int, float]]) -> None:
    limit, now = RateLimit(rate), 0.0
    begun: list[tuple[float, int]] = []
    for nbytes, idle_s in pieces:
        now += idle_s
        now += limit.take(nbytes, now)
        begun.append((now, nbytes))
    for first in range(len(begun)):
        total = 0
        for at, nbytes in begun[first:]:
            window_s = at - begun[first][0]
            # What has begun before this piece fits the rate, a quarter of a second of it, and one piece.
            largest = max(size for _, size in begun[first:])
            assert total <= rate * (window_s + 0.25) * (1 + 1e-6) + largest + 1
            total += nbytes


def test_without_a_limit_nothing_waits() -> None:
    assert all(RateLimit(0).take(1 << 40, 0.0) == 0.0 for _ in range(3))


def test_pieces_larger_than_the_burst_pass_at_the_rate() -> None:
    limit, now = RateLimit(10.0), 0.0
    for _ in range(11):
        now += limit.take(100, now)
    assert math.isclose(now, 10 * 10.0 - 0.25)


def test_what_did_not_go_is_not_paid_for() -> None:
    limit = RateLimit(100.0)
    assert limit.take(1000, 0.0) == 0.0
    limit.give(1000)
    assert limit.take(10, 0.0) == pytest.approx(0.0)
    assert limit.take(20, 0.0) == pytest.approx(0.0)
    assert limit.take(1, 0.0) == pytest.approx(0.05)
