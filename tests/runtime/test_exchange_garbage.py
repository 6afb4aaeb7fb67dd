"""What a layer leaves behind: nothing that only the garbage collector would find.

A few small objects per layer in cycles kept the C allocator from reusing what layers gave back: each result then lay in
memory that was never touched before, page by page.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import torch

from janus.config.options import ExchangeName
from janus.exchange.bundle import Batch, Bundle, Post
from janus.exchange.receipts import Part, Receipt
from janus.model.config import ModelConfig
from janus.runtime.relay import RelayJob
from tests.runtime.nodes import MakeEngine, Nodes, StartNodes, spread, start_nodes
from tests.runtime.world import LAYERS, LIMIT_S, batch

ATTENTION = {"attention-0": "a", "attention-1": "a", "attention-2": "b", "attention-3": "b"}
SLOTS = {"expert-0": [0, 4], "expert-1": [1, 5], "expert-2": [2, 6], "expert-3": [3, 7]}
EXPERT_NODES = {"expert-0": "x", "expert-1": "x", "expert-2": "y", "expert-3": "y"}
OF_A_LAYER = (Bundle, Post, Batch, Receipt, Part, RelayJob)


@pytest.fixture
async def nodes(engine: MakeEngine) -> AsyncIterator[StartNodes]:
    async with contextlib.AsyncExitStack() as stack:

        async def start(**options: object) -> Nodes:
            given = {"attention": ATTENTION, "table": spread(SLOTS, EXPERT_NODES), **options}
            return await start_nodes(stack, engine, **given)  # type: ignore[arg-type]

        yield start


@pytest.mark.parametrize("way", ["direct", "aggregated", "two-phase"])
@pytest.mark.parametrize("experts_gate", [False, True])
async def test_layers_leave_nothing_to_the_garbage_collector(
    way: ExchangeName, experts_gate: bool, nodes: StartNodes, config: ModelConfig
) -> None:
    world = await nodes(exchange=way, experts_gate=experts_gate)
    given: dict[str, tuple[torch.Tensor, ...]] = {
        name: batch(2, config.hidden_size, seed=index) for index, name in enumerate(ATTENTION)
    }
    gc.collect()
    gc.disable()
    try:
        async with asyncio.timeout(LIMIT_S):
            for layer in range(10 * LAYERS):
                await world.run(layer % LAYERS, given)
        left = Counter(type(each).__name__ for each in gc.get_objects() if type(each) in OF_A_LAYER)
    finally:
        gc.enable()
    # The last of each may still be named by a local of a coroutine or of the loop.
    assert all(count <= 4 for count in left.values()), left
