"""Placement epochs, made before broken: which placement is being loaded, and which is in force.

An epoch number stands for one table, for ever. A table comes into force only when every instance in it has loaded its
replicas, and leaves force when one of these instances is gone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from janus.core.membership_events import Action, Log, SendLoad
from janus.core.placement import Placement, static_placement
from janus.errors import ConfigError
from janus.messages.control import PlacementTable


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ModelShape:
    """What the placement must know of a model: its MoE layers and the experts in each."""

    num_layers: int
    num_experts: int
    #: float[num_layers, num_experts]: how often each expert was activated; ``None`` = all alike.
    activations: npt.NDArray[np.float64] | None = None


@dataclass(slots=True, eq=False)
class _Epoch:
    """One issued placement and who has not loaded it yet."""

    placement: Placement
    #: {instance: incarnation} that it was planned for.
    holders: dict[str, str]
    #: False: what was left of an earlier placement when an instance died.
    full: bool
    table: PlacementTable = field(init=False)
    waiting_for: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.table = self.placement.to_table()
        self.waiting_for = set(self.holders)

    def intact(self, alive: Mapping[str, str]) -> bool:
        return all(alive.get(name) == incarnation for name, incarnation in self.holders.items())


class PlacementEpochs:
    """Issues epochs for the expert instances at hand. Pure: returns actions, sends nothing."""

    def __init__(self, shape: ModelShape) -> None:
        self.shape = shape
        self._last_number = 0
        self._in_force: _Epoch | None = None
        #: The epoch that was in force last; it may be again, or parts of it.
        self._last_good: _Epoch | None = None
        #: Being loaded, in ascending order: at most one that is not full, and two that are.
        self._pending: list[_Epoch] = []
        #: Why the instances at hand cannot hold the model; empty when they can.
        self.problem = ""

    @property
    def in_force(self) -> PlacementTable | None:
        """The table that dispatches may use now."""
        return self._in_force.table if self._in_force is not None else None

    @property
    def was_in_force(self) -> bool:
        """Whether any epoch ever was."""
        return self._last_good is not None

    @property
    def waiting_for(self) -> dict[int, list[str]]:
        """The epochs being loaded, and which instances have not reported each."""
        return {epoch.table.epoch: sorted(epoch.waiting_for) for epoch in self._pending}

    def saw_epoch(self, number: int) -> None:
        """Never issue a number up to this one: an instance has loaded it from an earlier controller."""
        self._last_number = max(self._last_number, number)

    def reconcile(
        self,
        *,
        alive: Mapping[str, str],
        wanted: tuple[str, ...] | None,
        slots: int,
        nodes: Mapping[str, str] | None = None,
    ) -> list[Action]:
        """Return what to do about the expert instances that exist now.

        Args:
            alive: {instance: incarnation} of the expert instances that are registered, the draining ones included.
            wanted: those that the placement should use, in order; ``None`` while an expected one is missing.
            slots: per instance and layer that all of ``wanted`` have; 0 for as few as will do.
            nodes: {instance: node}; ``None`` counts all as one node.

        When all wanted instances are there, the model is placed on exactly these. When one died, what is left of the
        placement serves on if every expert has a replica elsewhere, whether or not a full one is to follow.
        """
        if wanted is None:
            self.problem = ""
        self._pending = [epoch for epoch in self._pending if epoch.intact(alive)]
        if self._in_force is not None and not self._in_force.intact(alive):
            self._in_force = None
        actions: list[Action] = []
        if self._in_force is None and self._last_good is not None:
            actions += self._restore(self._last_good, alive)
        if wanted is not None:
            actions += self._place({name: alive[name] for name in wanted}, slots, nodes)
        return actions

    def loaded(self, instance: str, number: int) -> list[Action]:
        """Take an instance's report; the epoch comes into force with the last one."""
        for epoch in self._pending:
            if epoch.table.epoch == number and instance in epoch.waiting_for:
                epoch.waiting_for.remove(instance)
                if not epoch.waiting_for:
                    self._enforce(epoch)
                    return [_log("placement_in_force", epoch)]
        return []

    def _enforce(self, epoch: _Epoch) -> None:
        self._in_force = self._last_good = epoch
        self._pending = [other for other in self._pending if other.table.epoch > epoch.table.epoch]

    def _restore(self, last: _Epoch, alive: Mapping[str, str]) -> list[Action]:
        """Bring back what was in force last: all of it when only a link was lost for a while, else what is left."""
        if last.intact(alive):
            self._enforce(last)
            return [_log("placement_in_force_again", last)]
        if any(not epoch.full for epoch in self._pending):
            return []
        old = last.placement
        kept = [i for i, name in enumerate(old.instances) if alive.get(name) == last.holders[name]]
        names = tuple(old.instances[i] for i in kept)
        if not old.covered_by(frozenset(names)):
            return []
        rest = Placement(
            epoch=self._next_number(),
            num_experts=old.num_experts,
            instances=names,
            slots=tuple(tuple(layer[i] for i in kept) for layer in old.slots),
            nodes=tuple(old.nodes[i] for i in kept) if old.nodes else (),
        )
        self._pending.clear()  # a full one that is being loaded gets a higher number, so that numbers only grow
        return self._issue(_Epoch(rest, {name: alive[name] for name in names}, full=False))

    def _place(self, holders: dict[str, str], slots: int, nodes: Mapping[str, str] | None) -> list[Action]:
        """Issue a placement on ``holders``, unless the newest full one is just that."""
        issued = [*([self._in_force] if self._in_force else []), *self._pending]
        newest = max((epoch for epoch in issued if epoch.full), key=lambda epoch: epoch.table.epoch, default=None)
        if newest is not None and list(newest.holders.items()) == list(holders.items()):
            self.problem = ""
            return []
        try:
            placement = static_placement(
                num_layers=self.shape.num_layers,
                num_experts=self.shape.num_experts,
                instances=tuple(holders),
                slots_per_instance=slots or None,
                epoch=self._next_number(),
                activations=self.shape.activations,
                nodes=() if nodes is None else tuple(nodes[name] for name in holders),
            )
        except ConfigError as error:
            is_news, self.problem = str(error) != self.problem, str(error)
            fields: dict[str, object] = {"problem": self.problem}
            return [Log(level="error", event="placement_infeasible", fields=fields)] if is_news else []
        self.problem = ""
        full = [epoch for epoch in self._pending if epoch.full]
        if len(full) > 1:  # the oldest of them is the nearest to being loaded, so it stays
            self._pending.remove(full[1])
        return self._issue(_Epoch(placement, holders, full=True))

    def _issue(self, epoch: _Epoch) -> list[Action]:
        self._last_number = epoch.table.epoch
        self._pending.append(epoch)
        sends = [SendLoad(instance=name, table=epoch.table) for name in epoch.holders]
        return [_log("placement_issued", epoch), *sends]

    def _next_number(self) -> int:
        return self._last_number + 1


def _log(event: str, epoch: _Epoch) -> Log:
    fields: dict[str, object] = {"epoch": epoch.table.epoch, "experts": list(epoch.holders), "full": epoch.full}
    return Log(level="info", event=event, fields=fields)
