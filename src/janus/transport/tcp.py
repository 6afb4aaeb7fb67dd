"""Wires over plain TCP sockets, driven by the loop's readiness callbacks (asyncio or uvloop).

Sockets are used directly rather than through asyncio's transports: a send goes out at once where the kernel takes it,
a large frame is received straight into its own buffer, and it is always known when a buffer is free again.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable

from janus.errors import DeadlineExceeded, LinkBroken, LinkError, ProtocolViolation
from janus.transport import frame
from janus.transport.accepting import SocketListener
from janus.transport.buffers import Buffer, BufferPool, aligned_empty
from janus.transport.wire import MAX_UNPROVEN_FRAME_BYTES, OnWire, Wire, WireHandler

_STAGING_BYTES = 256 << 10
#: Reads per readiness event, so that one busy peer cannot starve the rest of the loop.
_READS_PER_EVENT = 16


class TcpWire:
    """A connected, non-blocking socket. Frames are found by the length in their header."""

    proven = False

    def __init__(self, sock: socket.socket, address: str, pool: BufferPool | None = None) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.address = address
        self.max_frame = MAX_UNPROVEN_FRAME_BYTES
        self.pool = BufferPool() if pool is None else pool
        self._loop = asyncio.get_running_loop()
        self._sock: socket.socket | None = sock
        self._handler: WireHandler | None = None
        self._staging = aligned_empty(_STAGING_BYTES)[0].data
        self._staged = 0
        # A frame that did not fit into the staging area: its buffer, its size, and how much of it is here.
        self._partial: tuple[Buffer, int] | None = None
        self._partial_got = 0
        self._outbox: deque[tuple[memoryview, Buffer]] = deque()

    def start(self, handler: WireHandler) -> None:
        first = self._handler is None
        self._handler = handler
        if first and self._sock is not None:
            self._loop.add_reader(self._sock, self._on_readable)

    def send(self, buffer: Buffer, nbytes: int) -> None:
        if self._sock is None:
            buffer.release()
            return
        self._outbox.append((buffer.view[:nbytes], buffer))
        if len(self._outbox) == 1:
            self._flush()
            if self._outbox and self._sock is not None:
                self._loop.add_writer(self._sock, self._on_writable)

    def reference(self, buffer: Buffer, first: int, nbytes: int) -> Buffer | None:
        return None

    def close(self) -> None:
        self._handler = None
        sock, self._sock = self._sock, None
        if sock is None:
            return
        self._loop.remove_reader(sock)
        self._loop.remove_writer(sock)
        sock.close()
        self._outbox.clear()
        self._partial = None

    # -- sending --------------------------------------------------------------------------------------------------

    def _on_writable(self) -> None:
        self._flush()
        if not self._outbox and self._sock is not None:
            self._loop.remove_writer(self._sock)

    def _flush(self) -> None:
        while self._outbox and self._sock is not None:
            view, buffer = self._outbox[0]
            try:
                sent = self._sock.send(view)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                # Not reported from here: a handler that is in the middle of a send must not be called back.
                self._loop.call_soon(self._lose, LinkBroken(self.address, f"cannot send: {error}"))
                return
            if sent < len(view):
                self._outbox[0] = (view[sent:], buffer)
                return
            self._outbox.popleft()
            view.release()
            buffer.release()

    # -- receiving ------------------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        for _ in range(_READS_PER_EVENT):
            if self._sock is None:
                return
            into = self._space()
            try:
                got = self._sock.recv_into(into)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._lose(LinkBroken(self.address, f"cannot receive: {error}"))
                return
            if got == 0:
                self._lose(self._end_of_stream())
                return
            if self._partial is not None:
                self._partial_got += got
                self._finish_partial()
            else:
                self._staged += got
                self._take_staged()
            if got < len(into):  # the kernel has no more for now; the loop will call again
                return

    def _space(self) -> memoryview:
        if self._partial is None:
            return self._staging[self._staged :]
        buffer, nbytes = self._partial
        return buffer.view[self._partial_got : nbytes]

    def _finish_partial(self) -> None:
        assert self._partial is not None
        buffer, nbytes = self._partial
        if self._partial_got == nbytes:
            self._partial = None
            if self._handler is not None:
                self._handler.on_frame(buffer, nbytes)

    def _take_staged(self) -> None:
        """Deliver every whole frame in the staging area; move the rest to its front or to a buffer of its own."""
        start, end = 0, self._staged
        while end - start >= frame.HEADER_BYTES and self._sock is not None:
            try:
                header = frame.unpack(self._staging[start:end], max_payload=self.max_frame - frame.HEADER_BYTES)
            except ValueError as error:
                self._lose(ProtocolViolation(self.address, str(error)))
                return
            nbytes = frame.HEADER_BYTES + header.payload_len
            here = min(nbytes, end - start)
            if here < nbytes <= _STAGING_BYTES // 2:
                break  # small: let the rest arrive behind it
            buffer = self.pool.take(nbytes)
            buffer.view[:here] = self._staging[start : start + here]
            start += here
            if here < nbytes:
                self._partial, self._partial_got = (buffer, nbytes), here
                break
            if self._handler is not None:
                self._handler.on_frame(buffer, nbytes)
        self._staged = end - start
        if start and self._staged:
            self._staging[: self._staged] = bytes(self._staging[start:end])

    def _end_of_stream(self) -> LinkError:
        if self._staged or self._partial is not None:
            return LinkBroken(self.address, "truncated frame: the connection ended within it")
        return LinkBroken(self.address, "the other end closed the connection")

    def _lose(self, error: LinkError) -> None:
        handler = self._handler
        self.close()
        if handler is not None:
            handler.on_lost(error)


class TcpTransport:
    """``Transport`` over TCP."""

    async def listen(self, host: str, port: int, on_wire: OnWire, *, pool: BufferPool | None = None) -> SocketListener:
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = infos[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(128)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
        return SocketListener(
            sock, sock.getsockname()[1], on_wire, lambda sock, name: TcpWire(sock, f"{name[0]}:{name[1]}", pool)
        )

    async def connect(self, host: str, port: int, *, timeout_s: float, pool: BufferPool | None = None) -> Wire:
        loop = asyncio.get_running_loop()
        address = f"{host}:{port}"
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(timeout_s):
                infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                family, kind, proto, _, target = infos[0]
                sock = socket.socket(family, kind, proto)
                sock.setblocking(False)
                await loop.sock_connect(sock, target)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, TimeoutError):
                raise DeadlineExceeded(address, f"no connection within {timeout_s:g} s") from error
            if isinstance(error, OSError):
                raise LinkBroken(address, f"cannot connect: {error.strerror or error}") from error
            raise
        return TcpWire(sock, address, pool)

    def hold(self) -> Callable[[], None]:
        return lambda: None
