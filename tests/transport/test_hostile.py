"""Whatever comes to the port: it is named in the log, costs little, and a live link beside it does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import tracemalloc
from collections.abc import AsyncIterator

import msgpack
import pytest
import structlog

from janus.errors import DeadlineExceeded, LinkBroken, LinkError, PeerRefused, ProtocolViolation
from janus.messages import encode
from janus.messages.control import Hello, Leave, Refused, Welcome
from janus.transport import LinkOptions, TransportKind
from janus.transport.buffers import Buffer
from janus.transport.endpoint import transport
from janus.transport.frame import HEADER_BYTES, Header, Kind, pack_into
from janus.transport.wire import Wire
from tests.transport.helpers import DEADLINE_S, HOST, Echo, Recorder, Server, dial, identity, linked, post, serving
from tests.waiting import eventually, turns


def framed(payload: bytes = b"", **fields: int) -> bytes:
    header = bytearray(HEADER_BYTES)
    pack_into(header, Header(**{"kind": Kind.CONTROL, "payload_len": len(payload), **fields}))  # type: ignore[arg-type]
    return bytes(header) + payload


HELLO = encode(Hello(identity=identity(), nonce=bytes(32)))
OTHER_VERSION = bytearray(framed(HELLO))
OTHER_VERSION[4] = 7

#: What a stranger sends as its first frame, and the words that the log must say.
STRANGE = {
    "garbage": (b"GET / HTTP/1.1\r\n" + b"x" * 100, "not a Janus frame"),
    "frame version": (bytes(OTHER_VERSION), "frame version 7, this side speaks"),
    "absurd length": (framed(payload_len=1 << 62), "exceeds the limit"),
    "large before the handshake": (framed(bytes(80_000)), "exceeds the limit"),
    "tensor before the handshake": (framed(b"x", kind=Kind.DISPATCH), "DISPATCH frame before the handshake"),
    "no msgpack": (framed(b"\xc1\xc1"), "not a control message"),
    "unknown field": (framed(msgpack.packb({"type": "leave", "reason": "", "colour": 1})), "unknown field `colour`"),
    "missing field": (framed(msgpack.packb({"type": "hello"})), "missing required field `identity`"),
    "out of turn": (framed(encode(Welcome(credits=9))), "unexpected Welcome"),
}


class Stranger:
    """A bare wire; ``lost`` is set when the other side drops it."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.lost = asyncio.Event()
        wire.start(self)

    def send(self, data: bytes) -> None:
        buffer = self.wire.pool.take(len(data))
        buffer.view[: len(data)] = data
        self.wire.send(buffer, len(data))

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        buffer.release()

    def on_lost(self, error: LinkError) -> None:
        self.lost.set()


@contextlib.asynccontextmanager
async def beside_a_live_link(kind: TransportKind, options: LinkOptions | None = None) -> AsyncIterator[Server]:
    """A server with a client whose calls are answered before, during and after."""
    client = Recorder()
    async with serving(kind, lambda _: Echo(), options=options) as server:
        link = await dial(kind, server.listener.port, client)
        calling = True

        async def keep_calling() -> int:
            count = 0
            while calling:
                assert await link.call(Leave(reason=str(count)), timeout_s=DEADLINE_S) == Leave(reason=str(count))
                count += 1
            return count

        calls = asyncio.ensure_future(keep_calling())
        try:
            yield server
        finally:
            calling = False
            assert await calls > 0
            assert not link.closed
            await link.close("done")


async def logged(logs: list[dict[str, object]], words: str, times: int = 1) -> None:
    await eventually(lambda: sum(words in str(entry.get("problem")) for entry in logs) >= times)


@pytest.mark.parametrize("case", STRANGE)
async def test_strange_first_frames_are_named_and_dropped(kind: TransportKind, case: str) -> None:
    data, words = STRANGE[case]
    with structlog.testing.capture_logs() as logs:
        async with beside_a_live_link(kind) as server:
            stranger = Stranger(await transport(kind).connect(HOST, server.listener.port, timeout_s=5))
            stranger.send(data)
            await logged(logs, words)
            await asyncio.wait_for(stranger.lost.wait(), DEADLINE_S)
            stranger.wire.close()
    entry = next(entry for entry in logs if words in str(entry.get("problem")))
    assert (entry["event"], entry["error"], entry["log_level"]) == ("handshake_failed", "ProtocolViolation", "warning")


async def test_a_truncated_frame_is_named(kind: TransportKind) -> None:
    with structlog.testing.capture_logs() as logs:
        async with beside_a_live_link(kind) as server:
            stranger = Stranger(await transport(kind).connect(HOST, server.listener.port, timeout_s=5))
            stranger.send(framed(HELLO)[:-10])
            if kind == "tcp":
                stranger.wire.close()  # a stream cannot tell before its end
            await logged(logs, "truncated frame")
            stranger.wire.close()


async def test_a_stranger_that_says_nothing_is_dropped_in_time(kind: TransportKind) -> None:
    with structlog.testing.capture_logs() as logs:
        async with beside_a_live_link(kind, LinkOptions(handshake_s=0.2)) as server:
            stranger = Stranger(await transport(kind).connect(HOST, server.listener.port, timeout_s=5))
            await asyncio.wait_for(stranger.lost.wait(), DEADLINE_S)
            await logged(logs, "no handshake within 0.2 s")
            stranger.wire.close()


@pytest.mark.parametrize("over", ["tcp", "ucx"])
async def test_raw_bytes_at_the_port(over: TransportKind) -> None:
    async with beside_a_live_link(over, LinkOptions(handshake_s=0.3)) as server:
        for data in (b"", b"\x00" * 3, b"GET / HTTP/1.0\r\n\r\n", bytes(range(256)) * 300, framed(payload_len=1 << 40)):
            reader, writer = await asyncio.open_connection(HOST, server.listener.port)
            writer.write(data)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            del reader
        held = [socket.create_connection((HOST, server.listener.port)) for _ in range(20)]
        link = await dial(over, server.listener.port, Recorder())
        await link.close("served all the same")
        for sock in held:
            sock.close()


async def test_strangers_cost_little_memory() -> None:
    async with serving("tcp") as server:
        strangers = [
            Stranger(await transport("tcp").connect(HOST, server.listener.port, timeout_s=5)) for _ in range(9)
        ]
        tracemalloc.start()
        try:
            for stranger in strangers:
                stranger.send(framed(payload_len=60_000) + bytes(10_000))
            # A link that comes up after them: what they sent has been read.
            link = await dial("tcp", server.listener.port, Recorder())
            await link.close("served all the same")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 9 * 200_000
        for stranger in strangers:
            stranger.wire.close()


async def test_too_many_handshakes_at_a_time_are_refused(kind: TransportKind) -> None:
    options = LinkOptions(max_handshakes=2, handshake_s=5)
    async with serving(kind, options=options) as server:
        first = [Stranger(await transport(kind).connect(HOST, server.listener.port, timeout_s=5)) for _ in range(2)]
        third = Stranger(await transport(kind).connect(HOST, server.listener.port, timeout_s=5))
        await asyncio.wait_for(third.lost.wait(), DEADLINE_S)
        assert not any(stranger.lost.is_set() for stranger in first)
        for stranger in (*first, third):
            stranger.wire.close()


async def test_a_proven_peer_that_breaks_the_protocol_is_named(kind: TransportKind) -> None:
    client, server = Recorder(), Recorder()
    async with linked(kind, client, server) as (link, _):
        buffer = link._wire.pool.take(HEADER_BYTES)
        buffer.view[:HEADER_BYTES] = framed(kind=Kind.PING, seq=77)
        link._wire.send(buffer, HEADER_BYTES)
        await server.until(lambda: bool(server.closed))
        await client.until(lambda: bool(client.closed))
    assert isinstance(server.closed[0], ProtocolViolation) and "frame 77 came where" in str(server.closed[0])
    assert isinstance(client.closed[0], LinkBroken)


REFUSALS = {
    "wrong_secret": {"secret": b"another"},
    "wrong_protocol": {"me": identity(protocol=99)},
    "wrong_model": {"me": identity(fingerprint="f2")},
    "wrong_dtype": {"me": identity(dtype="bfloat16")},
    "duplicate_instance": {"me": identity(instance="attention-dup")},
}


@pytest.mark.parametrize("code", REFUSALS)
async def test_both_sides_name_a_refusal(kind: TransportKind, code: str) -> None:
    def admit(peer: object) -> Refused | None:
        taken = getattr(peer, "instance", "") == "attention-dup"
        return Refused(code="duplicate_instance", problem="attention-dup is here already") if taken else None

    me = identity("expert", "expert-0", fingerprint="f1", dtype="float32")
    with structlog.testing.capture_logs() as logs:
        async with serving(kind, lambda _: Recorder(), me=me, admit=admit) as server:
            with pytest.raises(PeerRefused) as refused:
                await dial(kind, server.listener.port, Recorder(), **REFUSALS[code])  # type: ignore[arg-type]
            assert refused.value.code == code
            await logged(logs, f"refused ({code})", times=2)
            assert server.listener.links == () and server.handlers == []


async def test_connect_to_nobody_is_named_soon(kind: TransportKind) -> None:
    with socket.create_server((HOST, 0)) as reserved:
        port = reserved.getsockname()[1]
    with pytest.raises(LinkBroken, match=r"cannot connect|nobody listens"):
        await dial(kind, port, Recorder(), timeout_s=2)


async def test_connect_to_something_else_is_named() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example.org ESMTP ready, and some more to fill a header of sixty-four bytes\r\n")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(answer, HOST, 0)
    async with other:
        with pytest.raises(ProtocolViolation, match="not a Janus frame"):
            await dial("tcp", other.sockets[0].getsockname()[1], Recorder())


@pytest.mark.parametrize("over", ["tcp", "ucx"])
async def test_connect_to_a_port_that_never_answers_ends_in_time(over: TransportKind) -> None:
    with socket.create_server((HOST, 0)) as silent, pytest.raises(DeadlineExceeded):
        await dial(over, silent.getsockname()[1], Recorder(), timeout_s=0.3)


async def test_a_cancelled_connect_leaves_nothing_behind(kind: TransportKind) -> None:
    async with serving(kind) as server:
        for count in range(1, 12, 2):
            attempt = asyncio.ensure_future(dial(kind, server.listener.port, Recorder()))
            await turns(count)
            attempt.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await attempt).close("it was too fast to be cancelled")
        link = await dial(kind, server.listener.port, Recorder())
        await eventually(lambda: len(server.listener.links) == 1)
        await link.close("done")


@pytest.mark.parametrize("size", [200_000, 3 << 19, 64 << 20])
async def test_a_payload_over_the_limit_is_refused_unread(kind: TransportKind, size: int) -> None:
    """Also where UCX has only announced it: the sender waits for us to fetch what we never will."""
    client, server = Recorder(), Recorder()
    small = LinkOptions(max_payload=100_000)
    async with beside_a_live_link(kind), linked(kind, client, server, server_options=small) as (link, _):
        post(link, bytes(size))
        await server.until(lambda: bool(server.closed))
        await client.until(lambda: bool(client.closed))
        assert isinstance(server.closed[0], ProtocolViolation) and "exceeds the limit" in str(server.closed[0])
        assert server.frames == []


@pytest.mark.parametrize("size", [10, 100_000, 3 << 19, 4 << 20])
async def test_ucx_messages_under_an_unknown_tag_are_dropped(size: int) -> None:
    from janus.transport.ucx import Engine

    async with beside_a_live_link("ucx") as server:
        stranger = Stranger(await transport("ucx").connect(HOST, server.listener.port, timeout_s=5))
        engine = Engine.acquire()
        stranger.wire._send_tag = engine.api.UCXXTag(12345)  # type: ignore[attr-defined]
        for _ in range(20):
            stranger.send(bytes(size))
        await eventually(lambda: not engine._pending)
        engine.release()
        stranger.wire.close()


async def test_a_listener_out_of_descriptors_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections wait in the backlog meanwhile; the loop does not spin."""
    from janus.transport import accepting

    class Exhausted:
        attempts = 0

        def __init__(self, sock: socket.socket) -> None:
            self._sock = sock

        def __getattr__(self, name: str) -> object:
            return getattr(self._sock, name)

        def accept(self) -> tuple[socket.socket, object]:
            self.attempts += 1
            if self.attempts == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return self._sock.accept()

    accepted = []
    monkeypatch.setattr(accepting, "_ACCEPT_PAUSE_S", 0.05)
    with structlog.testing.capture_logs() as logs:
        listener = await transport("tcp").listen(HOST, 0, accepted.append)
        exhausted = Exhausted(listener._sock)  # type: ignore[attr-defined]
        listener._sock = exhausted  # type: ignore[attr-defined]
        wire = await transport("tcp").connect(HOST, listener.port, timeout_s=5)
        await eventually(lambda: bool(accepted))
        assert exhausted.attempts <= 3
        assert [entry["event"] for entry in logs] == ["accept_failed"]
        for end in (wire, *accepted):
            end.close()
        listener.close()
