"""Instances that hang, fail to load or are no longer wanted, and a controller that comes back to a cluster at work."""

from __future__ import annotations

from janus.core.membership import FROZEN_S, RECALL_S, Membership
from janus.core.membership_events import ExpectedSet, MarkFailed, Registered, Tick
from janus.messages.control import Identity, PlacementTable, Register
from tests.core.cluster_harness import (
    beat,
    cluster,
    epoch_of,
    loaded,
    loads,
    logged,
    lost,
    registered,
    started,
    the_view,
)


def settle(membership: Membership, *names: str, now: float = 0.0) -> None:
    """Let ``names`` load whatever is asked of them, and no dispatch name an older epoch."""
    for _ in range(10):
        waiting = [sentence for sentence in membership.waiting_for if "is loading" in sentence]
        for sentence in waiting:
            name, epoch = sentence.split()[0], int(sentence.split()[-1])
            if name in names:
                membership.handle(loaded(name, epoch, now=now))
        membership.handle(beat("attention-0", now=now, oldest_epoch=epoch_of(membership.view) or 0))


# -- hung instances ------------------------------------------------------------------------------------------------


def test_who_is_silent_and_late_for_others_is_given_up_sooner() -> None:
    membership = started()
    for name in ("gateway-0", "expert-0"):
        membership.handle(beat(name, now=3.0))
    actions = membership.handle(beat("attention-0", now=3.0, suspects=("expert-1",)))
    assert MarkFailed(instance="expert-1", why="no heartbeat for 3.0 s, and it is late for attention-0") in actions
    assert membership.report(4.0).last_failure is not None


def test_who_is_late_and_not_silent_stays_and_is_told() -> None:
    membership = started()
    for name in ("gateway-0", "expert-0", "expert-1"):
        membership.handle(beat(name, now=3.0))
    actions = membership.handle(beat("attention-0", now=3.0, suspects=("expert-1",)))
    assert [action for action in actions if isinstance(action, MarkFailed)] == []
    assert membership.degraded == ["expert-1 is late for attention-0"]
    membership.handle(beat("attention-0", now=3.5))
    assert membership.degraded == []


def test_a_suspect_that_falls_silent_later_is_given_up_by_the_clock() -> None:
    membership = started()
    membership.handle(beat("attention-0", now=1.0, suspects=("expert-1",)))
    assert [a for a in membership.handle(Tick(now=2.0)) if isinstance(a, MarkFailed)] == []
    assert "expert-1" in [a.instance for a in membership.handle(Tick(now=2.5)) if isinstance(a, MarkFailed)]


# -- the number of instances ---------------------------------------------------------------------------------------


def test_who_is_expected_no_longer_is_not_missed() -> None:
    membership = started(experts=3)
    membership.handle(lost("expert-2"))
    assert membership.missing == ["expert-2"]
    view = the_view(membership.handle(ExpectedSet(gateways=1, attention=1, experts=2, now=1.0)))
    assert view.missing == []


def test_who_is_expected_from_now_on_is_missed_until_it_is_there() -> None:
    membership = started()
    view = the_view(membership.handle(ExpectedSet(gateways=1, attention=2, experts=3, now=1.0)))
    assert view.missing == ["attention-1", "expert-2"]
    membership.handle(registered("expert-2", now=1.0))
    assert membership.missing == ["attention-1"]


def test_any_instance_of_a_role_fills_the_number() -> None:
    membership = started()
    membership.handle(registered("gateway-1"))
    view = the_view(membership.handle(lost("gateway-0")))
    assert view.missing == []


# -- loads that fail -----------------------------------------------------------------------------------------------


def test_a_move_that_fails_is_told_rolled_back_and_tried_again_later() -> None:
    membership = started()
    membership.handle(registered("expert-2"))
    actions = membership.handle(loaded("expert-2", 2, error="the disk is gone", now=1.0))
    assert "placement_rolled_back" in logged(actions)
    assert epoch_of(membership.view) == 1
    assert membership.degraded == ["expert-2 could not load its experts: the disk is gone"]
    report = membership.report(2.0)
    assert report.last_move is not None
    assert (report.last_move.outcome, report.last_move.reason) == ("rolled back", "join")
    # It is alive all the while; after a while it may try again.
    for name in ("gateway-0", "attention-0", "expert-0", "expert-1", "expert-2"):
        membership.handle(beat(name, now=1.0 + FROZEN_S))
    actions = membership.handle(Tick(now=1.0 + FROZEN_S))
    assert loads(actions) == [("expert-0", 3), ("expert-1", 3), ("expert-2", 3)]
    settle(membership, "expert-0", "expert-1", "expert-2", now=1.0 + FROZEN_S)
    assert membership.degraded == []


# -- epochs in use -------------------------------------------------------------------------------------------------


def test_the_oldest_epoch_is_that_of_the_slowest_attention_instance() -> None:
    membership = started(attention=2)
    for name in ("attention-0", "attention-1"):
        membership.handle(beat(name, oldest_epoch=1))
    membership.handle(registered("expert-2"))
    for name in ("expert-0", "expert-1", "expert-2"):
        membership.handle(loaded(name, 2))
    assert (epoch_of(membership.view), membership.view.oldest_epoch) == (2, 1)
    membership.handle(beat("attention-0", oldest_epoch=2))
    assert membership.view.oldest_epoch == 1
    assert the_view(membership.handle(beat("attention-1", oldest_epoch=2))).oldest_epoch == 2


def test_a_dead_attention_instance_holds_no_epoch_back() -> None:
    membership = started(attention=2)
    membership.handle(beat("attention-1", oldest_epoch=1))
    membership.handle(registered("expert-2"))
    for name in ("expert-0", "expert-1", "expert-2"):
        membership.handle(loaded(name, 2))
    membership.handle(beat("attention-0", oldest_epoch=2))
    assert the_view(membership.handle(lost("attention-1"))).oldest_epoch == 2


# -- a controller that restarts ------------------------------------------------------------------------------------


def attention_with(table: PlacementTable, *, now: float = 0.0) -> Registered:
    identity = Identity(protocol=1, role="attention", instance="attention-0", node="node", incarnation="i1")
    return Registered(identity=identity, register=Register(host="h", port=1, pid=1, placement=table), now=now)


def test_the_placement_is_learnt_from_the_attention_instances() -> None:
    table = started().view.placement
    assert table is not None
    membership = cluster()
    assert loads(membership.handle(registered("expert-0", loaded_epoch=1))) == []
    assert loads(membership.handle(registered("expert-1", loaded_epoch=1))) == []
    actions = membership.handle(attention_with(table))
    assert (loads(actions), epoch_of(the_view(actions))) == ([], 1)
    assert "placement_adopted" in logged(actions)


def test_a_placement_that_nobody_can_tell_is_made_anew_after_a_while() -> None:
    membership = cluster()
    membership.handle(registered("expert-0", loaded_epoch=7))
    membership.handle(registered("expert-1", loaded_epoch=7))
    assert loads(membership.handle(Tick(now=RECALL_S - 0.1))) == []
    assert loads(membership.handle(Tick(now=RECALL_S + 0.1))) == [("expert-0", 8), ("expert-1", 8)]


def test_a_placement_that_makes_no_sense_is_not_taken() -> None:
    table = started().view.placement
    assert table is not None
    membership = cluster()
    membership.handle(registered("expert-0"))
    wrong = PlacementTable(epoch=3, num_experts=4, instances=["expert-0"], slots=[[[0, 0, 1, 2]]])
    actions = membership.handle(attention_with(wrong))
    assert "placement_not_understood" in logged(actions)
    assert epoch_of(membership.view) is None
