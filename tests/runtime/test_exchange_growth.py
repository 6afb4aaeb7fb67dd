"""Ten thousand dispatches later everything is as it was: memory, descriptors, mappings, what is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from pathlib import Path

import pytest

from janus.core.slowness import Slowness
from janus.model.config import ModelConfig
from janus.transport import Link, TransportKind, shared_pool
from tests.runtime.nodes import MakeEngine, Nodes, spread, start_nodes
from tests.runtime.test_two_phase import EXPERT_NODES, SLOTS
from tests.runtime.world import LAYERS, batch
from tests.transport.helpers import needs_shared_memory

#: Members and nodes that dispatch; two of them hand in to one another.
ATTENTION = {"attention-0": "a", "attention-1": "a"}
LIMIT_S = 60.0


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def segments() -> int:
    """Shared memory that is mapped, of this instance and of its peers."""
    return sum("memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines())


def links_of(world: Nodes) -> list[Link]:
    """Every link that was dialled."""
    return [
        *(
            link
            for exchange in world.attention.values()
            for link in (*exchange.links.values(), *exchange.siblings.values())
        ),
        *(link for engine in world.experts.values() for link in engine.relay.siblings.values()),
    ]


def left_over(world: Nodes) -> dict[str, int]:
    """What is still waited for, open or held."""
    bundles = [e._bundles for e in world.attention.values() if e._bundles is not None]
    return {
        "answers of experts": sum(len(exchange._pending) for exchange in world.attention.values()),
        "open bundles": sum(len(each._open) for each in bundles),
        "shares of siblings": sum(len(engine.relay._pending) for engine in world.experts.values()),
        "relayed dispatches": sum(len(engine.relay._jobs) for engine in world.experts.values()),
        "waiting dispatches": sum(len(engine._queues) for engine in world.experts.values()),
        "frames held": sum(link.stats().held for link in links_of(world)),
    }


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        pytest.param("inproc", 200),
        pytest.param("shm", 10_000 // len(ATTENTION), marks=needs_shared_memory),
    ],
)
async def test_nothing_grows(kind: TransportKind, steps: int, engine: MakeEngine, config: ModelConfig) -> None:
    sizes = (1, 3, 16, 40)
    given = [
        {name: batch(rows + index, config.hidden_size, seed=rows) for index, name in enumerate(ATTENTION)}
        for rows in sizes
    ]
    async with asyncio.timeout(LIMIT_S), contextlib.AsyncExitStack() as stack:
        # Nobody is late, however busy the machine is: frames are counted.
        world = await start_nodes(
            stack,
            engine,
            attention=ATTENTION,
            table=spread(SLOTS, EXPERT_NODES),
            kind=kind,
            slowness=lambda: Slowness(timeout_s=2 * LIMIT_S, floor_s=LIMIT_S),
        )

        async def run(count: int) -> None:
            for step in range(count):
                await world.run(step % LAYERS, given[step % len(sizes)])

        def kept() -> int:
            pools = {id(pool): pool for pool in (link._wire.pool for link in links_of(world))}
            return sum(pool.kept_bytes for pool in pools.values())

        await run(steps // 10)
        gc.collect()
        memory, used = resident_mb(), (kept(), descriptors(), len(asyncio.all_tasks()))
        await run(steps)
        gc.collect()
        assert resident_mb() - memory < 8
        after = (kept(), descriptors(), len(asyncio.all_tasks()))
        assert after[0] - used[0] < 1 << 20, "bytes that pools keep"
        assert after[1:] == used[1:], "descriptors, tasks"
        assert left_over(world) == dict.fromkeys(left_over(world), 0)
        handed_in = sum(exchange.times.hand_ins for exchange in world.attention.values())
        assert handed_in == len(ATTENTION) // 2 * (steps + steps // 10), "one of two posts for both"


@needs_shared_memory
async def test_worlds_that_end_leave_no_mapping_and_no_descriptor(engine: MakeEngine, config: ModelConfig) -> None:
    given = {name: batch(5, config.hidden_size) for name in ATTENTION}

    async def live() -> None:
        async with asyncio.timeout(LIMIT_S), contextlib.AsyncExitStack() as stack:
            world = await start_nodes(stack, engine, attention=ATTENTION, table=spread(SLOTS, EXPERT_NODES), kind="shm")
            for layer in range(LAYERS):
                await world.run(layer, given)
            links = links_of(world)
            for exchange in world.attention.values():
                await exchange.close()
            for link in links:
                await link.close("the world ends")
        for link in links:
            await link.wait_gone()

    async def seen(count: int) -> tuple[int, int, int]:
        for _ in range(count):
            await live()
        gc.collect()
        return segments(), descriptors(), shared_pool().used_bytes

    before = await seen(3)
    after = await seen(12)
    assert after[0] == before[0] > 0, "mappings"
    assert after[1] <= before[1], "descriptors"
    assert after[2] - before[2] < 1 << 20, "shared memory in use"
