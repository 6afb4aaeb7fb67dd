"""A hundred connections later: as many descriptors, as much memory, as many tasks and objects as after ten."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path

import pytest

from janus.errors import LinkError
from janus.messages.control import Leave
from janus.transport import Link, TransportKind
from tests.transport.helpers import Echo, Recorder, dial, post, serving
from tests.waiting import eventually


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def test_nothing_grows_over_a_hundred_connections(kind: TransportKind) -> None:
    async with serving(kind, lambda _: Echo()) as server:

        async def cycle(number: int) -> None:
            client = Recorder()
            link = await dial(kind, server.listener.port, client)
            other = server.link
            post(link, bytes(50_000))
            await link.call(Leave(reason="x"), timeout_s=5)
            if number % 3 == 0:
                link.abort("rudely")
            else:
                await link.close("politely")
            await other.wait_gone()
            assert len(client.closed) == len(server.handlers.pop().closed) == 1  # type: ignore[attr-defined]

        async def settled(first: int, last: int) -> tuple[int, int, int]:
            for number in range(first, last):
                await cycle(number)
            gc.collect()
            # type(), as isinstance() wakes lazy objects of libraries that other tests have imported
            links = sum(type(thing) is Link for thing in gc.get_objects())
            return descriptors(), len(asyncio.all_tasks()), links

        before = await settled(0, 10)
        memory = resident_mb()
        after = await settled(10, 110)
        assert resident_mb() - memory < 8
        assert after[0] <= before[0] + 3, "descriptors"
        assert after[1:] == before[1:]


@pytest.mark.parametrize("kind", ["ucx", "tcp"])
@pytest.mark.parametrize("stranger", [False, True], ids=["nobody", "stranger"])
async def test_failed_connects_leave_nothing_to_the_collector(kind: TransportKind, stranger: bool) -> None:
    """It runs seldom in a service, and an instance whose controller is gone tries again and again."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    if not stranger:
        server.close()

    async def fail() -> int:
        with pytest.raises(LinkError):
            await dial(kind, port, Recorder())
        return descriptors()

    gc.collect()
    gc.disable()
    try:
        first = await fail()
        for _ in range(5):
            await eventually(lambda: descriptors() <= first)
            await fail()
        await eventually(lambda: descriptors() <= first)
    finally:
        gc.enable()
        server.close()
        await server.wait_closed()
