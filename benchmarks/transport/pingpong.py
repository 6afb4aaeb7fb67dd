"""Both ends of a ping-pong, for each stack: a Janus link, the bare wire below it, ucxx itself, plain blocking sockets.

``python -m benchmarks.transport`` runs them. One end is ``serve(stack)``, which prints its port; the other makes round
trips, with the same bytes on every stack: a payload and 64 bytes, a frame's header where there are frames. Nobody
writes or copies a payload on the way; memory is made and written to once, or comes from the pool that a link has.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from benchmarks.transport.raw_ucx import PublicClient, PublicServer, RawClient, RawServer

from janus.errors import LinkError
from janus.messages import PROTOCOL_VERSION, Message
from janus.messages.control import Identity
from janus.transport import InFrame, Kind, Link, OutFrame, TransportKind, connect, listen
from janus.transport.buffers import Buffer
from janus.transport.endpoint import transport
from janus.transport.frame import HEADER_BYTES, pack_fields
from janus.transport.wire import Wire

HOST = "127.0.0.1"
SIZES = (64, 4096, 32 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20)
STACKS = (
    "link-ucx",
    "ucxx",
    "ucxx-probe",
    "socket",
    "wire-ucx",
    "ucxx-public",
    "link-tcp",
    "wire-tcp",
    "link-shm",
    "wire-shm",
)
SECRET = b"benchmark"
#: In Python 3.11, ``Kind.DISPATCH`` is a Python call.
_DISPATCH, _COMBINE = Kind.DISPATCH, Kind.COMBINE
Samples = dict[str, list[float]]


class Client(Protocol):
    """The measuring end of a stack."""

    async def trips(self, size: int, count: int) -> list[float]:
        """Return the seconds of each of ``count`` round trips with ``size`` bytes of payload."""


def identity(instance: str) -> Identity:
    return Identity(protocol=PROTOCOL_VERSION, role="tool", instance=instance, node="", incarnation="")


class LinkEnd:
    """Echoes on the serving side; on the other, resolves ``arrived``."""

    def __init__(self, *, echo: bool) -> None:
        self._echo = echo
        self._written: set[int] = set()
        self.arrived: asyncio.Future[None] | None = None

    def frame(self, link: Link, size: int) -> OutFrame:
        """Return a frame to post. Memory that nobody ever wrote to is all one page, and too cheap to send."""
        frame = link.allocate(size)
        if frame.address not in self._written:
            self._written.add(frame.address)
            frame.payload.fill(1)
        return frame

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        raise AssertionError("no messages here")

    def on_frame(self, link: Link, frame: InFrame) -> None:
        if self._echo:
            link.post(self.frame(link, len(frame.payload)), kind=_COMBINE)
        elif self.arrived is not None:
            self.arrived.set_result(None)
        frame.release()

    def on_closed(self, link: Link, error: LinkError) -> None:
        pass


class LinkClient:
    """Measures a link."""

    def __init__(self, link: Link, end: LinkEnd) -> None:
        self._link = link
        self._end = end

    @classmethod
    async def connect(cls, kind: TransportKind, host: str, port: int) -> LinkClient:
        end = LinkEnd(echo=False)
        return cls(await connect(kind, host, port, identity=identity("client"), secret=SECRET, handler=end), end)

    async def trips(self, size: int, count: int) -> list[float]:
        link, end, loop = self._link, self._end, asyncio.get_running_loop()
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            frame = end.frame(link, size)
            end.arrived = loop.create_future()
            link.post(frame, kind=_DISPATCH)
            await end.arrived
            samples.append(time.perf_counter() - start)
        return samples


class WireEnd:
    """The same on the bare wire, without header, order or credits; the buffer goes back as it came."""

    def __init__(self, wire: Wire, *, echo: bool) -> None:
        self._wire = wire
        self._echo = echo
        self.arrived: asyncio.Future[None] | None = None
        self.buffer: Buffer | None = None
        wire.start(self)
        wire.max_frame = 1 << 30
        wire.proven = True

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        if self._echo:
            self._wire.send(buffer, nbytes)
        elif self.arrived is not None:
            self.buffer = buffer
            self.arrived.set_result(None)

    def on_lost(self, error: LinkError) -> None:
        pass


class WireClient:
    """Measures a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._end = WireEnd(wire, echo=False)

    @classmethod
    async def connect(cls, kind: TransportKind, host: str, port: int) -> WireClient:
        return cls(await transport(kind).connect(host, port, timeout_s=5))

    async def trips(self, size: int, count: int) -> list[float]:
        wire, end, loop = self._wire, self._end, asyncio.get_running_loop()
        end.buffer = wire.pool.take(HEADER_BYTES + size)
        pack_fields(end.buffer.view, Kind.DISPATCH, 0, size)  # TCP looks for the length there
        samples = []
        for _ in range(count):
            start = time.perf_counter()
            end.arrived = loop.create_future()
            wire.send(end.buffer, HEADER_BYTES + size)
            await end.arrived
            samples.append(time.perf_counter() - start)
        end.buffer.release()
        return samples


class SocketClient:
    """Measures plain blocking sockets; the first 8 bytes of a message say how long it is."""

    def __init__(self, host: str, port: int) -> None:
        self._sock = socket.create_connection((host, port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def trips(self, size: int, count: int) -> list[float]:
        sock, samples = self._sock, []
        memory = memoryview(bytearray(b"1" * (HEADER_BYTES + size)))
        memory[:8] = len(memory).to_bytes(8, "little")
        for _ in range(count):
            start = time.perf_counter()
            sock.sendall(memory)
            _receive_exactly(sock, memory)
            samples.append(time.perf_counter() - start)
        return samples


def _receive_exactly(sock: socket.socket, into: memoryview) -> bool:
    while into:
        got = sock.recv_into(into)
        if got == 0:
            return False
        into = into[got:]
    return True


def _serve_socket() -> None:
    with socket.create_server((HOST, 0)) as listener:
        _ready(listener.getsockname()[1])
        sock, _ = listener.accept()
        with sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            memory = memoryview(bytearray(b"1" * (HEADER_BYTES + max(SIZES))))
            while _receive_exactly(sock, memory[:8]):
                message = memory[: int.from_bytes(memory[:8], "little")]
                _receive_exactly(sock, message[8:])
                sock.sendall(message)


def _ready(port: int) -> None:
    print(port, flush=True)


async def _serve_on_loop(stack: str) -> None:
    ends: list[object] = []
    layer, _, kind = stack.partition("-")
    if stack in ("ucxx", "ucxx-probe"):
        ends.append(raw := RawServer(probing=stack == "ucxx-probe"))
        _ready(raw.port)
    elif stack == "ucxx-public":
        ends.append(public := PublicServer())
        _ready(public.port)
    elif layer == "link":
        end = LinkEnd(echo=True)
        link_listener = await listen(
            kind,  # type: ignore[arg-type]
            HOST, 0, identity=identity("server"), secret=SECRET, handler_factory=lambda _: end,
        )  # fmt: skip
        _ready(link_listener.port)
    else:
        wire_transport = transport(kind)  # type: ignore[arg-type]
        wire_listener = await wire_transport.listen(HOST, 0, lambda wire: ends.append(WireEnd(wire, echo=True)))
        _ready(wire_listener.port)
    await asyncio.get_running_loop().create_future()


def serve(stack: str, loop: str) -> None:
    """Print the port of ``stack``'s echo, and echo until killed."""
    if stack == "socket":
        _serve_socket()
    else:
        run_loop(_serve_on_loop(stack), loop)


async def client_of(stack: str, host: str, port: int) -> Client:
    """Return the measuring end of ``stack``."""
    if stack == "socket":
        return SocketClient(host, port)
    if stack in ("ucxx", "ucxx-probe"):
        return RawClient(host, port, probing=stack == "ucxx-probe")
    if stack == "ucxx-public":
        return await PublicClient.connect(host, port)
    layer, _, kind = stack.partition("-")
    made = LinkClient if layer == "link" else WireClient
    return await made.connect(kind, host, port)  # type: ignore[arg-type]


async def ping_link(kind: TransportKind, port: int, rounds: Callable[[int], int]) -> tuple[Samples, Samples]:
    """Return the round trips of a link per size; the second is left empty."""
    client = await LinkClient.connect(kind, HOST, port)
    return {str(size): await client.trips(size, rounds(size)) for size in SIZES}, {}


def ping_socket(port: int, rounds: Callable[[int], int]) -> tuple[Samples, Samples]:
    """Return the round trips of plain sockets per size; the second is left empty."""

    async def ping() -> Samples:
        client = SocketClient(HOST, port)
        return {str(size): await client.trips(size, rounds(size)) for size in SIZES}

    return asyncio.run(ping()), {}


def run_loop(main: Coroutine[Any, Any, Any], loop: str) -> Any:
    """Run on uvloop or asyncio's own loop."""
    if loop == "uvloop":
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


def summary(samples: Samples) -> dict[str, dict[str, float]]:
    """Return median and 99th percentile in microseconds per size."""
    return {
        size: {
            "p50": round(statistics.median(values) * 1e6, 1),
            "p99": round(sorted(values)[int(len(values) * 0.99)] * 1e6, 1),
        }
        for size, values in samples.items()
    }
