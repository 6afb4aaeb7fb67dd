"""Which placement is loaded, which is in force, and what happens when reports cross."""

from __future__ import annotations

from janus.core.epochs import ModelShape, PlacementEpochs
from janus.core.membership_events import Action, SendLoad

ALL = {"expert-0": "i0", "expert-1": "i1"}
MORE = {**ALL, "expert-2": "i2"}


def epochs() -> PlacementEpochs:
    return PlacementEpochs(ModelShape(num_layers=1, num_experts=4))


def reconcile(state: PlacementEpochs, alive: dict[str, str], *, wanted: bool = True, slots: int = 4) -> list[int]:
    """Return the numbers of the epochs that the instances are asked to load."""
    return sent(state.reconcile(alive=alive, wanted=tuple(alive) if wanted else None, slots=slots))


def sent(actions: list[Action]) -> list[int]:
    return sorted({action.table.epoch for action in actions if isinstance(action, SendLoad)})


def load(state: PlacementEpochs, number: int, *names: str) -> None:
    for name in names:
        state.loaded(name, number)


def in_force(state: PlacementEpochs) -> int | None:
    return None if state.in_force is None else state.in_force.epoch


def test_the_same_instances_are_asked_once() -> None:
    state = epochs()
    assert reconcile(state, ALL) == [1]
    assert reconcile(state, ALL) == []
    load(state, 1, *ALL)
    assert reconcile(state, ALL) == []
    assert state.waiting_for == {}


def test_a_report_counts_once_and_only_for_its_epoch() -> None:
    state = epochs()
    reconcile(state, ALL)
    load(state, 1, "expert-0", "expert-0")
    load(state, 2, "expert-1")
    load(state, 1, "expert-7")
    assert in_force(state) is None
    assert state.waiting_for == {1: ["expert-1"]}


def test_an_epoch_with_a_dead_instance_is_given_up() -> None:
    state = epochs()
    reconcile(state, ALL)
    load(state, 1, "expert-0")
    reconcile(state, {"expert-1": "i1"}, wanted=False)
    assert state.waiting_for == {}
    load(state, 1, "expert-1")
    assert in_force(state) is None
    assert reconcile(state, {**ALL, "expert-0": "again"}) == [2]


def test_a_newer_epoch_that_is_loaded_first_ends_the_older_one() -> None:
    state = epochs()
    assert reconcile(state, ALL) == [1]
    assert reconcile(state, MORE) == [2]
    load(state, 2, *MORE)
    load(state, 1, *ALL)
    assert in_force(state) == 2


def test_of_many_epochs_the_oldest_and_the_newest_stay() -> None:
    state = epochs()
    reconcile(state, ALL)
    reconcile(state, MORE)
    reconcile(state, {**MORE, "expert-3": "i3"})
    assert list(state.waiting_for) == [1, 3]


def test_what_is_left_serves_first_and_the_full_placement_follows_with_a_higher_number() -> None:
    state = epochs()
    reconcile(state, MORE)
    load(state, 1, *MORE)
    drained = {name: MORE[name] for name in ("expert-0", "expert-1")}
    # expert-2 drains: its departure is being prepared with epoch 2 when it dies.
    assert sent(state.reconcile(alive=MORE, wanted=tuple(drained), slots=4)) == [2]
    assert in_force(state) == 1
    assert reconcile(state, drained) == [3, 4]
    assert in_force(state) is None
    load(state, 2, *drained)
    assert in_force(state) is None
    load(state, 3, *drained)
    assert in_force(state) == 3
    load(state, 4, *drained)
    assert in_force(state) == 4


def test_instances_may_die_one_after_the_other() -> None:
    state = epochs()
    reconcile(state, MORE)
    load(state, 1, *MORE)
    assert reconcile(state, ALL, wanted=False) == [2]
    assert reconcile(state, {"expert-0": "i0"}, wanted=False) == [3]  # before epoch 2 was loaded
    assert state.waiting_for == {3: ["expert-0"]}
    load(state, 3, "expert-0")
    assert in_force(state) == 3
    assert reconcile(state, {}, wanted=False) == []
    assert in_force(state) is None


def test_nothing_is_left_to_serve_without_a_replica_of_every_expert() -> None:
    state = epochs()
    reconcile(state, ALL, slots=0)
    load(state, 1, *ALL)
    assert reconcile(state, {"expert-0": "i0"}, wanted=False) == []
    assert in_force(state) is None


def test_infeasible_is_logged_once_and_forgotten_when_it_is_over() -> None:
    state = epochs()
    assert len(state.reconcile(alive=ALL, wanted=tuple(ALL), slots=1)) == 1
    assert "the model has 4" in state.problem
    assert state.reconcile(alive=ALL, wanted=tuple(ALL), slots=1) == []
    assert reconcile(state, ALL) == [1]
    assert state.problem == ""
