"""Two event loops in two threads of one process, each with its own engine, as in a server with a step loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from janus.errors import ConfigError
from janus.messages.control import Leave
from janus.transport import InFrame, Link, LinkOptions, TransportKind
from tests.transport.helpers import DEADLINE_S, Echo, Recorder, dial, linked, post_when_possible, serving
from tests.waiting import eventually, turns


async def converse(kind: TransportKind, port: int, mark: int, meet: threading.Barrier) -> int:
    """Echo frames and calls; return how many payloads came back as sent."""
    client = Recorder()
    link = await dial(kind, port, client, options=LinkOptions(credits=16))
    await asyncio.to_thread(meet.wait, DEADLINE_S)
    sent = [bytes([mark, number % 256]) * (number * 97 % 50_000) for number in range(300)]
    for number, payload in enumerate(sent):
        await post_when_possible(link, payload)
        if number % 50 == 0:
            await link.call(Leave(reason=str(number)), timeout_s=5)
    await client.until(lambda: len(client.payloads) == len(sent))
    await link.close("done")
    return sum(ours == theirs for ours, theirs in zip(sent, client.payloads, strict=True))


def serve_in_thread(kind: TransportKind, port: asyncio.Future[int], stop: threading.Event) -> None:
    async def serve() -> None:
        async with serving(kind, lambda _: Echo(), options=LinkOptions(credits=16)) as server:
            port.get_loop().call_soon_threadsafe(port.set_result, server.listener.port)
            await asyncio.to_thread(stop.wait)

    asyncio.run(serve())


async def test_two_loops_two_engines(kind: TransportKind) -> None:
    """A server on one loop; a client on a second and one on a third, all at once."""
    stop, meet = threading.Event(), threading.Barrier(2)
    loop = asyncio.get_running_loop()
    port: asyncio.Future[int] = loop.create_future()
    with ThreadPoolExecutor(2) as threads:
        server = loop.run_in_executor(threads, serve_in_thread, kind, port, stop)
        try:
            number = await asyncio.wait_for(port, DEADLINE_S)
            other = loop.run_in_executor(threads, lambda: asyncio.run(converse(kind, number, 1, meet)))
            here = await converse(kind, number, 2, meet)
            assert (here, await other) == (300, 300)
        finally:
            stop.set()
            await server


async def test_frames_may_be_released_from_another_thread(kind: TransportKind) -> None:
    class HandsOver(Recorder):
        def on_frame(self, link: Link, frame: InFrame) -> None:
            loop.run_in_executor(thread, frame.release)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as thread:
        async with linked(kind, Recorder(), HandsOver(), options=LinkOptions(credits=3)) as (link, other):
            for _ in range(100):
                await post_when_possible(link, b"x" * 3000)
            await asyncio.wait_for(link.send_message(Leave(reason="last"), timeout_s=5), 5)
            await eventually(lambda: other.stats().held == 0)


async def test_posting_from_another_thread_is_refused() -> None:
    async with linked("inproc", Recorder(), Recorder()) as (link, _):
        with pytest.raises(RuntimeError, match="belongs to another thread"):
            await asyncio.to_thread(link.post_message, Leave(reason="x"))


@pytest.mark.parametrize("loops", [3])
def test_engines_end_with_their_loops(loops: int) -> None:
    from janus.transport.ucx import Engine

    async def once() -> None:
        async with linked("ucx", Recorder(), Recorder()) as (link, _):
            await link.close("done")
        await turns()

    for _ in range(loops):
        asyncio.run(once())
    assert Engine.alive() == 0


async def test_an_engine_that_fails_ends_its_links_once_and_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from janus.transport.ucx import Engine

    client, server = Recorder(), Recorder()
    async with linked("ucx", client, server) as (link, other):
        engine = Engine.acquire()
        with monkeypatch.context() as broken:
            broken.setattr(engine, "_take_messages", lambda: 1 // 0)
            engine.pump()
        for end, recorder in ((link, client), (other, server)):
            assert "UCX failed in this process" in str(end.error)
            assert len(recorder.closed) == 1
        assert Engine.alive() == 0
        async with linked("ucx", Recorder(), Echo()) as (again, _):
            assert await again.call(Leave(reason="new engine"), timeout_s=5) == Leave(reason="new engine")


@pytest.mark.parametrize("value", ["fast", "-1", "1000000000"])
async def test_a_wrong_spin_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JANUS_UCX_SPIN_US", value)
    with pytest.raises(ConfigError, match="JANUS_UCX_SPIN_US"):
        await dial("ucx", 1, Recorder())


async def test_spinning_delivers_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JANUS_UCX_SPIN_US", "200")
    async with linked("ucx", Recorder(), Echo()) as (link, _):
        for number in range(50):
            assert await link.call(Leave(reason=str(number)), timeout_s=5) == Leave(reason=str(number))
