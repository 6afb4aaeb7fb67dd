"""From one placement to another without a pause: which replica goes to which slot, and which go first.

A dispatch in flight names a slot, so a slot keeps its expert until no dispatch can name an epoch that has it there.
Hence a replica never changes its slot, a new one takes a slot that is empty in all epochs in use, and an expert leaves
a host only in an epoch in which another host has it.

Layers are independent. Within one, `missing` are the replicas that the target has and the current placement has not,
`stale` the other way round. Every step adds what has room and drops the stale that others cover. Where that does
nothing, and waiting would free nothing, all hosts of missing replicas are full of replicas that are stale and nowhere
else. One of these hosts is then relieved: its stale replicas are *parked* where there is room, or, without room
anywhere, one that the target wants but others cover too is *lent*, that is, dropped and added again later. The place so
won takes a missing replica next (see ``LayerSlots._order``), so ``missing + stale`` falls and the target is reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus.core.placement import EMPTY, Placement
from janus.core.placing.contract import Held
from janus.core.placing.slotting_layer import LayerSlots


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The next placement on the way to a target."""

    placement: Placement
    #: Whether the placement is the target. If not, ask again when an older epoch has been given back.
    complete: bool
    #: Whether anything differs from the current placement but the epoch.
    changed: bool
    #: (host, layer, slot, expert) of each replica that no placement in use has there.
    loads: tuple[tuple[str, int, int, int], ...]


def next_step(
    *,
    epoch: int,
    num_experts: int,
    slots: int,
    hosts: Sequence[str],
    nodes: Sequence[str],
    target: Held,
    current: Placement | None,
    in_use: Sequence[Placement],
    capacities: Mapping[str, int] | None = None,
) -> Step | None:
    """Return the placement that is as near to ``target`` as can be reached now.

    ``None``: no change is possible that leads there. With older epochs in use, ask again when they are not; with the
    current one alone, the target cannot be reached without breaking before making.

    Args:
        slots: C, slots per host and layer; a numbering that stays what it is.
        hosts: the instances of the new placement, in its order, which is that of ``target``.
        nodes: the node of each host; may be empty.
        current: the newest placement; what it has on other instances is lost.
        in_use: all placements that a dispatch may name, now or later, the current one included. It is left out where
            nothing will be dispatched by it, such as after a loss that left an expert nowhere: then its slots can be
            taken over at once.
        capacities: replicas per layer that a host holds, all epochs together; C unless given.

    Raises:
        ValueError: the target does not fit C or the hosts' capacities, or lacks an expert; a placement has more than C
            slots.
    """
    limits = np.array([slots if capacities is None else min(slots, capacities.get(name, slots)) for name in hosts])
    _check(target, num_experts, hosts, limits)
    index = {name: position for position, name in enumerate(hosts)}
    shape = (len(target), len(hosts), slots)
    now = _table(current, index, shape)
    used = [_table(placement, index, shape) for placement in in_use]
    table = np.full(shape, EMPTY, dtype=np.int32)
    complete = True
    for layer, wanted in enumerate(target):
        want = np.zeros((len(hosts), num_experts), dtype=bool)
        for host, experts in enumerate(wanted):
            want[host, list(experts)] = True
        state = LayerSlots(want, now[layer], [each[layer] for each in used], limits)
        if not state.advance():
            return None
        table[layer] = state.slots
        complete &= state.complete
    changed = current is None or tuple(hosts) != current.instances or not np.array_equal(table, now)
    if not changed and not complete:
        return None
    known = np.zeros(shape, dtype=bool)
    for each in (now, *used):
        known |= each == table
    loads = np.argwhere((table != EMPTY) & ~known).tolist()
    placement = Placement(
        epoch=epoch,
        num_experts=num_experts,
        instances=tuple(hosts),
        slots=tuple(tuple(map(tuple, layer)) for layer in table.tolist()),
        nodes=tuple(nodes),
    )
    return Step(
        placement=placement,
        complete=complete,
        changed=changed,
        loads=tuple((hosts[host], layer, slot, int(table[layer, host, slot])) for layer, host, slot in loads),
    )


def _table(placement: Placement | None, index: Mapping[str, int], shape: tuple[int, int, int]) -> npt.NDArray[np.int32]:
    """Return int32[L, G, C]: what ``placement`` has in the slots of the hosts of ``index``."""
    table = np.full(shape, EMPTY, dtype=np.int32)
    if placement is None:
        return table
    if placement.slots_per_instance > shape[2]:
        raise ValueError(f"epoch {placement.epoch} has {placement.slots_per_instance} slots, there are {shape[2]}")
    held = placement.phys_to_logical.reshape(placement.num_layers, placement.num_instances, -1)
    for position, name in enumerate(placement.instances):
        if name in index:
            table[:, index[name], : placement.slots_per_instance] = held[:, position]
    return table


def _check(target: Held, num_experts: int, hosts: Sequence[str], limits: npt.NDArray[np.int64]) -> None:
    for layer, held in enumerate(target):
        if len(held) != len(hosts):
            raise ValueError(f"the target has {len(held)} hosts in layer {layer}, there are {len(hosts)}")
        for name, experts, limit in zip(hosts, held, limits.tolist(), strict=True):
            if len(experts) > limit:
                raise ValueError(f"the target has {len(experts)} experts on {name} in layer {layer}, {limit} fit")
        missing = set(range(num_experts)).difference(*held)
        if missing:
            raise ValueError(f"the target has expert {min(missing)} of layer {layer} nowhere")
