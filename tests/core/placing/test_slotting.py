"""From placement to placement: no slot changes hands while an epoch in use has it, and the target is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.core.placement import EMPTY, Placement
from janus.core.placing.contract import Held
from janus.core.placing.slotting import Step, next_step


def names(count: int) -> tuple[str, ...]:
    return tuple(f"expert-{i}" for i in range(count))


@st.composite
def helds(draw: st.DrawFn, layers: int, experts: int, limits: Sequence[int]) -> Held:
    """Every expert somewhere, at most ``limits`` on each host, which hold all experts together."""
    table = []
    for _ in range(layers):
        rooms = [host for host, limit in enumerate(limits) for _ in range(limit)]
        places = draw(st.permutations(rooms))
        held: list[set[int]] = [set() for _ in limits]
        for expert, host in enumerate(places[:experts]):
            held[host].add(expert)
        for host in places[experts:]:
            expert = draw(st.integers(-experts, experts - 1))
            if expert >= 0:
                held[host].add(expert)
        table.append(tuple(tuple(sorted(each)) for each in held))
    return tuple(table)


def step(target: Held, current: Placement | None, in_use: Sequence[Placement] | None = None, **more: object) -> Step:
    found = maybe_step(target, current, in_use, **more)
    assert found is not None
    return found


def maybe_step(
    target: Held, current: Placement | None, in_use: Sequence[Placement] | None = None, **more: object
) -> Step | None:
    arguments: dict[str, object] = {
        "epoch": 1 if current is None else current.epoch + 1,
        "num_experts": 1 + max(e for layer in target for held in layer for e in held),
        "hosts": names(len(target[0])),
        "nodes": (),
        **more,
    }
    in_use = in_use if in_use is not None else [current] if current is not None else []
    return next_step(target=target, current=current, in_use=in_use, **arguments)  # type: ignore[arg-type]


def check(found: Step, current: Placement | None, in_use: Sequence[Placement], capacities: dict[str, int]) -> None:
    """Assert what holds of every step."""
    placement = found.placement  # that every expert has a replica, Placement itself has checked
    loads = set()
    for layer in range(placement.num_layers):
        for index, name in enumerate(placement.instances):
            occupied = set()
            for slot, expert in enumerate(placement.slots[layer][index]):
                used = {e for p in in_use if name in p.instances for e in [at(p, layer, name, slot)] if e != EMPTY}
                now = EMPTY if current is None or name not in current.instances else at(current, layer, name, slot)
                if expert != EMPTY:
                    # The same replica may be there in other epochs, another one in none.
                    assert used <= {expert}, f"layer {layer}, {name}: slot {slot} is given to another in use"
                    if now != expert and not used:
                        loads.add((name, layer, slot, expert))
                if expert != EMPTY or used:
                    occupied.add(slot)
            if current is not None and name in current.instances:
                moved = {e for e in placement.slots[layer][index] if e != EMPTY}
                for slot, expert in enumerate(current.slots[layer][current.instances.index(name)]):
                    assert expert == EMPTY or expert not in moved or placement.slots[layer][index][slot] == expert
            assert len(occupied) <= capacities[name]
    assert set(found.loads) == loads


def at(placement: Placement, layer: int, name: str, slot: int) -> int:
    return placement.slots[layer][placement.instances.index(name)][slot]


@dataclass
class Walk:
    """Steps towards a target; older epochs are given back only when nothing else can be done, or at random."""

    target: Held
    hosts: tuple[str, ...]
    experts: int
    slots: int
    capacities: dict[str, int]
    current: Placement | None
    in_use: list[Placement] = field(default_factory=list)
    steps: int = 0

    def take(self) -> Step | None:
        found = next_step(
            epoch=self.steps + 100,
            num_experts=self.experts,
            slots=self.slots,
            hosts=self.hosts,
            nodes=(),
            target=self.target,
            current=self.current,
            in_use=self.in_use,
            capacities=self.capacities,
        )
        if found is not None:
            check(found, self.current, self.in_use, self.capacities)
            self.current = found.placement
            self.in_use.append(found.placement)
            self.steps += 1
        return found

    def run(self, retire: st.DataObject | None) -> bool:
        """Return whether the target was reached."""
        bound = 20 * sum(len(held) for layer in self.target for held in layer) + 20
        for _ in range(bound):
            found = self.take()
            if found is not None and found.complete:
                assert self.current is not None
                assert (
                    tuple(
                        tuple(self.current.replicas(name)[layer] for name in self.hosts)
                        for layer in range(len(self.target))
                    )
                    == self.target
                )
                return True
            if found is None and len(self.in_use) <= 1:
                return False
            if found is None or retire is None or retire.draw(st.booleans()):
                self.in_use = self.in_use[-1:] if retire is None else self.in_use[1:]
        raise AssertionError(f"the target is not reached in {bound} rounds")


def placed(held: Held, hosts: tuple[str, ...], experts: int, slots: int) -> Placement:
    """The first placement of a cluster."""
    found = next_step(
        epoch=1, num_experts=experts, slots=slots, hosts=hosts, nodes=(), target=held, current=None, in_use=[]
    )
    assert found is not None
    assert found.complete
    return found.placement


@settings(max_examples=150, deadline=None)
@given(data=st.data(), experts=st.integers(1, 8), layers=st.integers(1, 2))
def test_every_walk_keeps_the_rules_and_reaches_its_target_when_a_slot_is_spare(
    data: st.DataObject, experts: int, layers: int
) -> None:
    before = data.draw(st.integers(1, 4))
    slots = -(-experts // before) + data.draw(st.integers(0, 2))
    old = names(before)
    start = data.draw(helds(layers, experts, [slots] * before))
    left = data.draw(st.sets(st.sampled_from(old), max_size=before - 1))
    hosts = tuple(
        data.draw(st.permutations([*(n for n in old if n not in left), *data.draw(st.sampled_from([(), ("new",)]))]))
    )
    while len(hosts) * slots < experts:
        hosts = (*hosts, f"more-{len(hosts)}")
    capacities = dict.fromkeys(hosts, slots)
    # Hosts that are to hold nothing are about to leave; they serve until others have what they had.
    leaving = data.draw(st.sets(st.sampled_from(hosts), max_size=len(hosts) - -(-experts // slots)))
    target = data.draw(helds(layers, experts, [0 if name in leaving else slots for name in hosts]))
    current = placed(start, old, experts, slots)
    # After a loss that left an expert nowhere, nothing is dispatched by the old placement.
    in_use = [current] if current.covered_by(frozenset(hosts)) or data.draw(st.booleans()) else []
    walk = Walk(target, hosts, experts, slots, capacities, current, in_use)
    reached = walk.run(data.draw(st.sampled_from([None, data])))
    if not reached:
        assert walk.current is not None
        assert stuck(walk), f"{walk.current.slots} -> {target}"


def stuck(walk: Walk) -> bool:
    """Whether in some layer every slot is full, or lost experts outnumber the slots that are not in use."""
    assert walk.current is not None
    for layer in range(len(walk.target)):
        held = [set(walk.current.replicas(name)[layer]) for name in walk.hosts]
        free = sum(walk.slots - len(each) for each in held)
        if free == 0 or (walk.in_use and walk.experts - len(set().union(*held)) > free):
            return True
    return False


def test_a_first_placement_takes_the_lowest_slots_and_spreads_first_replicas() -> None:
    target = (((0, 1, 2), (0, 1, 2), (0, 1, 2)),)
    found = step(target, None, slots=4)
    assert (found.complete, found.changed) == (True, True)
    assert [held[3] for held in found.placement.slots[0]] == [EMPTY] * 3
    first = found.placement.logical_to_phys[0, :, 0] // 4
    assert sorted(first.tolist()) == [0, 1, 2]
    assert len(found.loads) == 9


def test_what_stays_keeps_its_slot_and_an_addition_takes_one_that_is_free() -> None:
    current = Placement(epoch=5, num_experts=3, instances=names(2), slots=(((2, 0, EMPTY), (1, EMPTY, EMPTY)),))
    found = step((((0, 1), (2,)),), current, slots=3)
    # 1 may not leave its host before the other has it: both in this step, for this step is used only when loaded.
    assert found.placement.slots == (((EMPTY, 0, 1), (EMPTY, 2, EMPTY)),)
    assert found.loads == (("expert-0", 0, 2, 1), ("expert-1", 0, 1, 2))
    assert found.complete


def test_a_slot_of_an_older_epoch_is_taken_only_when_that_is_given_back() -> None:
    older = Placement(epoch=4, num_experts=2, instances=names(2), slots=(((0, 1), (1, 0)),))
    current = Placement(epoch=5, num_experts=2, instances=names(2), slots=(((0, EMPTY), (1, EMPTY)),))
    new = ("expert-0", "expert-1", "third")
    target = (((1,), (0,), (0, 1)),)
    # What an epoch in use has there already needs no other slot, and no load.
    found = step(target, current, [older, current], slots=2, hosts=new)
    assert found.placement.slots == (((EMPTY, 1), (EMPTY, 0), (0, 1)),)
    assert found.loads == (("third", 0, 0, 0), ("third", 0, 1, 1))

    target = (((0, 2), (1,)),)
    older = Placement(epoch=4, num_experts=3, instances=names(2), slots=(((0, 1), (1, 2)),))
    current = Placement(epoch=5, num_experts=3, instances=names(2), slots=(((0, EMPTY), (1, 2)),))
    assert maybe_step(target, current, [older, current], slots=2) is None
    found = step(target, current, [current], slots=2)
    assert found.placement.slots == (((0, 2), (1, EMPTY)),)


def test_a_swap_between_full_hosts_goes_by_way_of_a_third() -> None:
    current = Placement(epoch=1, num_experts=2, instances=names(3), slots=(((0,), (1,), (EMPTY,)),))
    walk = Walk((((1,), (0,), ()),), names(3), 2, 1, dict.fromkeys(names(3), 1), current, [current])
    assert walk.run(None)
    assert walk.steps == 3  # park one, move the other, bring the first home


def test_a_swap_without_a_spare_slot_is_refused() -> None:
    current = Placement(epoch=1, num_experts=2, instances=names(2), slots=(((0,), (1,)),))
    assert maybe_step((((1,), (0,)),), current, slots=1) is None


def test_a_spare_replica_makes_room_where_no_slot_is_empty() -> None:
    current = Placement(epoch=1, num_experts=3, instances=names(2), slots=(((0, 2), (1, 2)),))
    walk = Walk((((1, 2), (0, 2)),), names(2), 3, 2, dict.fromkeys(names(2), 2), current, [current])
    assert walk.run(None)


def test_what_a_dead_host_alone_had_is_loaded_first_and_overwrites_nothing_in_use() -> None:
    current = Placement(
        epoch=3, num_experts=4, instances=names(3), slots=(((0, 3, EMPTY), (1, EMPTY, EMPTY), (2, EMPTY, EMPTY)),)
    )
    target = (((1, 2), (0, 3)),)
    found = step(target, current, slots=3, hosts=names(2), capacities={"expert-0": 3, "expert-1": 3})
    assert ("expert-0", 0, 2, 2) in found.loads
    assert found.placement.instances == names(2)
    # Expert 2 is nowhere, and there is no slot that no dispatch can name: refused until the old epoch is out of use.
    full = Placement(epoch=3, num_experts=4, instances=names(3), slots=(((0, 3), (1, 3), (2, 3)),))
    assert maybe_step((((0, 2), (1, 3)),), full, slots=2, hosts=names(2)) is None
    found = step((((0, 2), (1, 3)),), full, [], slots=2, hosts=names(2))
    assert found.complete
    assert found.placement.slots == (((0, 2), (1, 3)),)


def test_capacity_counts_what_all_epochs_in_use_have_there() -> None:
    current = Placement(epoch=1, num_experts=2, instances=names(2), slots=(((0, EMPTY), (1, EMPTY)),))
    target = (((0, 1), (1,)),)
    assert step(target, current, slots=2).complete
    with pytest.raises(ValueError, match="2 experts on expert-0 in layer 0, 1 fit"):
        step(target, current, slots=2, capacities={"expert-0": 1, "expert-1": 2})
    older = Placement(epoch=1, num_experts=2, instances=names(2), slots=(((EMPTY, EMPTY, 0), (1, EMPTY, EMPTY)),))
    current = Placement(epoch=2, num_experts=2, instances=names(2), slots=(((EMPTY,) * 3, (1, 0, EMPTY)),))
    new = maybe_step((((1,), (0,)),), current, [older, current], slots=3, capacities={"expert-0": 1, "expert-1": 3})
    assert new is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ((((0,), ()),), "expert 1 of layer 0 nowhere"),
        ((((0, 1),),), "1 hosts in layer 0, there are 2"),
        ((((0, 1), (0,)), ((0, 1, 2), (1,))), "3 experts on expert-0 in layer 1, 2 fit"),
    ],
)
def test_a_target_that_is_none_is_refused(target: Held, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        maybe_step(target, None, slots=2, num_experts=2, hosts=names(2))


def test_a_placement_at_its_target_has_nothing_to_change() -> None:
    current = Placement(epoch=1, num_experts=2, instances=names(2), slots=(((0,), (1,)),))
    found = step((((0,), (1,)),), current, slots=1)
    assert (found.complete, found.changed, found.loads) == (True, False, ())
