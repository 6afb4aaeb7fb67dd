"""One placement epoch: a table, who was to load it, and what is left of it when instances are gone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from janus.core.placement import EMPTY, Placement
from janus.messages.control import PlacementTable


@dataclass(slots=True, eq=False)
class Epoch:
    """One issued placement and who has not loaded it yet."""

    placement: Placement
    #: {instance: incarnation} that it was planned for.
    holders: dict[str, str]
    issued_at: float
    table: PlacementTable = field(init=False)
    waiting_for: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.table = self.placement.to_table()
        self.waiting_for = set(self.holders)

    @property
    def number(self) -> int:
        """Its number, which stands for this table for ever."""
        return self.placement.epoch

    def gone(self, alive: Mapping[str, str]) -> frozenset[str]:
        """Its instances that are not there any more, or only as another process."""
        return frozenset(name for name, incarnation in self.holders.items() if alive.get(name) != incarnation)

    def is_covered(self, alive: Mapping[str, str]) -> bool:
        """Whether those that are left of it hold every expert."""
        gone = self.gone(alive)
        return not gone or self.placement.without(gone) is not None

    def renamed(self, alive: Mapping[str, str]) -> Placement:
        """The placement with those that are gone under names that nobody has: a restarted instance holds nothing."""
        gone = self.gone(alive)
        if not gone:
            return self.placement
        names = tuple(f"{name} (gone)" if name in gone else name for name in self.placement.instances)
        return replace(self.placement, instances=names)


def without_leavers(placement: Placement, wanted: Collection[str]) -> Placement:
    """Return ``placement`` without the instances that are to leave and hold nothing any more."""
    kept = [
        i
        for i, name in enumerate(placement.instances)
        if name in wanted or any(expert != EMPTY for layer in placement.slots for expert in layer[i])
    ]
    if len(kept) == len(placement.instances):
        return placement
    return Placement(
        epoch=placement.epoch,
        num_experts=placement.num_experts,
        instances=tuple(placement.instances[i] for i in kept),
        slots=tuple(tuple(layer[i] for i in kept) for layer in placement.slots),
        nodes=tuple(placement.nodes[i] for i in kept) if placement.nodes else (),
    )


def is_same(one: Placement, other: Placement) -> bool:
    """Return whether two placements differ in nothing but their epochs."""
    return (one.instances, one.slots, one.nodes) == (other.instances, other.slots, other.nodes)
