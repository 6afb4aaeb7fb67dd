"""Which expert instances dispatches are planned without although they are linked, and which get less work."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import structlog

from janus.core.placement import Placement
from janus.core.slowness import Slowness
from janus.exchange.choice import ModeChoice
from janus.exchange.reach import Reach
from janus.exchange.times import ExchangeTimes
from janus.transport.link import Link

log = structlog.get_logger(__name__)


class Suspicion(Reach):
    """Acts on the record of who is slow. All on the step loop."""

    def __init__(
        self,
        *,
        own: str,
        links: dict[str, Link],
        siblings: dict[str, Link] | None,
        choice: ModeChoice | None,
        slowness: Slowness,
    ) -> None:
        super().__init__(own=own, links=links, siblings=siblings, choice=choice)
        self._slowness = slowness
        #: Instances that lack what the epoch in force says, among those that are suspected.
        self._stale: set[str] = set()
        #: What the scheduler is told that instances have to do already: ``None`` unless one is slow.
        self._load0: npt.NDArray[np.int32] | None = None
        self._biases: dict[str, int] = self._slowness.biases
        self._times = ExchangeTimes()

    def set_placement(self, placement: Placement | None) -> None:
        """Plan with ``placement`` from the next dispatch on; what is in flight is not touched."""
        before = self._placement
        super().set_placement(placement)
        if placement is None or (before is not None and placement.epoch == before.epoch):
            return
        if before is not None:
            self._slowness.forget(set(before.instances).difference(placement.instances))
        if self._stale:
            # They were asked for what they did not have in another epoch.
            self._slowness.readmit(now_s=time.monotonic(), all_but=self._slowness.suspects - self._stale)
            self._stale.clear()
        self.mask(self._slowness.suspects)
        self._weigh()

    def links_changed(self) -> None:
        """As ``Reach``; who has a new link is tried again."""
        before = self._unlinked
        super().links_changed()
        if self._slowness.suspects:
            now_s = time.monotonic()
            for name in before - self._unlinked:
                self._slowness.alive(name, now_s=now_s)
            self.mask(self._slowness.suspects)

    def _readmit(self) -> None:
        """Use those again whose back-off is over."""
        back = self._slowness.readmit(now_s=time.monotonic())
        if back:
            self._stale.difference_update(back)
            log.info("instances_tried_again", instances=list(back))
            self.mask(self._slowness.suspects)

    def _suspect(self, names: Sequence[str], why: str) -> bool:
        """Leave ``names`` out for a while; returns whether the others have all experts."""
        slowness, wanted = self._slowness, frozenset(names)
        now_s = time.monotonic()
        if not wanted or not self.can_mask(wanted | slowness.suspects):
            if not wanted or not self.can_mask(wanted):
                return False
            slowness.readmit(now_s=now_s, all_but=wanted)  # others were late before, and are needed now
        new = sorted(wanted - slowness.suspects)
        if new:
            slowness.late(new, now_s=now_s)
            self._times.suspected += len(new)
            log.warning("instances_left_out", instances=new, problem=why)
        self.mask(slowness.suspects)
        return True

    def _weigh(self) -> None:
        """Let the scheduler know who is slow."""
        self._biases = biases = self._slowness.biases
        placement = self._placement
        if not biases or placement is None:
            self._load0 = None
            return
        self._load0 = np.array([biases.get(name, 0) for name in placement.instances], dtype=np.int32)
