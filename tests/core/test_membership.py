"""What the controller does about instances that come, report, drain and die."""

from __future__ import annotations

import pytest

from janus.core.membership import roster
from janus.core.membership_events import LeaveSeen, Log, MarkFailed, RefuseDuplicate, SendFatal, SendRegistered, Tick
from janus.core.roster import natural_order
from tests.core.cluster_harness import (
    beat,
    check_view,
    cluster,
    epoch_of,
    kinds,
    loaded,
    loads,
    logged,
    lost,
    registered,
    started,
    the_view,
)


def test_roster_names_every_instance() -> None:
    assert roster(attention=1, experts=2) == {
        "gateway-0": "gateway",
        "attention-0": "attention",
        "expert-0": "expert",
        "expert-1": "expert",
    }


def test_names_sort_by_number() -> None:
    assert sorted(["expert-10", "expert-9", "a-2", "expert"], key=natural_order) == [
        "a-2",
        "expert",
        "expert-9",
        "expert-10",
    ]


def test_a_cluster_comes_up_in_any_order() -> None:
    membership = cluster()
    assert (membership.view.version, membership.view.missing) == (
        0,
        ["gateway-0", "attention-0", "expert-0", "expert-1"],
    )

    actions = membership.handle(registered("expert-1"))
    assert actions[0] == SendRegistered(instance="expert-1", heartbeat_s=1.0)
    assert kinds(actions) == ["SendRegistered", "SendView"]
    view = the_view(actions)
    assert (view.version, view.missing, view.placement) == (1, ["gateway-0", "attention-0", "expert-0"], None)
    assert [(m.instance, m.state, m.port) for m in view.members] == [("expert-1", "joining", 9)]

    actions = membership.handle(registered("expert-0"))
    assert kinds(actions) == ["SendRegistered", "SendLoad", "SendLoad", "SendView"]
    assert loads(actions) == [("expert-0", 1), ("expert-1", 1)]
    assert the_view(actions).placement is None

    assert membership.handle(loaded("expert-1", 1)) == []
    actions = membership.handle(loaded("expert-0", 1))
    assert logged(actions) == ["placement_in_force"]
    assert epoch_of(the_view(actions)) == 1
    membership.handle(registered("attention-0"))
    assert the_view(membership.handle(registered("gateway-0"))).missing == []


def test_a_heartbeat_without_news_is_silent_and_one_with_news_is_not() -> None:
    membership = cluster()
    membership.handle(registered("attention-0"))
    view = the_view(membership.handle(beat("attention-0")))
    assert (view.version, view.members[0].state) == (2, "ready")
    assert membership.handle(beat("attention-0", now=1.0)) == []
    report = membership.report(3.5)
    assert report.heartbeat_age_s == {"attention-0": 2.5}
    assert report.started_s == 3.5
    assert membership.handle(beat("expert-7")) == []


def test_a_heartbeat_may_confirm_the_load() -> None:
    membership = cluster(experts=1)
    membership.handle(registered("expert-0"))
    assert epoch_of(the_view(membership.handle(beat("expert-0", loaded_epoch=1)))) == 1


def test_silence_is_failure() -> None:
    membership = started()
    assert [a for a in membership.handle(Tick(now=8.0)) if isinstance(a, MarkFailed)] == []
    for name in ("gateway-0", "attention-0", "expert-0"):
        membership.handle(beat(name, now=8.0))
    actions = membership.handle(Tick(now=8.5))
    assert MarkFailed(instance="expert-1", why="no heartbeat for 8.5 s") in actions
    view = the_view(actions)
    assert (view.missing, view.placement) == (["expert-1"], None)
    assert [m.state for m in view.members] == ["ready", "ready", "failed", "ready"]
    # What a process that was given up still says changes nothing; it has to register anew.
    assert membership.handle(beat("expert-1", now=8.6)) == []
    assert membership.handle(lost("expert-1", now=3.6)) == []


def test_waiting_is_reported_with_names_and_not_every_tick() -> None:
    membership = cluster()
    for name in ("gateway-0", "attention-0", "expert-0"):
        membership.handle(registered(name))
    assert membership.handle(Tick(now=1.0)) == []
    actions = membership.handle(Tick(now=2.0))
    fields: dict[str, object] = {"missing": ["expert-1"], "reasons": ["expert-1 has not registered"]}
    assert actions == [Log(level="warning", event="cluster_waits", fields=fields)]
    assert membership.handle(Tick(now=2.5)) == []
    membership.handle(registered("expert-1", now=2.6))
    membership.handle(loaded("expert-1", 1))
    assert membership.waiting_for == ["expert-0 is loading the experts of epoch 1"]


def test_a_live_duplicate_is_refused_by_name() -> None:
    membership = started()
    before = membership.view
    actions = membership.handle(registered("expert-0", incarnation="i2", now=0.5))
    assert kinds(actions) == ["RefuseDuplicate"]
    refusal = actions[0]
    assert isinstance(refusal, RefuseDuplicate)
    assert (refusal.instance, refusal.incarnation) == ("expert-0", "i2")
    assert "10.0.0.1:9 (pid 77, heard of 0.5 s ago)" in refusal.problem
    assert membership.view == before


def test_a_restarted_expert_is_placed_again() -> None:
    membership = started()
    view = the_view(membership.handle(lost("expert-1", incarnation="i1")))
    assert (view.missing, view.placement) == (["expert-1"], None)
    # The survivor loads what was lost; then the restarted one gets its share again.
    assert loads(membership.handle(registered("expert-1", incarnation="i2"))) == []
    assert loads(membership.handle(loaded("expert-0", 2))) == [("expert-0", 3), ("expert-1", 3)]
    assert epoch_of(membership.view) == 2
    assert membership.handle(loaded("expert-1", 1, incarnation="i2")) == []  # an epoch of another life
    membership.handle(loaded("expert-0", 3))
    assert membership.handle(loaded("expert-1", 3, incarnation="i1")) == []  # and a process of another life
    assert epoch_of(membership.view) == 2
    assert epoch_of(the_view(membership.handle(loaded("expert-1", 3, incarnation="i2")))) == 3


def test_news_of_an_earlier_process_does_not_touch_the_new_one() -> None:
    membership = started()
    membership.handle(lost("expert-1", incarnation="i1"))
    membership.handle(registered("expert-1", incarnation="i2"))
    assert membership.handle(lost("expert-1", incarnation="i1")) == []
    assert membership.handle(beat("expert-1", state="draining", incarnation="i1")) == []
    assert membership.missing == []


def test_a_link_that_breaks_for_a_moment_costs_no_load() -> None:
    membership = started()
    membership.handle(lost("expert-1"))
    actions = membership.handle(registered("expert-1", loaded_epoch=1))
    assert loads(actions) == []
    assert logged(actions) == ["instance_registered", "placement_rolled_back"]
    assert epoch_of(the_view(actions)) == 1


def test_a_second_link_of_the_same_process_gets_a_view() -> None:
    membership = started()
    actions = membership.handle(registered("attention-0"))
    assert kinds(actions) == ["SendRegistered", "SendView"]
    assert [m.state for m in the_view(actions).members] == ["ready"] * 4


def test_replicas_elsewhere_carry_on_when_an_instance_dies() -> None:
    membership = started(slots=4)
    actions = membership.handle(lost("expert-1"))
    assert epoch_of(the_view(actions)) == 1  # whoever dispatches plans without the dead one
    assert loads(actions) == [("expert-0", 2)]
    view = the_view(membership.handle(loaded("expert-0", 2)))
    check_view(view)
    assert (epoch_of(view), view.missing) == (2, ["expert-1"])
    # It comes back: the full placement is made before what is left of the old one is given up.
    actions = membership.handle(registered("expert-1", incarnation="i2", slots=4))
    assert loads(actions) == [("expert-0", 3), ("expert-1", 3)]
    assert epoch_of(the_view(actions)) == 2
    membership.handle(loaded("expert-1", 3))
    assert epoch_of(the_view(membership.handle(loaded("expert-0", 3)))) == 3


def test_an_expert_may_join_and_leave_live() -> None:
    membership = started()
    actions = membership.handle(registered("expert-2"))
    assert loads(actions) == [("expert-0", 2), ("expert-1", 2), ("expert-2", 2)]
    assert epoch_of(the_view(actions)) == 1
    for name in ("expert-0", "expert-1", "expert-2"):
        membership.handle(loaded(name, 2))
    assert epoch_of(membership.view) == 2

    actions = membership.handle(LeaveSeen(instance="expert-2", reason="SIGTERM", now=1.0))
    assert loads(actions) == [("expert-0", 3), ("expert-1", 3)]
    assert epoch_of(the_view(actions)) == 2  # it serves on until the others have what it has
    membership.handle(loaded("expert-0", 3))
    assert epoch_of(the_view(membership.handle(loaded("expert-1", 3)))) == 3
    view = the_view(membership.handle(lost("expert-2")))
    assert (epoch_of(view), view.missing) == (3, [])
    assert all(member.instance != "expert-2" for member in view.members)


def test_a_heartbeat_may_announce_the_departure() -> None:
    membership = started()
    membership.handle(registered("expert-2"))
    for name in ("expert-0", "expert-1", "expert-2"):
        membership.handle(loaded(name, 2))
    actions = membership.handle(beat("expert-2", state="draining"))
    assert loads(actions) == [("expert-0", 3), ("expert-1", 3)]
    assert membership.handle(beat("expert-2", state="draining")) == []


def test_a_draining_member_of_the_roster_serves_until_others_have_its_experts() -> None:
    membership = started()
    actions = membership.handle(LeaveSeen(instance="expert-1", reason="SIGTERM", now=1.0))
    assert loads(actions) == [("expert-0", 2)]
    assert epoch_of(the_view(actions)) == 1
    assert membership.handle(beat("expert-1", state="ready", now=1.0)) == []  # it was on its way
    membership.handle(loaded("expert-0", 2))
    view = the_view(actions := membership.handle(lost("expert-1")))
    assert (epoch_of(view), view.missing) == (2, ["expert-1"])
    assert logged(actions) == ["instance_left"]


def test_an_instance_that_says_it_failed_is_failed() -> None:
    membership = started()
    actions = membership.handle(beat("attention-0", state="failed", reason="out of memory"))
    assert MarkFailed(instance="attention-0", why="out of memory") in actions
    assert the_view(actions).missing == ["attention-0"]


def test_experts_that_cannot_be_loaded_are_fatal_for_their_instance() -> None:
    membership = cluster()
    membership.handle(registered("expert-0"))
    membership.handle(registered("expert-1"))
    actions = membership.handle(loaded("expert-1", 1, error="model.safetensors is truncated"))
    problem = "could not load its experts of epoch 1: model.safetensors is truncated"
    assert actions[0] == SendFatal(instance="expert-1", incarnation="i1", problem=problem)
    assert MarkFailed(instance="expert-1", why=problem) in actions
    assert "expert-1" in the_view(actions).missing


def test_too_few_slots_stop_the_start_with_the_numbers() -> None:
    membership = cluster()
    membership.handle(registered("expert-0", slots=1))
    actions = membership.handle(registered("expert-1", slots=1))
    fatal = [action for action in actions if isinstance(action, SendFatal)]
    assert [action.instance for action in fatal] == ["expert-0", "expert-1"]
    assert "hold 2 experts, the model has 4" in fatal[0].problem
    assert "placement_infeasible" in logged(actions)
    assert fatal[0].problem in membership.waiting_for


def test_a_name_in_the_wrong_role_is_refused() -> None:
    membership = cluster()
    actions = membership.handle(registered("expert-0", role="attention"))
    assert kinds(actions) == ["SendFatal"]
    actions = membership.handle(registered("expert-0", role="tool"))
    assert kinds(actions) == ["SendFatal"]
    assert membership.view.version == 0


def test_a_controller_that_restarts_issues_no_number_twice() -> None:
    membership = cluster(first_version=1000)
    membership.handle(registered("expert-0", loaded_epoch=41))
    assert loads(membership.handle(registered("expert-1", loaded_epoch=40))) == []  # what they serve is not known yet
    actions = membership.handle(registered("attention-0"))
    assert loads(actions) == [("expert-0", 42), ("expert-1", 42)]
    assert the_view(actions).version == 1002


@pytest.mark.parametrize("experts", [1, 3, 4])
def test_every_size_comes_up(experts: int) -> None:
    view = started(experts=experts).view
    check_view(view)
    assert view.placement is not None
    assert view.placement.instances == [f"expert-{i}" for i in range(experts)]
