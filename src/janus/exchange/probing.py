"""What messages cost on links, measured when they come up: the cost model starts from that."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from janus.core.exchange_cost import LinkCost
from janus.errors import LinkError
from janus.transport.link import Link

#: Links that are measured; the others of a kind are taken to be alike.
_LINKS = 4
_TRIES = 5
_BURST = 8
_PAYLOAD = 256 << 10


async def measure_links(links: Sequence[Link], *, timeout_s: float) -> LinkCost | None:
    """Return what a message costs on ``links``, all of one kind: the median of a few; ``None`` when none answers."""
    measured = []
    for link in links[:_LINKS]:
        try:
            measured.append(await _measure(link, timeout_s))
        except LinkError:  # it is down, or too busy to be measured: whoever uses it will notice
            continue
    if not measured:
        return None
    return LinkCost(
        message_s=median(cost.message_s for cost in measured),
        latency_s=median(cost.latency_s for cost in measured),
        byte_s=median(cost.byte_s for cost in measured),
    )


async def _measure(link: Link, timeout_s: float) -> LinkCost:
    alone = min([await link.round_trip(timeout_s=timeout_s) for _ in range(_TRIES)])
    burst = min([await link.round_trip(count=_BURST, timeout_s=timeout_s) for _ in range(_TRIES)])
    large = min([await link.round_trip(_PAYLOAD, timeout_s=timeout_s) for _ in range(_TRIES)])
    # Messages of a burst queue at the other end, which takes each and answers it: two messages' work.
    message_s = max(1e-6, (burst - alone) / (_BURST - 1) / 2)
    return LinkCost(
        message_s=message_s,
        latency_s=max(0.0, alone / 2 - 2 * message_s),
        byte_s=max(0.0, large - alone) / _PAYLOAD,
    )
