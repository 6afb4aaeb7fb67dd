"""What members of a node hand in: a wrong one is refused by name, and nobody else's rows suffer."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import torch

from janus.core.exchange_routes import MODES
from janus.errors import DispatchError, InstanceLost, ReplicaMissing
from janus.exchange.layout import UngatedLayout, dispatch_layout, dtype_code
from janus.exchange.local import LocalExchange
from janus.exchange.remote import RemoteExchange
from janus.model.config import ModelConfig
from janus.transport import InFrame, Kind, Link
from janus.transport.frame import Flags
from tests.runtime.nodes import MakeEngine, Nodes, spread, start_nodes
from tests.runtime.test_two_phase import EXPERT_NODES, SLOTS
from tests.runtime.world import LIMIT_S, TOP_K, batch
from tests.waiting import eventually

ATTENTION = {"attention-0": "a", "attention-1": "a"}
#: Of these two, the one who posts for both in layer 0, and the one who lies to it.
POSTS, LIES = "attention-0", "attention-1"
ROWS = 3


@pytest.fixture
async def world(engine: MakeEngine) -> AsyncIterator[Nodes]:
    async with contextlib.AsyncExitStack() as stack:
        yield await start_nodes(stack, engine, attention=ATTENTION, table=spread(SLOTS, EXPERT_NODES))


class Asked:
    """Waits for the answer to one frame, as a receipt's part does."""

    def __init__(self, via: str) -> None:
        self.via = via
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answered(self, frame: InFrame) -> None:
        frame.release()
        self.answer.set_result(None)

    def failed(self, error: DispatchError) -> None:
        self.answer.set_exception(error)


def lie(world: Nodes, config: ModelConfig, *, fill: int = 0, batches: int | None = None, **changes: Any) -> Asked:
    """Hand in rows that all go to replica ``fill``, with header fields changed."""
    exchange = world.attention[LIES]
    link = exchange.siblings[POSTS]
    hidden = config.hidden_size
    header: dict[str, Any] = {
        "epoch": world.table.epoch,
        "layer": 0,
        "dtype": dtype_code(torch.float32),
        "top_k": TOP_K,
        "rows": ROWS,
        "cols": hidden,
        "deadline_ms": 5000,
        "flags": Flags.HAND_IN,
        "target": MODES.index("two-phase"),
    } | changes
    if batches is None:
        layout = dispatch_layout(ROWS, hidden, TOP_K, torch.float32)
        frame = link.allocate(layout.nbytes)
        _, slots, weights = layout.views(frame.payload)
        slots[:] = -1
        slots[:, 0] = fill
        weights[:] = 1.0
    else:
        ungated = UngatedLayout(ROWS, hidden, 1, torch.float32)
        frame = link.allocate(ungated.nbytes)
        ungated.views(frame.payload)[1][:] = batches
    asked = Asked(POSTS)
    link.post(frame, kind=Kind.DISPATCH, request_id=exchange._await_answer(asked), **header)
    return asked


async def handed_in(exchange: RemoteExchange) -> None:
    """Return when rows of another member are there, and wait for those of the one who posts."""
    await eventually(lambda: exchange._bundles is not None and bool(exchange._bundles._open), every_s=0)


REPLICAS = len(SLOTS) * 3
EGATE = Flags.HAND_IN | Flags.EGATE
CASES = [
    pytest.param({"fill": REPLICAS}, InstanceLost, "replica outside", id="replica-too-large"),
    pytest.param({"fill": -2}, InstanceLost, "replica outside", id="replica-negative"),
    pytest.param({"fill": -1}, InstanceLost, "names no replica", id="no-replica"),
    pytest.param({"target": 0}, InstanceLost, "way 0", id="way-direct"),
    pytest.param({"target": 9}, InstanceLost, "way 9", id="way-unknown"),
    pytest.param({"epoch": 99}, ReplicaMissing, "knows no epoch 99", id="epoch"),
    pytest.param({"dtype": dtype_code(torch.bfloat16)}, InstanceLost, "bfloat16", id="dtype"),
    pytest.param({"rows": ROWS + 1}, InstanceLost, "its header describes", id="rows"),
    pytest.param({"rows": 0}, InstanceLost, "0 rows", id="no-rows"),
    pytest.param({"rows": 2**32 - 1}, InstanceLost, "its header describes", id="rows-beyond"),
    pytest.param({"cols": 16}, InstanceLost, "its header describes", id="columns"),
    pytest.param({"top_k": 5}, InstanceLost, "its header describes", id="choices"),
    pytest.param({"layer": 77}, InstanceLost, "layer 77", id="layer"),
    pytest.param({"flags": Flags.HAND_IN | Flags.NODE}, InstanceLost, "for experts", id="for-a-node"),
    pytest.param({"flags": Flags.HAND_IN | Flags.FORWARDED}, InstanceLost, "for experts", id="forwarded"),
    pytest.param({"flags": EGATE, "top_k": 1, "batches": ROWS + 1}, InstanceLost, "in batches of", id="batches"),
    pytest.param({"flags": EGATE, "top_k": 1, "batches": -1}, InstanceLost, "in batches of", id="batches-negative"),
    # The member is right in itself, and the experts have no gates: they say so, and the one who posts passes it on.
    pytest.param({"flags": EGATE, "top_k": 1, "batches": ROWS}, InstanceLost, "has no gates", id="no-gates"),
]


@pytest.mark.parametrize(("changes", "kind", "words"), CASES)
async def test_a_lie_is_refused_by_name_and_nothing_else_is_lost(
    changes: dict[str, Any],
    kind: type[DispatchError],
    words: str,
    *,
    world: Nodes,
    config: ModelConfig,
    local: LocalExchange,
) -> None:
    given = {name: batch(4, config.hidden_size, seed=number) for number, name in enumerate(ATTENTION)}
    async with asyncio.timeout(LIMIT_S):
        await world.run(0, given)  # the two expect one another from here on
        honest = world.attention[POSTS].dispatch(0, *given[POSTS])
        asked = lie(world, config, **changes)
        with pytest.raises(kind, match=words) as refused:
            await asked.answer
        assert refused.value.instances
        assert POSTS in str(refused.value)
        result = (await world.attention[POSTS].combine(honest)).clone()
        again = await world.run(0, given)
    expected = {name: await local.combine(local.dispatch(0, *rows)) for name, rows in given.items()}
    torch.testing.assert_close(result, expected[POSTS], atol=1e-5, rtol=1e-5)
    for name in ATTENTION:
        torch.testing.assert_close(again[name], expected[name], atol=1e-5, rtol=1e-5)
    assert all(exchange._pending == {} for exchange in world.attention.values())
    links = [link for exchange in world.attention.values() for link in exchange.siblings.values()]
    assert [link.stats().held for link in links] == [0] * len(links)


async def test_a_member_with_wider_rows_or_no_patience_is_alone_with_them(
    world: Nodes, config: ModelConfig, local: LocalExchange
) -> None:
    """Right in itself, of another model; and a deadline that is over before anybody could answer."""
    given = {name: batch(4, config.hidden_size, seed=number) for number, name in enumerate(ATTENTION)}
    exchange = world.attention[POSTS]
    expected = await local.combine(local.dispatch(0, *given[POSTS]))
    async with asyncio.timeout(LIMIT_S):
        await world.run(0, given)
        hasty = lie(world, config, deadline_ms=0)
        await handed_in(exchange)  # it opens the bundle
        honest = exchange.dispatch(0, *given[POSTS])
        torch.testing.assert_close(await exchange.combine(honest), expected, atol=1e-5, rtol=1e-5)
        await hasty.answer
        narrow = dispatch_layout(ROWS, config.hidden_size // 2, TOP_K, torch.float32)
        link = world.attention[LIES].siblings[POSTS]
        frame = link.allocate(narrow.nbytes)
        narrow.views(frame.payload)[1][:] = np.arange(TOP_K, dtype=np.int32)
        asked = Asked(POSTS)
        honest = exchange.dispatch(0, *given[POSTS])
        link.post(
            frame,
            kind=Kind.DISPATCH,
            request_id=world.attention[LIES]._await_answer(asked),
            epoch=world.table.epoch,
            dtype=dtype_code(torch.float32),
            top_k=TOP_K,
            rows=ROWS,
            cols=narrow.hidden,
            deadline_ms=5000,
            flags=Flags.HAND_IN,
            target=MODES.index("two-phase"),
        )
        torch.testing.assert_close(await exchange.combine(honest), expected, atol=1e-5, rtol=1e-5)
        with pytest.raises(InstanceLost, match=f"{narrow.hidden} columns"):
            await asked.answer


async def test_only_members_may_hand_in(world: Nodes, config: ModelConfig) -> None:
    exchange, engine = world.attention[POSTS], world.experts["expert-0"]
    back: list[Link] = []
    take = engine.on_frame

    def noted(link: Link, frame: InFrame) -> None:
        back.append(link)
        take(link, frame)

    engine.on_frame = noted  # type: ignore[method-assign]
    given = {POSTS: batch(8, config.hidden_size)}
    async with asyncio.timeout(LIMIT_S):
        await world.run(0, given)
        link = next(link for link in back if link.peer.instance == POSTS)
        before = exchange.times.bundles
        link.post(link.allocate(64), kind=Kind.DISPATCH, flags=Flags.HAND_IN, rows=1, cols=1, top_k=1, target=1)
        await world.run(0, given)  # its answer comes on the same link, after the intruder
    assert exchange.times.bundles == before + 1
    assert exchange.links["expert-0"].stats().held == 0
    assert not exchange.links["expert-0"].closed


async def test_an_expert_that_never_answers_is_named_to_every_member(engine: MakeEngine, config: ModelConfig) -> None:
    """One who hands in would only know the member that posts, which is not to blame."""
    async with contextlib.AsyncExitStack() as stack:
        world = await start_nodes(
            stack,
            engine,
            attention=ATTENTION,
            # No spare replica: nobody else could answer.
            table=spread({name: [number, number + 4] for number, name in enumerate(SLOTS)}, EXPERT_NODES),
            exchange="aggregated",
            dispatch_timeout_s=0.5,
        )
        given = {name: batch(8, config.hidden_size, seed=number) for number, name in enumerate(ATTENTION)}
        async with asyncio.timeout(LIMIT_S):
            await world.run(0, given)
            silent: list[InFrame] = []
            world.experts["expert-2"].on_frame = lambda link, frame: silent.append(frame)  # type: ignore[method-assign]
            receipts = {name: world.attention[name].dispatch(0, *rows) for name, rows in given.items()}
            waiting = [world.attention[name].combine(receipt) for name, receipt in receipts.items()]
            for lost in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(lost, InstanceLost)
                assert "expert-2: no answer for MoE layer 0" in str(lost)
                assert lost.instances == ("expert-2",)


async def test_a_link_that_is_lost_takes_only_its_own_rows_along(
    world: Nodes, config: ModelConfig, local: LocalExchange
) -> None:
    """Each member dials the other: what came over one of the two links is answered while that one is up."""
    given = {name: batch(4, config.hidden_size, seed=number) for number, name in enumerate(ATTENTION)}
    posts, hands_in = world.attention[POSTS], world.attention[LIES]
    async with asyncio.timeout(LIMIT_S):
        await world.run(0, given)
        receipt = hands_in.dispatch(0, *given[LIES])
        await handed_in(posts)
        posts.siblings[LIES].abort("killed")
        started = time.monotonic()
        result = await hands_in.combine(receipt)
        assert time.monotonic() - started < 1, "the deadline is five times as long"
    torch.testing.assert_close(result, await local.combine(local.dispatch(0, *given[LIES])), atol=1e-5, rtol=1e-5)


async def test_a_member_that_cannot_post_yet_costs_a_layer_now_and_then(
    world: Nodes, config: ModelConfig, local: LocalExchange
) -> None:
    """One that has just come is linked within the node before it knows any placement."""
    rows = batch(4, config.hidden_size)
    expected = await local.combine(local.dispatch(0, *rows))
    posts, hands_in = world.attention[POSTS], world.attention[LIES]
    placement = posts.placement
    posts._placements.clear()
    async with asyncio.timeout(LIMIT_S):
        for _ in range(60):
            result = await hands_in.combine(hands_in.dispatch(0, *rows))
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
        assert 1 <= hands_in.times.resent_replica_missing <= 4
        assert hands_in.suspects() == ()
        posts.set_placement(None)
        posts.set_placement(placement)
        before = posts.times.bundles
        for _ in range(40):
            await hands_in.combine(hands_in.dispatch(0, *rows))
    assert posts.times.bundles - before > 20, "it is passed over for good"
