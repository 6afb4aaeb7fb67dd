"""Whether an attention instance can reach the experts, as it tells the cluster."""

from __future__ import annotations

import asyncio
from typing import cast

from janus.exchange.remote import RemoteExchange
from janus_attention_server.experts_watch import ExpertsState, ExpertsWatch

LIMIT_S = 5.0


class Remote:
    """An exchange that reaches the experts, or does not."""

    def __init__(self) -> None:
        self.lacks: list[str] = []
        self.replaced: list[str] = []

    def ready(self) -> bool:
        return not self.lacks

    def missing(self) -> list[str]:
        return self.lacks

    def without(self) -> list[str]:
        return self.replaced


class Watched:
    def __init__(self, *, recovery_timeout_s: float) -> None:
        self.remote = Remote()
        self.told: asyncio.Queue[ExpertsState] = asyncio.Queue(8)
        self.watch = ExpertsWatch(
            recovery_timeout_s=recovery_timeout_s, tell=self.told.put_nowait, unreachable=lambda: self.remote.lacks
        )

    def look(self) -> ExpertsState:
        self.watch.look(cast(RemoteExchange, self.remote))
        return self.told.get_nowait()


async def test_experts_that_were_never_there_are_missed_at_once() -> None:
    watched = Watched(recovery_timeout_s=60)
    watched.remote.lacks = ["expert-1"]
    state = watched.look()
    assert (state.ready, state.reason, state.unreachable) == (False, "not linked to expert-1", ["expert-1"])


async def test_requests_are_welcome_while_lost_experts_may_come_back_and_not_for_longer() -> None:
    watched = Watched(recovery_timeout_s=0.05)
    assert watched.look().ready
    watched.remote.lacks = ["expert-0"]
    state = watched.look()
    assert state.ready and state.reason == "requests wait for experts to come back: not linked to expert-0"
    async with asyncio.timeout(LIMIT_S):
        given_up = await watched.told.get()  # by itself, when the time is over
    assert not given_up.ready and given_up.reason == "not linked to expert-0"
    watched.remote.lacks, watched.remote.replaced = [], ["expert-0"]
    assert watched.look() == ExpertsState(ready=True, reason="plans without expert-0", unreachable=[])


async def test_nothing_is_told_after_the_end() -> None:
    watched = Watched(recovery_timeout_s=0.01)
    watched.look()
    watched.remote.lacks = ["expert-0"]
    watched.look()
    watched.watch.close()
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, later.set)
    async with asyncio.timeout(LIMIT_S):
        await later.wait()
    assert watched.told.empty()


async def test_in_one_process_the_experts_are_always_there() -> None:
    watched = Watched(recovery_timeout_s=1)
    watched.watch.look(None)
    assert watched.told.get_nowait() == ExpertsState(ready=True, reason="", unreachable=[])
