"""Sequence numbers and credits as counting: against a simple model, and what a lying peer gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus.transport.frame import Header, Kind
from janus.transport.window import ReceiveWindow, SendWindow


@given(st.integers(1, 9), st.lists(st.sampled_from(["data", "link", "take", "news"]), max_size=200))
def test_two_windows_agree_whatever_the_interleaving(limit: int, events: list[str]) -> None:
    ours, theirs = SendWindow(limit), ReceiveWindow(limit)
    on_their_side = 0
    for event in events:
        if event == "data" and ours.credits > 0:
            ours.sent += 1
            theirs.accept(Header(kind=Kind.DISPATCH, seq=ours.next_seq()))
            on_their_side += 1
        elif event == "link":
            theirs.accept(Header(kind=Kind.PING, seq=ours.next_seq()))
        elif event == "take" and on_their_side:
            on_their_side -= 1
            if theirs.take():
                ours.acknowledged(theirs.ack())
        elif event == "news":
            ours.acknowledged(theirs.ack())
        assert 0 <= ours.credits <= limit
        assert theirs.held == on_their_side <= limit
        assert limit - ours.credits >= on_their_side
    ours.acknowledged(theirs.ack())
    assert limit - ours.credits == on_their_side


def test_a_window_that_is_taken_in_full_is_always_announced() -> None:
    for limit in range(1, 20):
        window = ReceiveWindow(limit)
        for seq in range(limit):
            window.accept(Header(kind=Kind.CONTROL, seq=seq))
        assert any(window.take() for _ in range(limit)), limit


def test_counters_wrap_at_two_to_the_32() -> None:
    sender, receiver = SendWindow(4), ReceiveWindow(4)
    start = 2**32 - 2
    sender.frames = sender.sent = sender.acked = start
    receiver.frames = receiver.received = receiver.taken = receiver.announced = start
    for _ in range(4):
        sender.sent += 1
        receiver.accept(Header(kind=Kind.DISPATCH, seq=sender.next_seq()))
    for _ in range(4):
        receiver.take()
    assert sender.acknowledged(receiver.ack()) and sender.credits == 4
    assert sender.frames == receiver.frames == start + 4


def test_a_peer_that_lies_is_caught() -> None:
    window = ReceiveWindow(1)
    with pytest.raises(ValueError, match="frame 1 came where 0 was due"):
        window.accept(Header(kind=Kind.PING, seq=1))
    window.accept(Header(kind=Kind.DISPATCH, seq=0))
    with pytest.raises(ValueError, match="more than the 1 frames"):
        window.accept(Header(kind=Kind.DISPATCH, seq=1))
    sender = SendWindow(3)
    sender.sent = 2
    with pytest.raises(ValueError, match="3 frames acknowledged, 2 are on their way"):
        sender.acknowledged(3)
    with pytest.raises(ValueError, match="acknowledged"):
        sender.acknowledged(2**32 - 1)
