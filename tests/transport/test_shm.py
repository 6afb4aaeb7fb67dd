"""Shared memory between two ends: references instead of copies, and what becomes of memory when things go wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from janus.errors import ConfigError, DeadlineExceeded, LinkBroken, ProtocolViolation
from janus.messages.control import Leave
from janus.transport import InFrame, Kind, Link, LinkOptions, SharedPool
from janus.transport.buffers import BufferPool
from janus.transport.endpoint import transport
from janus.transport.lending import Loans
from janus.transport.segment import HostSegment
from janus.transport.shm_wire import _MESSAGE, ShmWire
from tests.transport.helpers import (
    DEADLINE_S,
    HOST,
    Echo,
    Recorder,
    dial,
    linked,
    needs_shared_memory,
    post,
    post_when_possible,
    serving,
)
from tests.transport.test_growth import descriptors, resident_mb
from tests.waiting import eventually

pytestmark = needs_shared_memory

LARGE = 50_000


def small_pool() -> SharedPool:
    return SharedPool(HostSegment(1 << 20))


def wire_of(link: Link) -> ShmWire:
    assert isinstance(link._wire, ShmWire)
    return link._wire


def loans_of(link: Link) -> Loans:
    loans = wire_of(link)._loans
    assert loans is not None
    return loans


async def test_a_large_frame_stays_where_it_was_written() -> None:
    server = Recorder(release=False)
    async with linked("shm", Recorder(), server) as (link, _):
        frame = link.allocate(LARGE)
        payload = frame.payload
        link.post(frame, kind=Kind.DISPATCH)
        await server.until(lambda: bool(server.frames))
        payload[:3] = (1, 2, 3)
        assert server.frames[0].payload[:3].tolist() == [1, 2, 3]
        assert wire_of(link).copied == 0
        server.frames.pop().release()


async def test_memory_is_used_again_once_the_peer_has_released_it_and_not_before() -> None:
    server, pool = Recorder(release=False), small_pool()
    async with linked("shm", Recorder(), server, pool=pool) as (link, _):
        frame = link.allocate(LARGE)
        address = frame.address
        link.post(frame, kind=Kind.DISPATCH)
        await server.until(lambda: bool(server.frames))

        def free() -> bool:
            post(link, b"a small frame, to look after what was lent")
            taken = [pool.take(LARGE) for _ in range(8)]
            found = address in [buffer.address + buffer.at for buffer in taken]
            for buffer in taken:
                buffer.release()
            return found

        assert not free()
        server.frames[0].release()
        assert free()


async def test_a_large_frame_that_is_dropped_goes_back_when_its_last_view_is_gone() -> None:
    server = Recorder(release=False)
    async with linked("shm", Recorder(), server, pool=small_pool()) as (link, _):
        post(link, b"a" * LARGE)
        await server.until(lambda: bool(server.frames))
        view = server.frames.pop().payload[100:]
        gc.collect()
        for _ in range(20):
            await post_when_possible(link, b"b" * LARGE)
            await server.until(lambda: bool(server.frames))
            server.frames.pop().release()
        assert view.tobytes() == b"a" * (LARGE - 100)
        assert len(loans_of(link)) >= 1
        del view
        gc.collect()
        loans_of(link).collect()
        assert len(loans_of(link)) == 0


async def test_large_frames_may_be_released_from_another_thread_in_any_order() -> None:
    class HandsOver(Recorder):
        def on_frame(self, link: Link, frame: InFrame) -> None:
            loop.run_in_executor(threads, frame.release)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(3) as threads:
        async with linked("shm", Recorder(), HandsOver(), options=LinkOptions(credits=8)) as (link, other):
            for _ in range(200):
                await post_when_possible(link, b"x" * LARGE)
            await asyncio.wait_for(link.send_message(Leave(reason="last"), timeout_s=5), 5)
            await eventually(lambda: other.stats().held == 0)
            loans_of(link).collect()
            assert len(loans_of(link)) == 0


async def test_order_is_kept_when_the_kernel_takes_no_more_for_a_while() -> None:
    server = Recorder()
    async with linked("shm", Recorder(), server, options=LinkOptions(credits=1000)) as (link, _):
        sizes = [7_000 if number % 5 else LARGE for number in range(700)]
        for number, size in enumerate(sizes):
            post(link, bytes([number % 256]) * size, request_id=number)
        assert len(wire_of(link)._outbox) > 100
        await server.until(lambda: len(server.frames) == len(sizes))
        assert [frame.header.request_id for frame in server.frames] == list(range(len(sizes)))
        assert server.payloads == [bytes([number % 256]) * size for number, size in enumerate(sizes)]


async def test_private_memory_is_copied_into_shared_memory() -> None:
    server = Recorder()
    async with linked("shm", Recorder(), server) as (link, _):
        wire_of(link).pool = BufferPool()
        post(link, b"p" * LARGE)
        await server.until(lambda: bool(server.frames))
        assert server.payloads == [b"p" * LARGE] and wire_of(link).copied == 1


async def test_exhausted_memory_ends_the_link_by_name_and_no_other() -> None:
    server, pool = Recorder(release=False), small_pool()
    async with (
        linked("shm", Recorder(), server, pool=pool) as (link, other),
        linked("shm", Recorder(), Echo(), pool=pool) as (beside, _),
    ):
        for _ in range(30):
            post(link, b"x" * LARGE)
        error = await link.wait_closed()
        assert isinstance(error, LinkBroken)
        assert "no shared memory left for a frame of 50064 bytes" in str(error) and "of 1048576 are in use" in str(
            error
        )
        # What went out before has arrived, and nothing after it.
        assert "the other end closed the connection" in str(await other.wait_closed())
        assert 5 < len(server.frames) < 20
        assert await beside.call(Leave(reason="x"), timeout_s=5) == Leave(reason="x")


async def test_what_a_lost_peer_computes_on_is_left_alone() -> None:
    server, pool = Recorder(release=False), small_pool()
    async with linked("shm", Recorder(), server, pool=pool) as (link, other):
        post(link, b"a" * LARGE)
        await server.until(lambda: bool(server.frames))
        link.abort("enough")
        await other.wait_gone()
        taken = [pool.take(LARGE) for _ in range(20)]
        for buffer in taken:
            buffer.array[:] = ord("b")
        assert server.frames[0].payload.tobytes() == b"a" * LARGE
        server.frames.pop().release()


# -- forwarding -------------------------------------------------------------------------------------------------------


class Relay(Recorder):
    """Holds what it receives."""

    def __init__(self) -> None:
        super().__init__(release=False)


@pytest.mark.parametrize("origin", ["tcp", "ucx"])
async def test_a_frame_from_elsewhere_is_forwarded_to_two_without_a_copy(origin: str) -> None:
    relay, left, right = Relay(), Recorder(release=False), Recorder(release=False)
    pool = small_pool()
    content = np.random.default_rng(1).bytes(200_000)
    async with (
        serving(origin, lambda _: relay, pool=pool) as entrance,  # type: ignore[arg-type]
        linked("shm", Recorder(), left, pool=pool) as (to_left, _),
        linked("shm", Recorder(), right, pool=pool) as (to_right, _),
    ):
        source = await dial(origin, entrance.listener.port, Recorder())  # type: ignore[arg-type]
        post(source, content)
        await relay.until(lambda: bool(relay.frames))
        frame = relay.frames.pop()
        address = frame.address
        fields = {"epoch": 1, "layer": 2, "dtype": 1, "top_k": 3, "rows": 4, "cols": 5, "flags": 4, "target": 6}
        before = pool.used_bytes
        to_left.forward(frame, kind=Kind.DISPATCH, request_id=9, **fields)
        to_right.forward(frame, first=6400, nbytes=100_000, kind=Kind.DISPATCH)
        await left.until(lambda: bool(left.frames))
        await right.until(lambda: bool(right.frames))
        header = left.frames[0].header
        assert (header.request_id, {name: getattr(header, name) for name in fields}) == (9, fields)
        assert left.payloads == [content] and right.payloads == [content[6400:106_400]]

        # One piece of memory, seen through three pairs of eyes.
        assert wire_of(to_left).copied == wire_of(to_right).copied == 0
        assert pool.used_bytes == before + 2 * 16384  # each wire's table of loans
        frame.payload[6400:6403] = (1, 2, 3)
        assert left.frames[0].payload[6400:6403].tolist() == right.frames[0].payload[:3].tolist() == [1, 2, 3]

        def reused() -> bool:
            loans_of(to_left).collect()
            loans_of(to_right).collect()
            taken = [pool.take(200_000) for _ in range(3)]
            found = address in [buffer.address + buffer.at for buffer in taken]
            for buffer in taken:
                buffer.release()
            return found

        for holder in (frame, left.frames.pop(), right.frames.pop()):
            assert not reused()
            holder.release()
        assert reused()
        with pytest.raises(ValueError, match="released already"):
            to_left.forward(frame, kind=Kind.DISPATCH)
        await source.close("done")


@pytest.mark.parametrize(("first", "nbytes"), [(1, 100_000), (6401, 100_000), (0, 100), (64, 0), (149_999, 1)])
async def test_what_cannot_be_referred_to_is_copied(first: int, nbytes: int) -> None:
    relay, end = Relay(), Recorder(release=False)
    pool = small_pool()
    content = np.random.default_rng(2).bytes(150_000)
    async with (
        serving("tcp", lambda _: relay, pool=pool) as entrance,
        linked("shm", Recorder(), end, pool=pool) as (link, _),
    ):
        source = await dial("tcp", entrance.listener.port, Recorder())
        post(source, content)
        await relay.until(lambda: bool(relay.frames))
        frame = relay.frames.pop()
        link.forward(frame, first=first, nbytes=nbytes, kind=Kind.COMBINE)
        frame.payload[:] = 0
        frame.release()
        await end.until(lambda: bool(end.frames))
        assert end.payloads == [content[first : first + nbytes]]
        assert end.frames[0].payload.ctypes.data % 64 == 0
        with pytest.raises(ValueError, match="released already"):
            link.forward(frame, kind=Kind.COMBINE)
        await source.close("done")


@pytest.mark.parametrize("onward", ["shm", "tcp", "inproc", "ucx"])
async def test_every_transport_forwards_what_came_over_every_other(onward: str) -> None:
    relay, end = Relay(), Recorder()
    async with (
        linked("shm", Recorder(), relay) as (source, _),
        linked(onward, Recorder(), end) as (link, _),  # type: ignore[arg-type]
    ):
        contents = [np.random.default_rng(size).bytes(size) for size in (0, 100, 9000, 300_000)]
        for content in contents:
            post(source, content)
        await relay.until(lambda: len(relay.frames) == len(contents))
        for frame in relay.frames:
            link.forward(frame, kind=Kind.DISPATCH)
            with pytest.raises(ValueError, match="not within"):
                link.forward(frame, first=len(frame.payload) + 1, kind=Kind.DISPATCH)
            frame.release()
        await end.until(lambda: len(end.frames) == len(contents))
        assert end.payloads == contents


# -- what a peer may say ----------------------------------------------------------------------------------------------


def message(magic: bytes, a: int = 0, b: int = 0, offset: int = 0, nbytes: int = 0) -> bytes:
    return _MESSAGE.pack(magic, a, b, 0, offset, nbytes)


def memfd(nbytes: int, seals: bool = True) -> int:
    if seals:
        segment = HostSegment(nbytes)
        return os.dup(segment.export())
    fd = os.memfd_create("unsealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, nbytes)
    return fd


def empty_memfd() -> int:
    import fcntl

    fd = memfd(0, seals=False)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


SEGMENT = 1 << 20
GOOD = message(b"JSEG", 1, 4096)

#: What a peer that knows the secret says, with which descriptor, and what the error says.
LIES = {
    "no descriptor": (GOOD, None, "without its descriptor"),
    "unsealed": (GOOD, lambda: memfd(SEGMENT, seals=False), "not sealed"),
    "a file": (GOOD, lambda: os.open(__file__, os.O_RDONLY), "no memory"),
    "a pipe": (GOOD, lambda: os.eventfd(0), "no memory"),
    "empty": (GOOD, empty_memfd, "is empty"),
    "other version": (message(b"JSEG", 9, 4096), lambda: memfd(SEGMENT), "version 9, this side speaks 1"),
    "table outside": (message(b"JSEG", 1, 4096, SEGMENT), lambda: memfd(SEGMENT), "not within"),
    "table over the end": (message(b"JSEG", 1, 4096, SEGMENT - 4), lambda: memfd(SEGMENT), "not within"),
    "table unaligned": (message(b"JSEG", 1, 4096, 3), lambda: memfd(SEGMENT), "not within"),
    "no slots": (message(b"JSEG", 1, 0), lambda: memfd(SEGMENT), "not within"),
    "too many slots": (message(b"JSEG", 1, 1 << 31), lambda: memfd(SEGMENT), "not within"),
    "reference to nothing": (message(b"JREF", 0, 1, 0, 64) + bytes(64), None, "memory that is not shared"),
}

#: References that it gives once its memory of 1 MiB is shared.
WILD = {
    "beyond the end": (message(b"JREF", 0, 1, SEGMENT, 64), "not within"),
    "over the end": (message(b"JREF", 0, 1, SEGMENT - 64, 128), "not within"),
    "wrapping": (message(b"JREF", 0, 1, (1 << 64) - 64, 128), "not within"),
    "huge": (message(b"JREF", 0, 1, 0, (1 << 64) - 64), "exceeds the limit"),
    "over the limit": (message(b"JREF", 0, 1, 0, 200_000), "exceeds the limit"),
    "unaligned": (message(b"JREF", 0, 1, 4, 64), "not within"),
    "nothing": (message(b"JREF", 0, 1, 0, 0), "not within"),
    "slot": (message(b"JREF", 4096, 1, 0, 64), "slot 4096 of 4096"),
    "shared twice": (GOOD, "a second time"),
    "wrong header": (message(b"JREF", 0, 1, 0, 64), "not a Janus frame"),
}


def say(link: Link, data: bytes, fd: int | None = None) -> None:
    """Send ``data`` past the wire, and close ``fd`` after sending it along."""
    sock = wire_of(link)._sock
    assert sock is not None
    if fd is None:
        sock.send(data)
    else:
        socket.send_fds(sock, [data], [fd])
        os.close(fd)


@pytest.mark.parametrize("lie", LIES)
async def test_a_peer_that_lies_about_its_memory_is_named(lie: str) -> None:
    data, make, words = LIES[lie]
    server = Recorder()
    before = descriptors()
    async with linked("shm", Recorder(), server, options=LinkOptions(heartbeat_s=60, silence_s=90)) as (link, _):
        say(link, data, make() if make is not None else None)
        await server.until(lambda: bool(server.closed))
        assert isinstance(server.closed[0], ProtocolViolation) and words in str(server.closed[0])
        assert isinstance(await link.wait_closed(), LinkBroken)
    gc.collect()
    assert descriptors() <= before


@pytest.mark.parametrize("lie", WILD)
async def test_a_reference_to_what_is_not_there_is_named(lie: str) -> None:
    data, words = WILD[lie]
    server = Recorder()
    options = LinkOptions(heartbeat_s=60, silence_s=90, max_payload=100_000)
    async with linked("shm", Recorder(), server, options=options) as (link, _):
        say(link, GOOD, memfd(SEGMENT))
        say(link, data if data == GOOD else data + bytes(64))
        await server.until(lambda: bool(server.closed))
        assert isinstance(server.closed[0], ProtocolViolation) and words in str(server.closed[0])
        assert server.frames == []


async def test_a_strangers_memory_and_descriptors_are_not_taken() -> None:
    async with serving("shm", lambda _: Echo()) as server:
        link = await dial("shm", server.listener.port, Recorder())
        before = descriptors()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(f"\0janus-shm-{server.listener.port}")
            for data in (b"x", GOOD, bytes(40)):
                for _ in range(3):
                    fd = memfd(SEGMENT)
                    try:
                        socket.send_fds(stranger, [data], [fd] * 20)
                    except (BrokenPipeError, ConnectionResetError):
                        pass  # it has been dropped, as it should be
                    finally:
                        os.close(fd)
            assert await link.call(Leave(reason="x"), timeout_s=DEADLINE_S) == Leave(reason="x")
            gc.collect()
            assert descriptors() <= before + 1
            # Nor is our memory given to it: nothing came but bytes.
            stranger.setblocking(False)
            with pytest.raises((BlockingIOError, ConnectionResetError)):
                while True:
                    _, fds, _, _ = socket.recv_fds(stranger, 1 << 16, 4)
                    assert fds == []
        await link.close("done")


# -- ports, systems, leaks --------------------------------------------------------------------------------------------


async def test_a_port_can_be_taken_once_and_is_free_again() -> None:
    first = await transport("shm").listen(HOST, 0, lambda wire: wire.close())
    with pytest.raises(OSError, match="in use"):
        await transport("shm").listen(HOST, first.port, lambda wire: wire.close())
    first.close()
    second = await transport("shm").listen(HOST, first.port, lambda wire: wire.close())
    assert second.port == first.port
    second.close()


async def test_a_listener_that_never_accepts_ends_the_wait_in_time() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.bind("\0janus-shm-1023")
        silent.listen(1)
        # The first two keep their places in the backlog, as nobody looks at it; the third finds it full.
        for words in ("no handshake within", "no handshake within", "no connection within"):
            with pytest.raises(DeadlineExceeded, match=words):
                await dial("shm", 1023, Recorder(), timeout_s=0.2)


async def test_a_private_pool_is_refused() -> None:
    with pytest.raises(ConfigError, match="shared_pool"):
        await dial("shm", 1, Recorder(), pool=BufferPool())


async def test_systems_without_shared_memory_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = small_pool()
    monkeypatch.delattr(os, "memfd_create")
    with pytest.raises(ConfigError, match="no shared memory"):
        HostSegment(1 << 20)
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="no abstract sockets on darwin"):
        await dial("shm", 1, Recorder(), pool=pool)


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:janus")


async def test_two_hundred_peers_later_nothing_is_left_of_them() -> None:
    """Each brings memory of its own, as a peer process does."""
    async with serving("shm", lambda _: Echo()) as server:

        async def cycles(count: int) -> tuple[int, int]:
            for number in range(count):
                client = Recorder()
                link = await dial("shm", server.listener.port, client, pool=SharedPool(HostSegment(1 << 26)))
                other = server.link
                for _ in range(3):
                    post(link, bytes(LARGE))
                await client.until(lambda client=client: len(client.frames) == 3)  # type: ignore[misc]
                if number % 4 == 0:
                    link.abort("rudely")
                else:
                    await link.close("politely")
                await other.wait_gone()
                server.handlers.clear()
            del client, link, other
            gc.collect()
            return descriptors(), mappings()

        before = await cycles(20)
        memory = resident_mb()
        assert await cycles(200) == before
        assert resident_mb() - memory < 8


async def test_whatever_a_proven_peer_says_costs_its_own_link_alone() -> None:
    """Messages that are almost right, at random: the link ends, and the one beside it notices nothing."""
    rng = random.Random(11)
    numbers = (0, 1, 63, 64, 4095, 4096, SEGMENT - 64, SEGMENT, (1 << 32) - 1, (1 << 63), (1 << 64) - 64)

    def almost() -> bytes:
        magic = rng.choice((b"JREF", b"JREF", b"JSEG", b"JNUS", rng.randbytes(4)))
        small = [rng.choice(numbers) & 0xFFFFFFFF for _ in range(2)]
        large = [rng.choice(numbers) for _ in range(2)]
        whole = message(magic, *small, *large) + rng.choice((bytes(64), b"JNUS" + rng.randbytes(60)))
        return whole[: rng.choice((4, 31, 32, 95, 96, 96, 96, 96))]

    async with serving("shm", lambda _: Echo()) as server:
        beside = await dial("shm", server.listener.port, Recorder())
        for _ in range(60):
            link = await dial("shm", server.listener.port, Recorder())
            if rng.random() < 0.7:
                say(link, GOOD, memfd(SEGMENT))
            with contextlib.suppress(OSError):
                for _ in range(5):
                    say(link, almost())
            await link.wait_closed()
            assert await beside.call(Leave(reason="x"), timeout_s=DEADLINE_S) == Leave(reason="x")
        await beside.close("done")
