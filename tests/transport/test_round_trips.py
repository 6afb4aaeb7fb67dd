"""The time of a frame to the peer and back: measured over every transport, and never waited for without end."""

from __future__ import annotations

import asyncio

import pytest

from janus.errors import DeadlineExceeded, LinkBroken, LinkClosed
from janus.transport import TransportKind
from janus.transport.waiting import RoundTrips
from tests.transport.helpers import DEADLINE_S, Recorder, linked
from tests.waiting import begun


async def test_round_trips_are_measured_beside_each_other_and_cost_no_credit(kind: TransportKind) -> None:
    async with linked(kind, Recorder(), Recorder()) as (link, _), asyncio.timeout(DEADLINE_S):
        credits = link.credits
        one, more = await asyncio.gather(
            link.round_trip(timeout_s=DEADLINE_S), link.round_trip(60_000, count=5, timeout_s=DEADLINE_S)
        )
        assert 0 < one < DEADLINE_S and 0 < more < DEADLINE_S
        assert link.credits == credits
        await link.close("done")
        with pytest.raises(LinkClosed):
            await link.round_trip(timeout_s=DEADLINE_S)


async def test_one_that_is_not_answered_ends_in_time_and_is_forgotten() -> None:
    sent: list[int] = []
    trips = RoundTrips("expert-0")
    with pytest.raises(DeadlineExceeded, match=r"no answer to a probe within 0\.01 s"):
        await trips.measure(sent.append, count=2, timeout_s=0.01)
    assert len(set(sent)) == 2  # the last one alone is waited for
    assert trips.answered(sent[-1])  # late, and no heartbeat's
    assert not trips.answered(7)


async def test_the_end_of_the_link_ends_the_wait() -> None:
    trips = RoundTrips("expert-0")
    waiting = await begun(trips.measure(lambda _: None, count=1, timeout_s=DEADLINE_S), name="round-trip")
    trips.fail(LinkBroken("expert-0", "it died"))
    with pytest.raises(LinkBroken, match="it died"):
        await waiting
