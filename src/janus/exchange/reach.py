"""What an attention instance plans its dispatches with: placements, links, the members of its node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

import numpy as np

from janus.core.exchange_routes import Mode, destinations, in_use
from janus.core.placement import EMPTY, Placement
from janus.core.scheduling.tables import MAX_INSTANCES
from janus.errors import InstanceLost
from janus.exchange.choice import ModeChoice
from janus.exchange.packing import Numbering
from janus.exchange.plan import Plan
from janus.transport.link import Link

#: Placements of earlier epochs that a hand-in may still name.
_PLACEMENTS_KEPT = 4
#: What is left of placements without some instances, kept for when these come and go.
_LEFT_KEPT = 32


class Reach:
    """Kept up by whoever follows the cluster's view; waited on by the steps. All on the step loop.

    Dispatches are planned with what is left of the placement in force without instances that are not linked or are
    masked as too slow: the same epoch and physical ids, so whoever gets a row need not know who is left out.
    """

    def __init__(
        self, *, own: str, links: dict[str, Link], siblings: dict[str, Link] | None, choice: ModeChoice | None
    ) -> None:
        self.own = own
        self.links = links
        self.siblings: dict[str, Link] = {} if siblings is None else siblings
        self.choice = choice or ModeChoice("direct")
        self._placement: Placement | None = None
        self._placements: dict[int, Placement] = {}
        #: What is left of it with the instances that can be used; ``None`` while an expert is nowhere.
        self._usable: Placement | None = None
        self._left: dict[tuple[int, frozenset[str]], Placement | None] = {}
        self._unlinked: frozenset[str] = frozenset()
        #: Instances that are linked and not to be used.
        self._masked: frozenset[str] = frozenset()
        #: Number of this node among the attention nodes, and of attention instances.
        self._source = 0
        self._sources = 1
        #: Whether some are on other nodes.
        self._elsewhere = False
        #: Attention instances of this node that are linked, this one included, in the order that all of them know.
        self._members: tuple[str, ...] = (own,)
        #: By the identity of what is left of a placement, which the plan holds.
        self._plans: dict[tuple[int, Mode], Plan] = {}
        self._changed = asyncio.Event()
        #: Whether expert instances schedule: who is left out must be said to them.
        self._experts_gate = False

    @property
    def placement(self) -> Placement | None:
        """The placement in force, ``None`` while there is none."""
        return self._placement

    def set_placement(self, placement: Placement | None) -> None:
        """Plan with ``placement`` from the next dispatch on; what is in flight is not touched."""
        if placement is not None and (self._placement is None or placement.epoch != self._placement.epoch):
            self._placements[placement.epoch] = placement
            for stale in sorted(self._placements)[:-_PLACEMENTS_KEPT]:
                del self._placements[stale]
            self._left.clear()
        self._placement = placement
        self._look(again=True)
        self.links_changed()

    def set_choice(self, choice: ModeChoice) -> None:
        """Let ``choice`` pick the way from the next dispatch on."""
        self.choice = choice
        self._plan_routes()

    def set_sources(self, nodes: Mapping[str, str]) -> None:
        """Say which attention instances there are, and on which nodes: ``{instance: node}``, this one among them."""
        names = sorted(set(nodes.values()))
        self._source = names.index(nodes[self.own]) if self.own in nodes else 0
        self._sources = max(1, len(nodes))
        self._elsewhere = len(names) > 1

    def links_changed(self) -> None:
        """A link came up or went away: routes are planned anew, whoever waits for readiness looks again."""
        up = [name for name, link in self.siblings.items() if not link.closed]
        members = tuple(sorted((self.own, *up)))
        if members != self._members:
            self._members = members
            self.choice.members_changed()
            self._plan_routes()
        self._look()
        self._changed.set()

    # -- who can be used -----------------------------------------------------------------------------------------

    def mask(self, instances: frozenset[str]) -> None:
        """Use ``instances`` no more where the others have all experts, but whoever was masked before."""
        if instances != self._masked:
            self._masked = instances
            self._look(again=True)

    def can_mask(self, instances: frozenset[str]) -> bool:
        """Return whether the others that are linked have all experts."""
        self._look()
        placement = self._placement
        return placement is not None and self._what_is_left(placement, self._unlinked | instances) is not None

    def _look(self, *, again: bool = False) -> None:
        """Plan with those who can be used now, if these have changed."""
        placement = self._placement
        names = () if placement is None else placement.instances
        unlinked = frozenset([name for name in names if not self._linked(name)])
        if unlinked == self._unlinked and not again:
            return
        self._unlinked = unlinked
        usable = None if placement is None else self._usable_of(placement)
        if usable is not self._usable or again:
            self._usable = usable
            self._plan_routes()
            self._changed.set()

    def _usable_of(self, placement: Placement) -> Placement | None:
        masked = self._what_is_left(placement, self._unlinked | self._masked)
        # Slow is better than nowhere.
        return masked if masked is not None else self._what_is_left(placement, self._unlinked)

    def _what_is_left(self, placement: Placement, out: frozenset[str]) -> Placement | None:
        out &= frozenset(placement.instances)
        if not out:
            return placement
        if self._experts_gate and placement.num_instances > MAX_INSTANCES:
            return None  # that many cannot be told
        key = (placement.epoch, out)
        if key not in self._left:
            while len(self._left) >= _LEFT_KEPT:
                self._left.pop(next(iter(self._left)))
            self._left[key] = placement.without(out)
        return self._left[key]

    def _plan_routes(self) -> None:
        self._plans.clear()
        placement = self._usable
        if placement is not None:
            for mode in self.choice.possible(members=len(self._members), placement=placement):
                self._plan(placement, mode)

    def _plan(self, placement: Placement, mode: Mode) -> Plan:
        """Return how dispatches of ``placement``, or of what is left of one, go ``mode``'s way."""
        plan = self._plans.get((id(placement), mode))
        if plan is None:
            slots, total = placement.slots_per_instance, placement.num_instances
            to = destinations(placement, mode)
            numberings = tuple(Numbering.of(each.instances, slots=slots, total=total) for each in to)
            everywhere = Numbering.of(range(total), slots=slots, total=total)
            idle = [index for index, used in enumerate(in_use(placement)) if not used]
            unserved = sorted(set(idle).difference(*(each.instances for each in to)))
            plan = self._plans[id(placement), mode] = Plan(
                placement,
                to,
                numberings,
                everywhere,
                Numbering.of(unserved, slots=slots, total=total) if unserved else None,
                sum(1 << index for index in idle if index < MAX_INSTANCES),
            )
        return plan

    # -- readiness -----------------------------------------------------------------------------------------------

    def without(self) -> tuple[str, ...]:
        """Instances of the placement in force that dispatches are planned without: others have their experts."""
        if self._placement is None or self._usable is None:
            return ()
        return tuple(name for name in self._placement.instances if name in self._unlinked | self._masked)

    def missing(self) -> tuple[str, ...]:
        """Instances of the placement in force that are not linked and without which an expert is nowhere."""
        self._look()
        placement = self._placement
        if placement is None or self._usable is not None:
            return ()
        unlinked = np.array([name in self._unlinked for name in placement.instances])
        by_instance = placement.phys_to_logical.reshape(placement.num_layers, placement.num_instances, -1)
        matters = np.zeros(placement.num_instances, dtype=bool)
        for held in by_instance:
            there = np.append(held[~unlinked], EMPTY)
            matters |= ~np.isin(held, there).all(axis=1)
        if not matters.any():  # there are others, which cannot be told that these are left out
            matters = unlinked
        return tuple(name for name, lost in zip(placement.instances, matters, strict=True) if lost)

    def _linked(self, instance: str) -> bool:
        link = self.links.get(instance)
        return link is not None and not link.closed

    def ready(self) -> bool:
        self._look()
        return self._usable is not None

    async def wait_ready(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            missing = self.missing()
            what = f"not linked to {', '.join(missing)}" if missing else "no placement covers every expert"
            raise InstanceLost(f"{what} after {timeout_s:g} s", instances=missing) from None

    async def wait_changed(self, timeout_s: float) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
