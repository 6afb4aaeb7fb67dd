"""What an attention instance plans its dispatches with: placements, links, the members of its node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from janus.core.exchange_routes import Mode, destinations
from janus.core.placement import Placement
from janus.errors import InstanceLost
from janus.exchange.bundles import Plan
from janus.exchange.choice import ModeChoice
from janus.exchange.packing import Numbering
from janus.transport.link import Link

#: Placements of earlier epochs that a hand-in may still name.
_PLACEMENTS_KEPT = 4


class Reach:
    """Kept up by whoever follows the cluster's view; waited on by the steps. All on the step loop."""

    def __init__(
        self, *, own: str, links: dict[str, Link], siblings: dict[str, Link] | None, choice: ModeChoice | None
    ) -> None:
        self.own = own
        self.links = links
        self.siblings: dict[str, Link] = {} if siblings is None else siblings
        self.choice = choice or ModeChoice("direct")
        self._placement: Placement | None = None
        self._placements: dict[int, Placement] = {}
        #: Number of this node among the attention nodes, and of attention instances.
        self._source = 0
        self._sources = 1
        #: Attention instances of this node that are linked, this one included, in the order that all of them know.
        self._members: tuple[str, ...] = (own,)
        self._plans: dict[tuple[int, Mode], Plan] = {}
        self._changed = asyncio.Event()

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
        self._placement = placement
        self._plan_routes()
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
        self._plan_routes()

    def links_changed(self) -> None:
        """A link came up or went away: routes are planned anew, whoever waits for readiness looks again."""
        up = [name for name, link in self.siblings.items() if not link.closed]
        members = tuple(sorted((self.own, *up)))
        if members != self._members:
            self._members = members
            self.choice.members_changed()
            self._plan_routes()
        self._changed.set()

    def _plan_routes(self) -> None:
        self._plans.clear()
        placement = self._placement
        if placement is not None:
            for mode in self.choice.possible(members=len(self._members), placement=placement):
                self._plan(placement, mode)

    def _plan(self, placement: Placement, mode: Mode) -> Plan:
        """Return how dispatches of ``placement`` go ``mode``'s way."""
        plan = self._plans.get((placement.epoch, mode))
        if plan is None:
            slots, total = placement.slots_per_instance, placement.num_instances
            to = destinations(placement, mode, source=self._source)
            numberings = tuple(Numbering.of(each.instances, slots=slots, total=total) for each in to)
            everywhere = Numbering.of(range(total), slots=slots, total=total)
            plan = self._plans[placement.epoch, mode] = Plan(placement, to, numberings, everywhere)
        return plan

    def missing(self) -> tuple[str, ...]:
        """Instances of the placement in force that are not linked."""
        if self._placement is None:
            return ()
        return tuple(name for name in self._placement.instances if not self._linked(name))

    def _linked(self, instance: str) -> bool:
        link = self.links.get(instance)
        return link is not None and not link.closed

    def ready(self) -> bool:
        return self._placement is not None and not self.missing()

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
