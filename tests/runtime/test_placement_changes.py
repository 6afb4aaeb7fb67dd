"""A placement that is loaded while dispatches wait: they are never computed with the experts that it brings."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from janus.config.options import ExchangeName
from janus.errors import ReplicaMissing
from janus.model.config import ModelConfig
from janus.runtime.expert_engine import ExpertEngine
from tests.runtime.nodes import MakeEngine, spread, start_nodes
from tests.runtime.world import LIMIT_S, batch

SLOTS = {"expert-0": [0, 1, 2, 3], "expert-1": [4, 5, 6, 7]}
SWAPPED = {"expert-0": [4, 5, 6, 7], "expert-1": [0, 1, 2, 3]}
WIDE = {"expert-0": [4, 5, 6, 7, 0], "expert-1": [0, 1, 2, 3, 4]}
NODES = dict.fromkeys(SLOTS, "x")
#: The same number of slots with other experts in them, and other numbers of slots.
CHANGES = {"swapped": (SLOTS, SWAPPED), "wider": (SLOTS, WIDE), "narrower": (WIDE, SLOTS)}


def pause(engine: ExpertEngine) -> asyncio.Event:
    """Let dispatches wait, as behind others; returns what tells that one does."""
    waits = asyncio.Event()
    engine._schedule = waits.set  # type: ignore[method-assign]
    return waits


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("way", ["direct", "two-phase"])
async def test_what_waits_is_rejected_when_its_slots_get_other_experts(
    way: ExchangeName, change: str, engine: MakeEngine, config: ModelConfig
) -> None:
    older, newer = CHANGES[change]
    async with asyncio.timeout(LIMIT_S), contextlib.AsyncExitStack() as stack:
        world = await start_nodes(
            stack, engine, attention={"attention-0": "a"}, table=spread(older, NODES), exchange=way
        )
        exchange, expert = world.attention["attention-0"], world.experts["expert-0"]
        resume, waits = expert._schedule, pause(expert)
        receipt = exchange.dispatch(0, *batch(16, config.hidden_size))
        await waits.wait()
        loaded = await expert.load(spread(newer, NODES, epoch=2))
        assert not loaded.error
        expert._schedule = resume  # type: ignore[method-assign]
        resume()
        with pytest.raises(ReplicaMissing) as missing:
            await exchange.combine(receipt)
        assert missing.value.instances == ("expert-0",)


async def test_what_waits_is_computed_when_its_slots_keep_their_experts(
    engine: MakeEngine, config: ModelConfig
) -> None:
    async with asyncio.timeout(LIMIT_S), contextlib.AsyncExitStack() as stack:
        world = await start_nodes(stack, engine, attention={"attention-0": "a"}, table=spread(SLOTS, NODES))
        given = {"attention-0": batch(16, config.hidden_size)}
        expected = (await world.run(0, given))["attention-0"]
        exchange, expert = world.attention["attention-0"], world.experts["expert-0"]
        resume, waits = expert._schedule, pause(expert)
        receipt = exchange.dispatch(0, *given["attention-0"])
        await waits.wait()
        await expert.load(spread({**SLOTS, "expert-1": [7, 6, 5, 4]}, NODES, epoch=2))
        expert._schedule = resume  # type: ignore[method-assign]
        resume()
        assert (await exchange.combine(receipt)).equal(expected)
