"""What must hold of every decision about a simulated cluster, at every moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from janus.core.membership_events import Action, SendLoad, SendView
from janus.core.placement import EMPTY, Placement
from janus.messages.control import ClusterView, PlacementTable

if TYPE_CHECKING:
    from benchmarks.chaos.simulated_world import World


class Checks:
    """Follows a world; raises AssertionError at the first decision that is wrong."""

    def __init__(self) -> None:
        self.world: World | None = None
        #: Every epoch ever issued, as its table, as int32[L, G, C], and with the processes that it was issued to.
        self._tables: dict[int, PlacementTable] = {}
        self._slots: dict[int, npt.NDArray[np.int32]] = {}
        self._holders: dict[int, dict[str, str]] = {}
        self._version = 0
        self._epoch = 0
        self.issued = self.views = 0
        #: How often a view had no placement after one that had.
        self.pauses = 0
        self._paused = True

    def __call__(self, actions: list[Action]) -> None:
        """Check what the controller wants done."""
        for action in actions:
            if isinstance(action, SendLoad):
                self._on_load(action)
            elif isinstance(action, SendView):
                self._on_view(action.view)

    def _on_load(self, action: SendLoad) -> None:
        world, table = self.world, action.table
        assert world is not None
        if table.epoch in self._tables:
            assert self._tables[table.epoch] is table or self._tables[table.epoch] == table, "an epoch is one table"
            return
        assert table.epoch > max(self._tables, default=0), "an epoch number is never used twice, and only grows"
        self.issued += 1
        self._tables[table.epoch] = table
        slots = self._slots[table.epoch] = np.array(table.slots, dtype=np.int32)
        present = np.zeros((slots.shape[0], table.num_experts + 1), dtype=bool)
        present[np.arange(slots.shape[0])[:, None], slots.reshape(len(slots), -1)] = True  # EMPTY is the last column
        assert present[:, :-1].all(), "every expert is on some instance"
        running = {name: process.incarnation for name, process in world.processes.items()}
        known = {member.instance: member.incarnation for member in world.membership.view.members}
        holders = self._holders[table.epoch] = {name: known.get(name, "") for name in table.instances}
        self._same_slots(table, slots, holders, running)

    def _same_slots(
        self, table: PlacementTable, slots: npt.NDArray[np.int32], holders: dict[str, str], running: dict[str, str]
    ) -> None:
        """No slot gets another expert while a dispatch may name an epoch that has one there."""
        assert self.world is not None
        own = {name: index for index, name in enumerate(table.instances)}
        for epoch in self.world.epochs_in_use():
            before, names = self._slots[epoch], self._tables[epoch].instances
            gone = frozenset(name for name in names if running.get(name) != self._holders[epoch][name])
            if gone and Placement.from_table(self._tables[epoch]).without(gone) is None:
                continue  # an expert of it is nowhere: nothing can be dispatched by it
            both = [name for name in names if name in own and holders[name] == self._holders[epoch][name]]
            old = before[:, [names.index(name) for name in both]]
            new = slots[:, [own[name] for name in both]]
            count = min(old.shape[2], new.shape[2])
            old, new = old[..., :count], new[..., :count]
            clash = np.argwhere((old != EMPTY) & (new != EMPTY) & (old != new))
            assert not len(clash), (
                f"epoch {table.epoch} gives layer {clash[0][0]}, slot {clash[0][2]} of {both[clash[0][1]]} "
                f"another expert while dispatches may name epoch {epoch}"
            )

    def _on_view(self, view: ClusterView) -> None:
        world = self.world
        assert world is not None
        self.views += 1
        assert view.version > self._version, "a newer view has a higher version, over controllers too"
        self._version = view.version
        there = {member.instance: member.incarnation for member in view.members if member.state != "failed"}
        assert not there.keys() & set(view.missing)
        if view.placement is None:
            self.pauses += not self._paused
            self._paused = True
            why = [*world.membership.waiting_for, *world.membership.degraded]
            assert why or not view.members, "without a placement, the controller says why"
            return
        self._paused = False
        epoch = view.placement.epoch
        assert epoch >= self._epoch, "an epoch in force never goes back"
        assert view.oldest_epoch <= epoch
        live = {number for number in world.epochs_in_use() if number < view.oldest_epoch}
        assert not live, f"epoch {min(live)} is given back while dispatches name it"
        assert self._tables[epoch] == view.placement
        if epoch != self._epoch:
            unready = [
                name
                for name, incarnation in self._holders[epoch].items()
                if there.get(name) == incarnation
                and (process := world.processes.get(name)) is not None
                and process.incarnation == incarnation
                and epoch not in process.loaded
            ]
            assert not unready, f"epoch {epoch} is in force, and {unready[0]} has not loaded it"
        self._epoch = epoch
        gone = frozenset(name for name in view.placement.instances if there.get(name) != self._holders[epoch][name])
        whole = not gone or Placement.from_table(view.placement).without(gone) is not None
        assert whole, "every expert of the placement in force is on an instance that is there"
