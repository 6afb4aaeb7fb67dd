"""What a link promises, over every transport: order, exactly once, credits, deadlines, a clean end."""

from __future__ import annotations

import asyncio
import random
import zlib

import pytest

from janus.errors import DeadlineExceeded, LinkBroken, LinkBusy, LinkClosed
from janus.messages.control import Leave
from janus.transport import InFrame, Kind, Link, LinkOptions, TransportKind
from tests.transport.helpers import Echo, Recorder, dial, linked, post, post_when_possible, serving
from tests.waiting import eventually

SIZES = [
    0,
    1,
    63,
    64,
    65,
    1023,
    4096,
    32_768,
    65_536,
    65_537,
    300_000,
    (1 << 20) - 64,
    1 << 20,
    3 << 19,
    2 << 20,
    8 << 20,
]


async def test_every_size_arrives_whole_in_order_and_aligned(kind: TransportKind) -> None:
    sent = [random.Random(size).randbytes(size) for size in SIZES]
    server = Recorder()
    async with linked(kind, Recorder(), server) as (link, _):
        for number, payload in enumerate(sent):
            post(link, payload, request_id=number)
        await server.until(lambda: len(server.frames) == len(sent))
    assert server.payloads == sent
    assert [frame.header.request_id for frame in server.frames] == list(range(len(sent)))
    assert all(frame.payload.ctypes.data % 64 == 0 and frame.payload.flags.writeable for frame in server.frames)


async def test_header_fields_and_a_short_payload_arrive_as_posted(kind: TransportKind) -> None:
    server = Recorder()
    async with linked(kind, Recorder(), server) as (link, _):
        frame = link.allocate(1000)
        frame.payload[:] = 7
        fields = {
            "epoch": 3,
            "layer": 4,
            "dtype": 2,
            "top_k": 5,
            "rows": 6,
            "cols": 7,
            "deadline_ms": 8,
            "elapsed_us": 9,
        }
        link.post(frame, kind=Kind.COMBINE, request_id=1 << 40, payload_len=10, **fields)
        with pytest.raises(ValueError, match="posted already"):
            link.post(frame, kind=Kind.COMBINE)
        await server.until(lambda: bool(server.frames))
    header = server.frames[0].header
    assert (header.kind, header.request_id, header.payload_len) == (Kind.COMBINE, 1 << 40, 10)
    assert {name: getattr(header, name) for name in fields} == fields
    assert server.payloads == [b"\x07" * 10]


async def test_a_thousand_random_frames_each_way_at_once(kind: TransportKind) -> None:
    client, server = Recorder(), Recorder()
    rng = random.Random(kind)
    pool = rng.randbytes(1 << 20)

    async def flood(link: Link, seed: int) -> list[bytes]:
        rng = random.Random(seed)
        sent = []
        for number in range(1000):
            size = rng.choice((0, 80, 5_000, 33_000, 70_000, 280_000)) if rng.random() < 0.9 else rng.randrange(600_000)
            start = rng.randrange(len(pool) - size)
            payload = pool[start : start + size]
            await post_when_possible(link, payload, request_id=number)
            sent.append(payload)
        return sent

    async with linked(kind, client, server, options=LinkOptions(credits=32)) as (link, other):
        forth, back = await asyncio.gather(flood(link, 1), flood(other, 2))
        await server.until(lambda: len(server.frames) == 1000)
        await client.until(lambda: len(client.frames) == 1000)
        assert link.stats().held == other.stats().held == 0
    for recorder, sent in ((server, forth), (client, back)):
        assert [frame.header.request_id for frame in recorder.frames] == list(range(1000))
        assert [zlib.crc32(payload) for payload in recorder.payloads] == [f.header.epoch for f in recorder.frames]
        assert recorder.payloads == sent


async def test_messages_and_frames_keep_their_order(kind: TransportKind) -> None:
    class Mixed(Recorder):
        order: list[int]

        def on_message(self, link: Link, request_id: int, message: object) -> None:
            self.order.append(request_id)
            super().on_message(link, request_id, message)  # type: ignore[arg-type]

        def on_frame(self, link: Link, frame: InFrame) -> None:
            self.order.append(frame.header.request_id)
            super().on_frame(link, frame)

    server = Mixed()
    server.order = []
    async with linked(kind, Recorder(), server) as (link, _):
        for number in range(1, 31):
            if number % 3:
                post(link, bytes(300_000 if number % 2 else 10), request_id=number)
            else:
                link.post_message(Leave(reason=str(number)), request_id=number)
        await server.until(lambda: len(server.order) == 30)
    assert server.order == list(range(1, 31))


async def test_a_peer_that_does_not_consume_stops_the_sender_and_recovery_is_complete(kind: TransportKind) -> None:
    server = Recorder(release=False)
    async with linked(kind, Recorder(), server, options=LinkOptions(credits=4)) as (link, other):
        for number in range(4):
            post(link, b"x", request_id=number)
        with pytest.raises(LinkBusy, match="expert-0"):
            post(link, b"one too many")
        with pytest.raises(LinkBusy):
            link.post_message(Leave(reason="one too many"))
        with pytest.raises(DeadlineExceeded, match="credit"):
            await link.send_message(Leave(reason="never sent"), timeout_s=0.05)
        await server.until(lambda: len(server.frames) == 4)
        assert other.stats().held == 4

        waiting = asyncio.ensure_future(link.send_message(Leave(reason="sent"), timeout_s=5))
        while server.frames:
            server.frames.pop().release()
        await waiting
        await server.until(lambda: len(server.messages) == 1)
        assert server.messages[0][1] == Leave(reason="sent")


async def test_a_dropped_frame_returns_its_credit_and_its_payload_stays_valid(kind: TransportKind) -> None:
    server = Recorder(release=False)
    async with linked(kind, Recorder(), server, options=LinkOptions(credits=2)) as (link, _):
        post(link, b"a" * 5000)
        await server.until(lambda: len(server.frames) == 1)
        view = server.frames.pop().payload
        for number in range(20):
            await post_when_possible(link, b"b" * 5000)
            await server.until(lambda n=number: len(server.payloads) == n + 2)
            server.frames.pop().release()
        assert view.tobytes() == b"a" * 5000


async def test_calls_are_answered_by_id_and_late_answers_are_dropped(kind: TransportKind) -> None:
    client, server = Recorder(), Recorder()
    async with linked(kind, client, server) as (link, other):
        calls = [asyncio.ensure_future(link.call(Leave(reason=str(n)), timeout_s=5)) for n in range(10)]
        await server.until(lambda: len(server.messages) == 10)
        for request_id, message in reversed(server.messages):
            other.reply(request_id, message)
        assert [answer.reason for answer in await asyncio.gather(*calls)] == [str(n) for n in range(10)]  # type: ignore[union-attr]

        with pytest.raises(DeadlineExceeded, match="no answer to Leave"):
            await link.call(Leave(reason="late"), timeout_s=0.05)
        await server.until(lambda: len(server.messages) == 11)
        other.reply(server.messages[-1][0], Leave(reason="too late"))
        other.post_message(Leave(reason="after"), request_id=5)
        await client.until(lambda: bool(client.messages))
        assert client.messages == [(5, Leave(reason="after"))]


async def test_calls_cross_without_confusion(kind: TransportKind) -> None:
    client, server = Echo(), Echo()
    async with linked(kind, client, server) as (link, other):
        answers = await asyncio.gather(
            *(end.call(Leave(reason=f"{n}-{e}"), timeout_s=5) for n in range(20) for e, end in enumerate((link, other)))
        )
    assert [a.reason for a in answers] == [f"{n}-{e}" for n in range(20) for e in range(2)]  # type: ignore[union-attr]
    assert len(client.messages) == len(server.messages) == 20


async def test_a_cancelled_call_leaves_the_link_usable(kind: TransportKind) -> None:
    server = Recorder()
    async with linked(kind, Recorder(), server) as (link, other):
        call = asyncio.ensure_future(link.call(Leave(reason="cancelled"), timeout_s=5))
        await server.until(lambda: bool(server.messages))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        other.reply(server.messages[0][0], Leave(reason="nobody waits"))
        again = asyncio.ensure_future(link.call(Leave(reason="again"), timeout_s=5))
        await server.until(lambda: len(server.messages) == 2)
        other.reply(server.messages[1][0], Leave(reason="answer"))
        assert await again == Leave(reason="answer")


@pytest.mark.parametrize("size", [10, 100_000, 3 << 19, 4 << 20])
async def test_close_delivers_everything_that_was_posted_by_both_sides(kind: TransportKind, size: int) -> None:
    client, server = Recorder(), Recorder()
    async with linked(kind, client, server) as (link, other):
        payloads = [bytes([n]) * size for n in range(8)]
        for payload in payloads:
            post(link, payload)
            post(other, payload)
        await link.close("done", timeout_s=10)
        with pytest.raises(LinkClosed):
            post(link, b"after")
        await server.until(lambda: bool(server.closed))
        with pytest.raises(LinkBroken):
            post(other, b"after")
    assert server.payloads == client.payloads == payloads
    assert [type(error) for error in client.closed] == [LinkClosed]
    assert [type(error) for error in server.closed] == [LinkBroken]
    assert "done" in str(server.closed[0])


async def test_both_sides_may_close_at_once_and_twice(kind: TransportKind) -> None:
    client, server = Recorder(), Recorder()
    async with linked(kind, client, server) as (link, other):
        post(link, b"from the client")
        post(other, b"from the server")
        await asyncio.gather(link.close("a"), other.close("b"), link.close("c"))
        await link.close("d")
    assert (client.payloads, server.payloads) == ([b"from the server"], [b"from the client"])
    assert len(client.closed) == len(server.closed) == 1


async def test_abort_ends_waits_and_is_noticed_by_the_peer(kind: TransportKind) -> None:
    client, server = Recorder(), Recorder()
    async with linked(kind, client, server) as (link, other):
        call = asyncio.ensure_future(link.call(Leave(reason="x"), timeout_s=5))
        other_call = asyncio.ensure_future(other.call(Leave(reason="y"), timeout_s=5))
        await server.until(lambda: bool(server.messages))
        link.abort("enough")
        link.abort("again")
        with pytest.raises(LinkClosed, match="enough"):
            await call
        with pytest.raises(LinkBroken, match="attention-0"):
            await other_call
        assert isinstance(await other.wait_closed(), LinkBroken)
        assert link.closed and isinstance(link.error, LinkClosed)
    assert len(client.closed) == len(server.closed) == 1


async def test_a_handler_that_fails_takes_its_link_down_and_no_other(kind: TransportKind) -> None:
    class Failing(Recorder):
        def on_message(self, link: Link, request_id: int, message: object) -> None:
            raise RuntimeError("a bug")

    handlers = [Failing(), Echo()]
    async with serving(kind, lambda _: handlers.pop(0)) as server:
        bad = await dial(kind, server.listener.port, Recorder())
        good = await dial(kind, server.listener.port, Recorder())
        bad.post_message(Leave(reason="x"))
        assert isinstance(await bad.wait_closed(), LinkBroken)
        assert await good.call(Leave(reason="y"), timeout_s=5) == Leave(reason="y")
        await good.close("done")


async def test_stats_count(kind: TransportKind) -> None:
    server = Recorder(release=False)
    options = LinkOptions(credits=8, heartbeat_s=0.02)
    async with linked(kind, Recorder(), server, options=options) as (link, other):
        post(link, bytes(100))
        await eventually(lambda: link.stats().rtt_ms is not None and bool(server.frames))
        stats = link.stats()
        assert (stats.credits, stats.in_flight) == (7, 1)
        assert stats.bytes_out >= 164 and stats.frames_out >= 2 and stats.frames_in >= 1
        assert stats.rtt_ms is not None and 0 <= stats.rtt_ms < 1000
        assert other.stats().held == 1


async def test_a_listener_that_closes_frees_its_port_and_says_why(kind: TransportKind) -> None:
    client = Recorder()
    async with serving(kind) as server:
        port = server.listener.port
        link = await dial(kind, port, client)
        await server.listener.close("maintenance")
        assert "maintenance" in str(await link.wait_closed())
        with pytest.raises(LinkBroken):
            await dial(kind, port, Recorder())
