"""Which placement is loaded, which is in force, and what happens when instances come and go meanwhile."""

from __future__ import annotations

import pytest

from janus.core.epochs import PlacementEpochs
from janus.core.goals import REPLACE_AFTER_S, Candidate, ModelShape
from janus.core.membership_events import Action, Log, SendLoad
from janus.core.placement import EMPTY, Placement
from janus.core.placing import POLICIES
from janus.messages.control import PlacementTable

EXPERTS = 4


class Cluster:
    """A ``PlacementEpochs``, the instances that are there, and a clock."""

    def __init__(self, *names: str, fill: int = 0, slots: int = 0) -> None:
        shape = ModelShape(num_layers=1, num_experts=EXPERTS)
        self.epochs = PlacementEpochs(shape, policy=POLICIES["static"], fill=fill)
        self.slots = slots
        self.there: dict[str, Candidate] = {}
        self.now = 0.0
        self.tables: dict[int, PlacementTable] = {}
        for name in names:
            self.there[name] = self.candidate(name)

    def candidate(self, name: str, incarnation: str = "first", **more: object) -> Candidate:
        return Candidate(name=name, incarnation=incarnation, slots=self.slots, **more)  # type: ignore[arg-type]

    def asked(self, actions: list[Action]) -> dict[int, list[str]]:
        """{epoch: instances that are asked to load it}."""
        asked: dict[int, list[str]] = {}
        for action in actions:
            if isinstance(action, SendLoad):
                asked.setdefault(action.table.epoch, []).append(action.instance)
                self.tables[action.table.epoch] = action.table
        return asked

    def reconcile(self, *, complete: bool = True) -> dict[int, list[str]]:
        return self.asked(self.epochs.reconcile(list(self.there.values()), complete=complete, now=self.now))

    def load(self, number: int, *names: str) -> dict[int, list[str]]:
        """All or some of the instances report; returns what is asked of them then."""
        asked: dict[int, list[str]] = {}
        for name in names or self.tables[number].instances:
            asked |= self.asked(self.epochs.loaded(name, number, now=self.now))
        return asked

    def settle(self) -> int:
        """Load whatever is asked, and let dispatches of older epochs end; returns the epoch in force."""
        for _ in range(20):
            if self.epochs.waiting_for:
                (number,) = self.epochs.waiting_for
                self.load(number)
            elif not self.asked(self.epochs.retire(self.number(), now=self.now)):
                break
        assert self.epochs.waiting_for == {}
        return self.number()

    def number(self) -> int:
        assert self.epochs.in_force is not None
        return self.epochs.in_force.epoch

    def held(self, number: int | None = None) -> dict[str, set[int]]:
        table = self.tables[self.number() if number is None else number]
        return {
            name: {expert for expert in table.slots[0][i] if expert != EMPTY} for i, name in enumerate(table.instances)
        }


def started(*names: str, fill: int = 0, slots: int = 0) -> Cluster:
    cluster = Cluster(*names, fill=fill, slots=slots)
    cluster.reconcile()
    cluster.settle()
    return cluster


def test_nothing_is_placed_before_all_are_there_who_are_expected() -> None:
    cluster = Cluster("expert-0")
    assert cluster.reconcile(complete=False) == {}
    assert cluster.epochs.in_force is None


def test_the_same_instances_are_asked_once() -> None:
    cluster = Cluster("expert-0", "expert-1")
    assert cluster.reconcile() == {1: ["expert-0", "expert-1"]}
    assert cluster.reconcile() == {}
    assert cluster.load(1) == {}
    assert cluster.reconcile() == {}
    assert (cluster.number(), cluster.epochs.waiting_for) == (1, {})
    assert cluster.epochs.settled


def test_a_report_counts_once_and_only_for_its_epoch() -> None:
    cluster = Cluster("expert-0", "expert-1")
    cluster.reconcile()
    cluster.load(1, "expert-0", "expert-0")
    cluster.load(2, "expert-1")
    cluster.load(1, "expert-7")
    assert cluster.epochs.in_force is None
    assert cluster.epochs.waiting_for == {1: ["expert-1"]}


def test_an_epoch_with_a_dead_instance_is_given_up() -> None:
    cluster = Cluster("expert-0", "expert-1")
    cluster.reconcile()
    cluster.load(1, "expert-0")
    cluster.there["expert-1"] = cluster.candidate("expert-1", "second")
    assert cluster.reconcile() == {2: ["expert-0", "expert-1"]}
    cluster.load(1, "expert-1")
    assert cluster.epochs.in_force is None
    assert cluster.settle() == 2


def test_who_joins_gets_its_share_while_the_old_placement_serves() -> None:
    cluster = started("expert-0", "expert-1")
    cluster.there["expert-2"] = cluster.candidate("expert-2")
    assert cluster.reconcile() == {2: ["expert-0", "expert-1", "expert-2"]}
    assert cluster.number() == 1  # until it has loaded them
    cluster.settle()
    assert set.union(*cluster.held().values()) == set(range(EXPERTS))
    assert cluster.held()["expert-2"]


def test_who_leaves_serves_until_others_have_what_it_has() -> None:
    cluster = started("expert-0", "expert-1")
    cluster.there["expert-1"] = cluster.candidate("expert-1", wanted=False)
    cluster.reconcile()
    assert cluster.number() == 1
    cluster.settle()
    assert cluster.held() == {"expert-0": set(range(EXPERTS))}


def test_a_dead_instance_whose_experts_are_elsewhere_costs_no_load() -> None:
    cluster = started("expert-0", "expert-1", fill=4)
    del cluster.there["expert-1"]
    assert cluster.reconcile(complete=False) == {2: ["expert-0"]}
    # Meanwhile the old one serves on without it.
    assert cluster.number() == 1
    assert cluster.epochs.last_move is not None
    assert (cluster.epochs.last_move.reason, cluster.epochs.last_move.replicas) == ("death", 0)
    assert cluster.settle() == 2


def test_lost_experts_are_loaded_by_the_survivors_at_once() -> None:
    cluster = started("expert-0", "expert-1", "expert-2")
    before = cluster.held()
    lost = before.pop("expert-2") - set.union(*before.values())
    del cluster.there["expert-2"]
    assert cluster.reconcile(complete=False) == {2: ["expert-0", "expert-1"]}
    assert cluster.epochs.in_force is None  # no dispatch can be served in full
    assert cluster.epochs.last_move is not None
    assert cluster.epochs.last_move.replicas == len(lost)
    assert cluster.settle() == 2
    assert set.union(*cluster.held().values()) == set(range(EXPERTS))


def test_instances_may_die_one_after_the_other() -> None:
    cluster = started("expert-0", "expert-1", "expert-2")
    del cluster.there["expert-2"]
    cluster.reconcile(complete=False)
    del cluster.there["expert-1"]
    assert cluster.reconcile(complete=False) == {3: ["expert-0"]}  # before epoch 2 was loaded
    assert cluster.settle() == 3
    del cluster.there["expert-0"]
    assert cluster.reconcile(complete=False) == {}
    assert cluster.epochs.in_force is None
    assert cluster.epochs.problem == ""  # that they are missing is told elsewhere


def test_a_link_that_breaks_for_a_moment_brings_the_old_epoch_back() -> None:
    cluster = started("expert-0", "expert-1")
    candidate = cluster.there.pop("expert-1")
    assert cluster.reconcile(complete=False) == {2: ["expert-0"]}
    assert cluster.epochs.in_force is None
    cluster.there["expert-1"] = candidate
    assert cluster.reconcile() == {}
    assert cluster.number() == 1
    cluster.load(2)
    assert cluster.number() == 1


def test_a_restarted_instance_holds_nothing() -> None:
    cluster = started("expert-0", "expert-1")
    cluster.there["expert-1"] = cluster.candidate("expert-1", "second")
    assert list(cluster.reconcile()) == [2]
    assert cluster.epochs.in_force is None
    assert cluster.epochs.last_move is not None
    assert cluster.epochs.last_move.replicas == 2
    cluster.settle()
    assert set(cluster.held()) == {"expert-0", "expert-1"}


def test_the_survivors_get_replicas_again_when_the_dead_one_stays_away() -> None:
    cluster = started("expert-0", "expert-1", "expert-2", fill=3)
    del cluster.there["expert-2"]
    cluster.reconcile(complete=False)
    cluster.settle()
    assert cluster.asked(cluster.epochs.tick(REPLACE_AFTER_S - 0.1)) == {}
    cluster.asked(cluster.epochs.tick(REPLACE_AFTER_S))
    cluster.settle()
    assert [len(held) for held in cluster.held().values()] == [3, 3]


def test_a_new_replica_never_takes_a_slot_that_an_epoch_in_use_names() -> None:
    cluster = started("expert-0", "expert-1", fill=2)
    first = cluster.tables[1]
    for name in ("expert-2", "expert-3"):
        cluster.there[name] = cluster.candidate(name)
        cluster.reconcile()
        while cluster.epochs.waiting_for:
            (number,) = cluster.epochs.waiting_for
            cluster.load(number)  # nothing is retired: dispatches of epoch 1 may still come
    for number, table in cluster.tables.items():
        for i, name in enumerate(first.instances):
            now = table.slots[0][table.instances.index(name)]
            for was, is_ in zip(first.slots[0][i], now, strict=True):
                assert was in (EMPTY, is_) or is_ == EMPTY, (number, name)


def test_a_failed_load_is_rolled_back_and_who_failed_gets_nothing_new() -> None:
    cluster = started("expert-0", "expert-1")
    cluster.there["expert-2"] = cluster.candidate("expert-2")
    cluster.reconcile()
    actions = cluster.epochs.failed("expert-2", 2, "model.safetensors is truncated", now=1.0)
    assert [action.event for action in actions if isinstance(action, Log)] == ["placement_rolled_back"]
    move = cluster.epochs.last_move
    assert move is not None
    assert (move.epoch, move.outcome) == (2, "rolled back")
    assert "expert-2: model.safetensors is truncated" in move.problem
    cluster.there["expert-2"] = cluster.candidate("expert-2", frozen=True)
    assert cluster.reconcile() == {}
    assert cluster.number() == 1
    cluster.there["expert-2"] = cluster.candidate("expert-2")
    assert list(cluster.reconcile()) == [3]
    assert cluster.settle() == 3


def test_a_late_failure_of_an_epoch_that_was_given_up_is_no_news() -> None:
    cluster = started("expert-0")
    assert cluster.epochs.failed("expert-0", 1, "what", now=1.0) == []


def test_too_few_slots_are_told_once_and_forgotten_when_it_is_over() -> None:
    cluster = Cluster("expert-0", "expert-1", slots=1)
    actions = cluster.epochs.reconcile(list(cluster.there.values()), complete=True, now=0.0)
    assert [action.event for action in actions if isinstance(action, Log)] == ["placement_infeasible"]
    assert "4" in cluster.epochs.problem
    assert cluster.reconcile() == {}
    for name in ("expert-2", "expert-3"):
        cluster.there[name] = cluster.candidate(name)
    assert list(cluster.reconcile()) == [1]
    assert cluster.epochs.problem == ""


def test_a_move_that_needs_a_spare_slot_where_there_is_none_is_refused_by_name() -> None:
    cluster = started("expert-0", "expert-1", slots=2)
    request = cluster.epochs.request()
    assert request is not None
    here, there = sorted(cluster.held()["expert-0"]), sorted(cluster.held()["expert-1"])
    swapped = ((tuple(sorted((here[0], there[1]))), tuple(sorted((there[0], here[1])))),)
    actions = cluster.epochs.propose(request, swapped, a_max=(2.0, 1.0), now=0.0)
    assert [action.event for action in actions if isinstance(action, Log)] == ["placement_unreachable"]
    assert "no slot is spare" in cluster.epochs.stuck
    assert cluster.number() == 1


@pytest.mark.parametrize("late", [False, True])
def test_a_proposal_is_carried_out_unless_the_cluster_has_changed(late: bool) -> None:
    cluster = started("expert-0", "expert-1")
    request = cluster.epochs.request()
    assert request is not None
    if late:
        cluster.there["expert-2"] = cluster.candidate("expert-2")
        cluster.reconcile()
        cluster.settle()
    before = cluster.number()
    held = tuple(cluster.held()[name] for name in ("expert-0", "expert-1"))
    swapped = (tuple(tuple(sorted(each)) for each in reversed(held)),)
    cluster.asked(cluster.epochs.propose(request, swapped, a_max=(2.0, 1.0), now=0.0))
    cluster.settle()
    if late:
        assert cluster.number() == before
    else:
        assert (cluster.held()["expert-0"], cluster.held()["expert-1"]) == (held[1], held[0])


def test_a_controller_that_restarts_takes_over_what_is_in_force() -> None:
    before = started("expert-0", "expert-1")
    table = before.tables[1]
    cluster = Cluster("expert-0")
    cluster.epochs.remember(table)
    cluster.there["expert-0"] = cluster.candidate("expert-0", loaded_epoch=1)
    assert cluster.reconcile(complete=False) == {}
    assert cluster.epochs.in_force is None
    cluster.there["expert-1"] = cluster.candidate("expert-1", loaded_epoch=1)
    assert cluster.reconcile() == {}
    assert cluster.epochs.in_force is not None
    assert Placement.from_table(cluster.epochs.in_force) == Placement.from_table(table)
    cluster.tables[1] = table
    cluster.there["expert-2"] = cluster.candidate("expert-2")
    assert list(cluster.reconcile()) == [2]


def test_a_controller_that_restarts_mends_what_died_meanwhile() -> None:
    table = started("expert-0", "expert-1").tables[1]
    cluster = Cluster()
    cluster.epochs.remember(table)
    cluster.there["expert-0"] = cluster.candidate("expert-0", loaded_epoch=1)
    cluster.there["expert-1"] = cluster.candidate("expert-1", "second")
    assert list(cluster.reconcile()) == [2]
    assert cluster.settle() >= 2
    assert set.union(*cluster.held().values()) == set(range(EXPERTS))


def test_a_placement_of_another_model_is_not_taken() -> None:
    table = started("expert-0").tables[1]
    other = PlacementEpochs(ModelShape(num_layers=2, num_experts=EXPERTS), policy=POLICIES["static"])
    with pytest.raises(ValueError, match="1 layers of 4 experts"):
        other.remember(table)
