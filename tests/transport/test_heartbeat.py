"""Silence of the peer ends the link; a standstill of our own does not."""

from __future__ import annotations

from janus.transport.heartbeat import Heartbeat


def test_silence_is_reported_once_it_is_too_long() -> None:
    heart = Heartbeat(0.0, interval_s=0.5, silence_s=1.2)
    assert heart.due == 0.5
    assert heart.tick(0.5) is None
    assert heart.tick(1.0) is None
    assert heart.tick(1.5) == 1.5


def test_any_frame_counts_as_life() -> None:
    heart = Heartbeat(0.0, interval_s=0.5, silence_s=1.2)
    for now in (0.5, 1.0, 1.5, 2.0, 2.5):
        heart.last_heard = now - 0.1
        assert heart.tick(now) is None


def test_our_own_standstill_is_not_held_against_the_peer() -> None:
    heart = Heartbeat(0.0, interval_s=0.5, silence_s=1.2)
    assert heart.tick(10.0) is None, "we looked away for 9.5 s; the peer was silent for 0.5 s that we know of"
    assert heart.tick(10.5) is None
    assert heart.tick(11.5) is not None


def test_round_trip() -> None:
    heart = Heartbeat(5.0, interval_s=0.5, silence_s=1.2)
    assert heart.rtt_s is None
    heart.ponged(7.25, heart.stamp(7.0))
    assert heart.rtt_s == 0.25
