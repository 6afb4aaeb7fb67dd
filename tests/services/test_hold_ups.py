"""A controller that stood still itself judges nobody for a while, and then again."""

from __future__ import annotations

from janus_placement_controller.hold_ups import HoldUps

HEARTBEAT_S = 0.5


def test_who_ticks_in_time_judges() -> None:
    hold_ups = HoldUps(HEARTBEAT_S, now=0.0)
    for tick in range(1, 100):
        now = tick * HEARTBEAT_S / 2
        assert hold_ups.look(now) == 0.0
        hold_ups.tick(now)
        assert hold_ups.may_judge(now)


def test_after_standing_still_nobody_is_judged_for_four_heartbeats() -> None:
    hold_ups = HoldUps(HEARTBEAT_S, now=0.0)
    assert hold_ups.look(10.0) == 10.0
    assert hold_ups.look(10.0) == 0.0  # it is told once
    assert not hold_ups.may_judge(11.9)
    assert hold_ups.judge_from == 12.0
    assert hold_ups.may_judge(12.0)


def test_a_look_between_ticks_does_not_hide_that_the_next_one_is_late() -> None:
    hold_ups = HoldUps(HEARTBEAT_S, now=0.0)
    assert hold_ups.look(0.4) == 0.0
    assert hold_ups.look(0.6) == 0.6
