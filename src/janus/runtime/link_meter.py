"""Measures links when they come up, for the cost model of the exchange."""

from __future__ import annotations

import asyncio

import structlog

from janus.exchange.probing import measure_links
from janus.exchange.remote import RemoteExchange
from janus.runtime.tasks import OwnedTasks

log = structlog.get_logger()

#: Links come up in a row when a cluster starts; they are measured once they have.
_SETTLE_S = 0.5
_TIMEOUT_S = 2.0


class LinkMeter:
    """Belongs to the loop of the exchange. One measurement at a time; a change meanwhile is followed by another."""

    def __init__(self, exchange: RemoteExchange) -> None:
        self._exchange = exchange
        self._again = False
        self._tasks = OwnedTasks()
        self._task: asyncio.Task[None] | None = None

    def links_changed(self) -> None:
        """A link came up or went away."""
        if not self._exchange.choice.has_choice:
            return  # one way is all there is: nobody asks what links cost
        self._again = True
        if self._task is None or self._task.done():
            self._task = self._tasks.start(self._measure(), name="measure-links")

    async def close(self) -> None:
        """Measure no more."""
        await self._tasks.close()

    async def _measure(self) -> None:
        while self._again:
            await asyncio.sleep(_SETTLE_S)
            self._again = False
            exchange = self._exchange
            inter = await measure_links(list(exchange.links.values()), timeout_s=_TIMEOUT_S)
            intra = await measure_links(list(exchange.siblings.values()), timeout_s=_TIMEOUT_S)
            exchange.choice.measured(inter=inter, intra=intra)
            for kind, cost in (("inter", inter), ("intra", intra)):
                if cost is not None:
                    log.info(
                        "links_measured",
                        kind=kind,
                        message_us=round(cost.message_s * 1e6, 1),
                        latency_us=round(cost.latency_s * 1e6, 1),
                        gbit_per_s=round(8e-9 / cost.byte_s, 2) if cost.byte_s else None,
                    )
