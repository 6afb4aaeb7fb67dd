"""The choice between the ways where it is made: the first attention instance tries them, the others do as it does."""

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


async def test_the_first_instance_tries_the_ways_and_the_others_follow_on_every_node(
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
        assert [nodes.attention[name].choice.leads for name in ATTENTION] == [True, False, False, False]
        leader = nodes.attention["attention-0"]
        nbytes = given["attention-0"][0].nbytes
        for _ in range(100):
            if leader.choice.settled(nbytes):
                break
            await steps(10)
        assert leader.choice.settled(nbytes)
    for name, exchange in nodes.attention.items():
        times = exchange.times
        ways = {way: asdict(times)[way.replace("-", "_")] for way in MODES}
        assert all(ways.values()), (name, ways)
        # Every step's last layer is followed by none.
        followed = times.direct_followed + times.aggregated_followed + times.two_phase_followed
        assert followed == times.dispatches * (LAYERS - 1) // LAYERS
        assert times.two_phase_cadence_ns > 0
        assert (times.trials > 0) == exchange.choice.leads
    # Everybody is a layer or two late, and hears it in another turn of the loop: hardly a dispatch differs.
    first = asdict(nodes.attention["attention-0"].times)
    for name in ("attention-1", "attention-2", "attention-3"):
        other = asdict(nodes.attention[name].times)
        differs = sum(abs(first[way] - other[way]) for way in ("direct", "aggregated", "two_phase"))
        assert differs <= 0.15 * first["dispatches"], name


async def test_links_to_who_passes_choices_on_may_be_lost(nodes: Nodes, config: ModelConfig) -> None:
    given: dict[str, tuple[torch.Tensor, ...]] = {
        name: batch(2, config.hidden_size, seed=index) for index, name in enumerate(ATTENTION)
    }
    async with asyncio.timeout(LIMIT_S):
        for _ in range(2):
            for layer in [*range(LAYERS)] * 3:
                await nodes.run(layer, given)
            assert [nodes.attention[name].choice.leads for name in ATTENTION] == [True, False, False, False]
            for exchange in nodes.attention.values():
                exchange.links["expert-0"].abort("cut")
                exchange.choice.members_changed()  # what was heard before is forgotten
            assert all(exchange.choice.leads for exchange in nodes.attention.values())
            await nodes.link_all()
