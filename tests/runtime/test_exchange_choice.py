"""The choice between the ways where it is made: the first member of each node tries them, the others do as it does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import asdict

import pytest
import torch

from janus.core.exchange_routes import MODES
from janus.model.config import ModelConfig
from tests.runtime.nodes import MakeEngine, Nodes, spread, start_nodes
from tests.runtime.world import LAYERS, LIMIT_S, batch

ATTENTION = {"attention-0": "a", "attention-1": "a", "attention-2": "b", "attention-3": "b"}
EXPERT_NODES = {"expert-0": "x", "expert-1": "x", "expert-2": "y", "expert-3": "y"}
SLOTS = {"expert-0": [0, 4], "expert-1": [1, 5], "expert-2": [2, 6], "expert-3": [3, 7]}


@pytest.fixture
async def nodes(engine: MakeEngine) -> AsyncIterator[Nodes]:
    async with contextlib.AsyncExitStack() as stack:
        table = spread(SLOTS, EXPERT_NODES)
        yield await start_nodes(stack, engine, attention=ATTENTION, table=table, exchange="auto")


async def test_the_first_member_of_each_node_tries_the_ways_and_the_others_follow(
    nodes: Nodes, config: ModelConfig
) -> None:
    given: dict[str, tuple[torch.Tensor, ...]] = {
        name: batch(2, config.hidden_size, seed=index) for index, name in enumerate(ATTENTION)
    }

    async def steps(count: int) -> None:
        for _ in range(count):
            for layer in range(LAYERS):
                await nodes.run(layer, given)

    async with asyncio.timeout(LIMIT_S):
        # What the first one says once is heard, and from then on.
        await steps(10)
        assert [nodes.attention[name].choice.leads for name in ATTENTION] == [True, False, True, False]
        leaders = [nodes.attention[name] for name in ("attention-0", "attention-2")]
        nbytes = given["attention-0"][0].nbytes
        for _ in range(100):
            if all(leader.choice.settled(nbytes) for leader in leaders):
                break
            await steps(10)
        assert all(leader.choice.settled(nbytes) for leader in leaders)
    for name, exchange in nodes.attention.items():
        times = exchange.times
        ways = {way: asdict(times)[way.replace("-", "_")] for way in MODES}
        assert all(ways.values()), (name, ways)
        # Every step's last layer is followed by none.
        followed = times.direct_followed + times.aggregated_followed + times.two_phase_followed
        assert followed == times.dispatches * (LAYERS - 1) // LAYERS
        assert times.two_phase_cadence_ns > 0
        assert (times.trials > 0) == exchange.choice.leads
    # Everybody is one layer late at most, and says it in another turn of the loop: hardly a dispatch differs.
    first, other = (nodes.attention[name] for name in ("attention-0", "attention-1"))
    differs = sum(
        abs(asdict(first.times)[way] - asdict(other.times)[way]) for way in ("direct", "aggregated", "two_phase")
    )
    assert differs <= 0.1 * first.times.dispatches
