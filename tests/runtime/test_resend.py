"""An expert instance that dies, hangs or is slow costs a layer: it is sent again to replicas, with the same result."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
import torch

from janus.config.options import ExchangeName
from janus.core.placement import Placement
from janus.core.slowness import BACK_OFF_S, Slowness
from janus.errors import InstanceLost, ReplicaMissing
from janus.exchange.receipts import Receipt
from janus.exchange.remote import RemoteExchange
from janus.model.config import ModelConfig
from janus.runtime.expert_engine import ExpertEngine
from janus.transport import InFrame, Link
from tests.runtime.nodes import MakeEngine, Nodes, StartNodes, spread, start_nodes
from tests.runtime.test_exchange_growth import left_over, links_of
from tests.runtime.world import LAYERS, batch
from tests.transport.helpers import needs_shared_memory
from tests.waiting import begun, eventually

#: Every expert is on two instances at least: any one can be spared.
SLOTS = {"expert-0": [0, 1, 2, 3, 4, 5], "expert-1": [4, 5, 6, 7, 0, 1], "expert-2": [2, 3, 6, 7, 0, 4]}
EXPERT_NODES = {"expert-0": "x", "expert-1": "x", "expert-2": "y"}
ATTENTION = {"attention-0": "a", "attention-1": "a"}
FIRST, LOST = "attention-0", "expert-1"
#: Far longer than anything here takes: what ends only then has not been hedged.
TIMEOUT_S, LIMIT_S = 30.0, 10.0
#: When a dispatch is late at the earliest.
FLOOR_S = 0.03
WAYS: tuple[ExchangeName, ...] = ("direct", "aggregated", "two-phase")


class Hung:
    """An expert instance whose process is stopped: frames come, nothing is answered until it goes on."""

    def __init__(self, engine: ExpertEngine) -> None:
        self._engine, self._take = engine, engine.on_frame
        self.waiting: list[tuple[Link, InFrame]] = []
        self.arrived = asyncio.Event()
        engine.on_frame = self._hold  # type: ignore[method-assign]

    def _hold(self, link: Link, frame: InFrame) -> None:
        self.waiting.append((link, frame))
        self.arrived.set()

    def go_on(self) -> None:
        self._engine.on_frame = self._take  # type: ignore[method-assign]
        waiting, self.waiting = self.waiting, []
        for link, frame in waiting:
            self._take(link, frame)


def impatient() -> Slowness:
    return Slowness(timeout_s=TIMEOUT_S, floor_s=FLOOR_S)


@pytest.fixture
async def nodes(engine: MakeEngine) -> AsyncIterator[StartNodes]:
    async with asyncio.timeout(3 * LIMIT_S), contextlib.AsyncExitStack() as stack:

        async def start(**options: Any) -> Nodes:
            given: dict[str, Any] = {
                "attention": ATTENTION,
                "table": spread(SLOTS, EXPERT_NODES),
                "dispatch_timeout_s": TIMEOUT_S,
                "slowness": impatient,
            } | options
            return await start_nodes(stack, engine, **given)

        yield start


def batches(config: ModelConfig, rows: int = 16) -> dict[str, tuple[torch.Tensor, ...]]:
    return {name: batch(rows, config.hidden_size, seed=seed) for seed, name in enumerate(ATTENTION)}


def no_waits(exchange: RemoteExchange) -> list[Receipt]:
    """Return who waits for another epoch from now on; none should."""
    waited: list[Receipt] = []

    async def newer(receipt: Receipt) -> bool:
        waited.append(receipt)
        return False

    exchange._newer = newer  # type: ignore[method-assign]
    return waited


async def warm(world: Nodes, given: dict[str, tuple[torch.Tensor, ...]], layer: int = 0) -> dict[str, torch.Tensor]:
    """Dispatch until it is known what a dispatch takes; returns the sums."""
    for _ in range(8):
        sums = await world.run(layer, given)
    return sums


async def nothing_left(world: Nodes) -> None:
    with contextlib.suppress(TimeoutError):
        await eventually(lambda: not any(left_over(world).values()))
    assert left_over(world) == dict.fromkeys(left_over(world), 0)


def same(results: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, result in results.items():
        torch.testing.assert_close(result, expected[name], atol=1e-5, rtol=1e-5)


def sum_of(world: Nodes, field: str) -> int:
    return sum(getattr(exchange.times, field) for exchange in world.attention.values())


def kill(world: Nodes, name: str) -> None:
    """End an instance as its process' death does: every link of it, at both ends."""
    for link in links_of(world):
        if name in (link.peer.instance, link.local.instance):
            link.abort("killed")


async def answered(world: Nodes, given: dict[str, tuple[torch.Tensor, ...]], layer: int = 0) -> dict[str, torch.Tensor]:
    """As ``Nodes.run``, all steps waiting at the same time."""
    routed = {n: (x, None, None) if world.attention[n].experts_gate else (x, i, w) for n, (x, i, w) in given.items()}
    receipts = [world.attention[name].dispatch(layer, *rows) for name, rows in routed.items()]
    waiting = [world.attention[name].combine(receipt) for name, receipt in zip(given, receipts, strict=True)]
    return dict(zip(given, await asyncio.gather(*waiting), strict=True))


KINDS = [
    pytest.param({}, id="inproc"),
    pytest.param({"kind": "shm", "between": "shm"}, marks=needs_shared_memory, id="shm"),
    pytest.param({"kind": "shm", "between": "ucx"}, marks=needs_shared_memory, id="ucx"),
]


@pytest.mark.parametrize("gate", ["attention", "expert"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("links", KINDS)
async def test_a_layer_whose_expert_instance_dies_is_answered_by_replicas(
    links: dict[str, Any], way: ExchangeName, gate: str, *, nodes: StartNodes, config: ModelConfig
) -> None:
    world = await nodes(exchange=way, experts_gate=gate == "expert", **links)
    given = batches(config)
    expected = await warm(world, given)
    hung = Hung(world.experts[LOST])
    waiting = asyncio.create_task(answered(world, given), name="steps")
    await hung.arrived.wait()
    started = time.monotonic()
    kill(world, LOST)
    same(await waiting, expected)
    assert time.monotonic() - started < LIMIT_S
    assert sum_of(world, "resent_lost") + sum_of(world, "resent_refused") >= 1
    for exchange in world.attention.values():
        assert exchange.ready()
        assert exchange.missing() == ()
    # From here on nothing is lost any more, and nobody relays over it.
    before = {field: sum_of(world, field) for field in ("resent_lost", "resent_refused", "resent_not_posted")}
    for layer in range(LAYERS):
        for _ in range(20):
            results = await answered(world, given, layer)
    assert all(torch.isfinite(result).all() for result in results.values())
    assert {field: sum_of(world, field) for field in before} == before
    # It comes back, and is used again.
    hung.go_on()
    await world.link_all()
    for exchange in world.attention.values():
        assert exchange._usable is exchange.placement
    same(await answered(world, given), expected)
    await nothing_left(world)


@pytest.mark.parametrize("gate", ["attention", "expert"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SLOTS)
async def test_a_hung_instance_is_hedged_and_used_again_when_it_goes_on(
    name: str, way: ExchangeName, gate: str, *, nodes: StartNodes, config: ModelConfig
) -> None:
    world = await nodes(exchange=way, experts_gate=gate == "expert")
    given = batches(config)
    expected = await warm(world, given)
    hung = Hung(world.experts[name])
    started = time.monotonic()
    same(await answered(world, given), expected)
    assert time.monotonic() - started < TIMEOUT_S / 3, "the deadline"
    assert sum_of(world, "resent_late") >= 1
    for exchange in world.attention.values():
        assert set(exchange.suspects()) <= {name}
    assert any(exchange.suspects() for exchange in world.attention.values())
    # What it did not answer is over: frames are given back without waiting for it, or for a deadline.
    for exchange in world.attention.values():
        assert not exchange._pending
        assert [link.stats().held for link in exchange.links.values()] == [0] * len(SLOTS)
        assert exchange.in_flight() == 0
    hung.go_on()
    await eventually(lambda: not any(exchange.suspects() for exchange in world.attention.values()))
    assert sum_of(world, "late_answers") >= 1
    for exchange in world.attention.values():
        exchange._avoiding = 0
    same(await answered(world, given), expected)
    await nothing_left(world)


async def test_while_it_hangs_nothing_else_is_late(nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given = {FIRST: batches(config)[FIRST]}
    await warm(world, given)
    Hung(world.experts[LOST])
    exchange = world.attention[FIRST]
    for _ in range(30):
        await world.run(0, given)
    assert exchange.times.resent_late == 1
    assert exchange.suspects() == (LOST,)


async def test_who_is_tried_again_and_still_hangs_is_left_out_for_longer(
    nodes: StartNodes, config: ModelConfig
) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    hung, slowness = Hung(world.experts[LOST]), exchange._slowness
    results, back_offs_s = [], []
    for _ in range(3):
        results.append(await world.run(0, given))
        assert exchange.suspects() == (LOST,)
        back_offs_s.append(slowness._records[LOST].back_off_s)
        slowness.readmit(now_s=time.monotonic(), all_but=frozenset())  # as when the back-off is over
        exchange.mask(slowness.suspects)
    assert back_offs_s == [BACK_OFF_S, 2 * BACK_OFF_S, 4 * BACK_OFF_S]
    assert exchange.times.resent_late == 3
    for result in results:
        same(result, expected)
    hung.go_on()
    await nothing_left(world)


async def test_where_all_hang_nobody_is_suspected(nodes: StartNodes, config: ModelConfig) -> None:
    """All of them hang: nobody is to blame, and the layer ends when they go on."""
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    hung = [Hung(engine) for engine in world.experts.values()]
    waiting = asyncio.create_task(world.run(0, given), name="step")
    for each in hung:
        await each.arrived.wait()
    (receipt,) = {part.receipt for part in exchange._pending.values()}  # type: ignore[attr-defined]
    await eventually(lambda: receipt.rounds >= 3)
    assert exchange._slowness.suspects == frozenset(), "it may be this instance that hears nobody"
    assert exchange.suspects() == tuple(SLOTS), "the controller knows whether it hears them"
    assert exchange.in_flight() == 1
    for each in hung:
        each.go_on()
    same(await waiting, expected)
    assert exchange.times.resent_late == 0


async def test_a_loop_that_was_busy_blames_nobody(nodes: StartNodes, config: ModelConfig) -> None:
    """Its timers run before what has come meanwhile is taken in."""
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    receipt = exchange.dispatch(0, *given[FIRST])
    until = time.monotonic() + 3 * FLOOR_S
    while time.monotonic() < until:
        pass
    same({FIRST: await exchange.combine(receipt)}, expected)
    assert receipt.looks, "it was late, but for the loop alone"
    assert exchange.times.resent_late == 0
    assert exchange.suspects() == ()


async def test_without_a_spare_replica_a_hung_instance_is_waited_for(nodes: StartNodes, config: ModelConfig) -> None:
    alone = {"expert-0": [0, 1, 2], "expert-1": [3, 4, 5], "expert-2": [6, 7]}
    table = spread({name: held + [-1] * (3 - len(held)) for name, held in alone.items()}, EXPERT_NODES)
    world = await nodes(exchange="direct", attention={FIRST: "a"}, table=table)
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    hung = Hung(world.experts[LOST])
    waiting = asyncio.create_task(world.run(0, given), name="step")
    await hung.arrived.wait()
    (receipt,) = {part.receipt for part in exchange._pending.values()}  # type: ignore[attr-defined]
    await eventually(lambda: receipt.rounds >= 3)
    assert exchange._slowness.suspects == frozenset()
    assert exchange.suspects() == (LOST,), "waited for, and named"
    hung.go_on()
    same(await waiting, expected)
    assert exchange.suspects() == ()
    # And when it dies, the step fails by name.
    hung = Hung(world.experts[LOST])
    receipt = exchange.dispatch(0, *given[FIRST])
    await hung.arrived.wait()
    kill(world, LOST)
    with pytest.raises(InstanceLost, match=LOST) as lost:
        await exchange.combine(receipt)
    assert lost.value.instances == (LOST,)
    assert exchange.missing() == (LOST,)
    assert not exchange.ready()
    hung.go_on()


async def test_an_instance_without_what_the_epoch_says_is_left_out_until_the_next(
    nodes: StartNodes, config: ModelConfig
) -> None:
    """One that has started anew under its name is linked before it has loaded anything."""
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    second = spread(SLOTS, EXPERT_NODES, epoch=2)
    for name in ("expert-0", "expert-2"):
        await world.experts[name].load(second)
    expected = await warm(world, given)
    exchange.set_placement(Placement.from_table(second))
    waited = no_waits(exchange)
    same(await world.run(0, given), expected)
    assert not waited, "nobody waits for another epoch while there are replicas"
    assert exchange.times.resent_replica_missing == 1
    assert exchange.suspects() == (LOST,)
    third = spread(SLOTS, EXPERT_NODES, epoch=3)
    for engine in world.experts.values():
        await engine.load(third)
    exchange.set_placement(Placement.from_table(third))
    assert exchange.suspects() == ()
    same(await world.run(0, given), expected)
    assert exchange.times.resent_replica_missing == 1


async def test_a_stale_epoch_is_sent_again_with_the_newer_one(nodes: StartNodes, config: ModelConfig) -> None:
    alone = {"expert-0": [0, 1, 2, 3], "expert-1": [4, 5, 6, 7]}
    swapped = dict(zip(alone, reversed(alone.values()), strict=True))
    world = await nodes(attention={FIRST: "a"}, table=spread(alone, EXPERT_NODES), exchange="direct")
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    newer = spread(swapped, EXPERT_NODES, epoch=2)
    for engine in world.experts.values():
        await engine.load(newer)
    waiting = asyncio.create_task(world.run(0, given), name="step")
    await eventually(lambda: exchange.times.dispatches == 9 and not exchange._pending)
    assert exchange.oldest_epoch() == 1
    exchange.set_placement(Placement.from_table(newer))
    same(await waiting, expected)
    assert exchange.times.resent_replica_missing == 1
    # None comes: as before.
    exchange.set_placement(Placement.from_table(spread(alone, EXPERT_NODES, epoch=3)))
    with pytest.raises(ReplicaMissing):
        await world.run(0, given)


@pytest.mark.parametrize("stays", [True, False])
@pytest.mark.parametrize("code", ["internal", "draining", "replica_missing"])
async def test_who_refuses_is_done_without(code: str, stays: bool, nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    engine, asked = world.experts[LOST], []
    waited = no_waits(exchange)

    def refuse(link: Link, frame: InFrame) -> None:
        asked.append(frame.header.request_id)
        engine._reject(link, frame, code, "no")

    engine.on_frame = refuse  # type: ignore[method-assign]
    receipt = exchange.dispatch(0, *given[FIRST])
    await eventually(receipt.done.done)
    if not stays:
        kill(world, LOST)  # and before its step goes on
    result = await exchange.combine(receipt)
    assert not waited, "there is nothing to wait for"
    same({FIRST: result}, expected)
    assert exchange.times.resent_refused + exchange.times.resent_replica_missing == 1
    assert exchange.suspects() == ((LOST,) if stays else ())
    for _ in range(10):
        same(await world.run(0, given), expected)
    assert len(asked) == 1
    await nothing_left(world)


async def test_a_frame_that_is_wrong_is_not_sent_again(nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    exchange, (x_TH, ids_TK, weights_TK) = world.attention[FIRST], batch(4, config.hidden_size)
    with pytest.raises(InstanceLost, match="columns"):
        await exchange.combine(exchange.dispatch(0, x_TH[:, : config.hidden_size // 2], ids_TK, weights_TK))
    assert exchange.times.dispatches == 1
    assert exchange.suspects() == ()
    await nothing_left(world)


@pytest.mark.parametrize("how", ["dropped", "ending"])
async def test_a_link_that_takes_no_frame_is_done_without(how: str, nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    link = exchange.links[LOST]
    if how == "dropped":
        del exchange.links[LOST]  # and nobody has said so yet
    else:
        closing = await begun(link.close("draining"), name="close")
    same(await world.run(0, given), expected)
    assert exchange.times.resent_not_posted == 1
    if how == "ending":
        await closing
    assert not exchange._pending


async def test_a_hand_in_for_an_instance_that_the_poster_has_lost_is_sent_again(
    nodes: StartNodes, config: ModelConfig
) -> None:
    world = await nodes(exchange="aggregated")
    given = batches(config)
    expected = await warm(world, given)
    posts, hands_in = world.attention["attention-0"], world.attention["attention-1"]
    posts.links[LOST].abort("killed")
    with structlog.testing.capture_logs() as logs:
        same(await answered(world, given), expected)
    (refused,) = [entry for entry in logs if entry["event"] == "hand_in_refused"]
    assert refused["problem"] == f"attention-0 does not use {LOST}"
    assert (posts.times.resent_refused, hands_in.times.resent_refused) == (0, 1)
    assert hands_in.suspects() == ()


async def test_a_slow_instance_gets_less(nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    expected = await warm(world, given)
    usual = exchange.activated()
    assert exchange._load0 is None
    for _ in range(80):
        timings = [(name, 0.02 if name == LOST else 0.005) for name in SLOTS]
        exchange._slowness.answered("direct", 16, timings)
    exchange._weigh()
    same(await world.run(0, given), expected)
    assert exchange.activated()[LOST][0] < usual[LOST][0]
    assert exchange.suspects() == ()


async def test_what_is_in_flight_names_its_epoch(nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="aggregated")
    given = batches(config)
    await warm(world, given)
    posts, hands_in = world.attention["attention-0"], world.attention["attention-1"]
    hung = Hung(world.experts[LOST])
    waiting = asyncio.create_task(answered(world, given), name="steps")
    await hung.arrived.wait()
    # Its own, and what was handed in.
    assert (posts.in_flight(), hands_in.in_flight()) == (2, 1)
    newer = spread(SLOTS, EXPERT_NODES, epoch=2)
    for engine in world.experts.values():
        await engine.load(newer)
    for exchange in world.attention.values():
        exchange.set_placement(Placement.from_table(newer))
        assert exchange.oldest_epoch() == 1
    hung.go_on()
    await waiting
    for exchange in world.attention.values():
        assert exchange.oldest_epoch() == 2
        assert exchange.in_flight() == 0


async def test_closing_ends_what_would_be_sent_again(nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    await warm(world, given)
    hung = Hung(world.experts[LOST])
    receipt = exchange.dispatch(0, *given[FIRST])
    await hung.arrived.wait()
    await exchange.close()
    with pytest.raises(InstanceLost, match="closing"):
        await exchange.combine(receipt)
    hung.go_on()


async def test_a_cancelled_step_is_not_sent_again(nodes: StartNodes, config: ModelConfig) -> None:
    world = await nodes(exchange="direct", attention={FIRST: "a"})
    given, exchange = {FIRST: batches(config)[FIRST]}, world.attention[FIRST]
    await warm(world, given)
    hung = Hung(world.experts[LOST])
    step = asyncio.create_task(world.run(0, given), name="step")
    await hung.arrived.wait()
    dispatched = exchange.times.dispatches
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    kill(world, LOST)
    assert exchange.times.dispatches == dispatched
    assert not exchange._pending
    hung.go_on()


def test_exchanges_make_their_own_records() -> None:
    made = [
        RemoteExchange(own=name, links={}, scheduler=None, dtype=torch.float32, dispatch_timeout_s=4.0)  # type: ignore[arg-type]
        for name in ATTENTION
    ]
    assert made[0]._slowness is not made[1]._slowness
    assert made[0]._slowness.hedge_after_s("direct", 1) == 2.0
