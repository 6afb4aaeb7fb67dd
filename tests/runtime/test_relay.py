"""A node's relay: whoever has no share for it is named, in time, and what comes too late is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
import structlog
import torch

from janus.core.placement import Placement
from janus.errors import InstanceLost, LinkError, ReplicaMissing
from janus.model.config import ModelConfig
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import InFrame, Kind, Link
from janus.transport.frame import Flags
from tests.runtime.nodes import MakeEngine, Nodes, spread, start_nodes
from tests.runtime.world import LIMIT_S, batch
from tests.waiting import eventually

#: One node of three experts; the first is the relay in layer 0. The attention instance is alone on its own.
SLOTS = {"expert-0": [0, 1, 2], "expert-1": [3, 4, 5], "expert-2": [6, 7, 0]}
NODES = dict.fromkeys(SLOTS, "x")
RELAY, SIBLING = "expert-0", "expert-1"
TIMEOUT_S = 0.5


class Held:
    """Forwarded dispatches for an engine wait here until they are let through."""

    def __init__(self, engine: ExpertEngine) -> None:
        self._take = engine.on_frame
        self._is_open = False
        self.waiting: list[tuple[Link, InFrame]] = []
        self.arrived = asyncio.Event()
        engine.on_frame = self._hold  # type: ignore[method-assign]

    def _hold(self, link: Link, frame: InFrame) -> None:
        if self._is_open or not frame.header.flags & Flags.FORWARDED:
            self._take(link, frame)
            return
        self.waiting.append((link, frame))
        self.arrived.set()

    def let_through(self) -> None:
        self._is_open = True
        for link, frame in self.waiting:
            self._take(link, frame)
        self.waiting.clear()

    async def wait(self) -> None:
        async with asyncio.timeout(LIMIT_S):
            await self.arrived.wait()


@pytest.fixture
async def world(engine: MakeEngine) -> AsyncIterator[Nodes]:
    async with contextlib.AsyncExitStack() as stack:
        yield await start_nodes(
            stack, engine, attention={"attention-0": "a"}, table=spread(SLOTS, NODES), dispatch_timeout_s=TIMEOUT_S
        )


@pytest.fixture
def given(config: ModelConfig) -> tuple[torch.Tensor, ...]:
    return batch(16, config.hidden_size)


async def nothing_left(world: Nodes) -> None:
    """Nobody waits for anything, no frame is held; and the next dispatch is computed."""
    relay, exchange = world.experts[RELAY].relay, world.attention["attention-0"]
    async with asyncio.timeout(LIMIT_S):
        await relay.idle.wait()
    links = (*relay.siblings.values(), *exchange.links.values())
    await eventually(lambda: not any(link.stats().held for link in links))
    assert relay._pending == {}
    assert exchange._pending == {}


async def computed(world: Nodes, given: tuple[torch.Tensor, ...]) -> None:
    async with asyncio.timeout(LIMIT_S):
        results = await world.run(0, {"attention-0": given})
    assert results["attention-0"].isfinite().all()
    await nothing_left(world)


async def test_a_sibling_that_rejects_is_asked_itself_and_named(world: Nodes, given: tuple[torch.Tensor, ...]) -> None:
    newer = spread(SLOTS, NODES, epoch=2)
    for name in (RELAY, "expert-2"):
        await world.experts[name].load(newer)
    exchange = world.attention["attention-0"]
    before = exchange.placement
    exchange.set_placement(Placement.from_table(newer))
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ReplicaMissing, match=f"{SIBLING}: .*epoch 2") as missing:
            await exchange.combine(exchange.dispatch(0, *given))
    assert exchange.times.resent_replica_missing == 1
    assert missing.value.instances == (SIBLING,)
    exchange.set_placement(before)
    await computed(world, given)


async def test_a_sibling_that_is_lost_to_the_relay_is_asked_itself_at_once(
    world: Nodes, given: tuple[torch.Tensor, ...]
) -> None:
    expected = (await world.run(0, {"attention-0": given}))["attention-0"]
    exchange, held = world.attention["attention-0"], Held(world.experts[SIBLING])
    receipt = exchange.dispatch(0, *given)
    await held.wait()
    started = time.monotonic()
    world.experts[RELAY].relay.siblings[SIBLING].abort("killed")
    with structlog.testing.capture_logs() as logs:
        assert (await exchange.combine(receipt)).equal(expected)
    assert time.monotonic() - started < TIMEOUT_S / 2, "that is when a deadline would have told"
    assert [entry["problem"] for entry in logs if entry["event"] == "layer_sent_again"] == [
        f"{RELAY}: {SIBLING}: closed: killed"
    ]
    held.let_through()
    # For some time each is asked itself; then the sibling is missed before anything is forwarded.
    before = world.experts[RELAY].relay.relayed
    async with asyncio.timeout(LIMIT_S):
        for _ in range(20):
            assert (await exchange.combine(exchange.dispatch(0, *given))).equal(expected)
    assert exchange.times.resent_refused == 2
    assert world.experts[RELAY].relay.relayed == before
    assert exchange.suspects() == ()
    await nothing_left(world)


async def test_a_sibling_that_is_late_is_asked_itself_and_its_answer_dropped(
    world: Nodes, given: tuple[torch.Tensor, ...]
) -> None:
    expected = (await world.run(0, {"attention-0": given}))["attention-0"]
    exchange, held = world.attention["attention-0"], Held(world.experts[SIBLING])
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(LIMIT_S):
            assert (await exchange.combine(exchange.dispatch(0, *given))).equal(expected)
    assert [entry["problem"] for entry in logs if entry["event"] == "layer_sent_again"] == [
        f"{RELAY}: {SIBLING}: no share of MoE layer 0 within 0.4 s"
    ], "the relay itself is not to blame"
    held.let_through()
    await computed(world, given)


async def test_an_answer_of_the_wrong_shape_is_told_by_name_and_asked_for_anew(
    world: Nodes, given: tuple[torch.Tensor, ...]
) -> None:
    expected = (await world.run(0, {"attention-0": given}))["attention-0"]
    exchange, held = world.attention["attention-0"], Held(world.experts[SIBLING])
    receipt = exchange.dispatch(0, *given)
    await held.wait()
    ((link, frame),) = held.waiting
    held.waiting.clear()
    header = frame.header
    for _ in range(2):  # the second one comes when the dispatch is over
        link.post(
            link.allocate(64), kind=Kind.COMBINE, request_id=header.request_id, dtype=header.dtype, rows=1, cols=16
        )
    frame.release()
    with structlog.testing.capture_logs() as logs:
        async with asyncio.timeout(LIMIT_S):
            assert (await exchange.combine(receipt)).equal(expected)
    assert [entry["problem"] for entry in logs if entry["event"] == "layer_sent_again"] == [
        f"{RELAY}: {SIBLING}: its share is 1x16"
    ]
    held.let_through()
    await computed(world, given)


async def test_a_dispatch_whose_sender_dies_leaves_nothing(world: Nodes, given: tuple[torch.Tensor, ...]) -> None:
    exchange, held = world.attention["attention-0"], Held(world.experts[SIBLING])
    receipt = exchange.dispatch(0, *given)
    await held.wait()
    exchange.links[RELAY].abort("killed")
    with pytest.raises(InstanceLost, match=RELAY):
        await exchange.combine(receipt)
    held.let_through()
    await nothing_left(world)


async def test_a_sender_that_dies_while_its_dispatch_waits_holds_nothing_until_the_deadline(
    world: Nodes, given: tuple[torch.Tensor, ...]
) -> None:
    exchange, relay = world.attention["attention-0"], world.experts[RELAY]
    resume, waits, gone = relay._schedule, asyncio.Event(), asyncio.Event()
    closed = relay.on_closed

    def note(link: Link, error: LinkError) -> None:
        closed(link, error)
        gone.set()

    relay.on_closed = note  # type: ignore[method-assign]
    relay._schedule = waits.set  # type: ignore[method-assign]
    receipt = exchange.dispatch(0, *given)
    async with asyncio.timeout(LIMIT_S):
        await waits.wait()
        started = time.monotonic()
        exchange.links[RELAY].abort("killed")
        with pytest.raises(InstanceLost, match=RELAY):
            await exchange.combine(receipt)
        await gone.wait()
    relay._schedule = resume  # type: ignore[method-assign]
    resume()
    await nothing_left(world)
    assert time.monotonic() - started < TIMEOUT_S / 2
