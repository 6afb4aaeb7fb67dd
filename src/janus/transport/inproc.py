"""Wires within one process: buffers change hands, nothing is copied. For monolithic mode and for tests.

The two ends may live on different event loops in different threads.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import threading
from collections import deque
from collections.abc import Callable

from janus.errors import LinkBroken, LinkError, ProtocolViolation
from janus.transport.buffers import Buffer, BufferPool
from janus.transport.wire import MAX_UNPROVEN_FRAME_BYTES, OnWire, Wire, WireHandler

_listeners: dict[int, InprocListener] = {}
_listeners_lock = threading.Lock()
_ports = itertools.count(1)


class InprocWire:
    """One end of a pair; ``_peer`` is the other."""

    proven = False

    def __init__(self, address: str, loop: asyncio.AbstractEventLoop, pool: BufferPool | None) -> None:
        self.address = address
        self.max_frame = MAX_UNPROVEN_FRAME_BYTES
        self.pool = BufferPool() if pool is None else pool
        self._loop = loop
        self._handler: WireHandler | None = None
        self._inbox: deque[tuple[Buffer, int] | LinkError] = deque()
        self._woken = False
        self._peer: InprocWire | None = None

    def start(self, handler: WireHandler) -> None:
        self._handler = handler
        self._wake()

    def send(self, buffer: Buffer, nbytes: int) -> None:
        if self._peer is not None:
            self._peer._put((buffer, nbytes))

    def reference(self, buffer: Buffer, first: int, nbytes: int) -> Buffer | None:
        return None

    def close(self) -> None:
        self._handler = None
        self._inbox.clear()
        peer, self._peer = self._peer, None
        if peer is not None:
            peer._put(LinkBroken(peer.address, "the other end closed the connection"))

    def _put(self, item: tuple[Buffer, int] | LinkError) -> None:
        """Called by the other end, possibly from its own thread."""
        self._inbox.append(item)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # our loop is closed: nobody will read this any more
                self._inbox.clear()

    def _wake(self) -> None:
        if self._inbox and not self._woken:
            self._woken = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        # Cleared first: an item that is put from now on either is seen below or wakes us again.
        self._woken = False
        while self._inbox and self._handler is not None:
            item = self._inbox.popleft()
            if isinstance(item, LinkError):
                self._lose(item)
            elif item[1] > self.max_frame:
                problem = f"frame of {item[1]} bytes exceeds the limit of {self.max_frame}"
                self._lose(ProtocolViolation(self.address, problem))
            else:
                self._handler.on_frame(*item)

    def _lose(self, error: LinkError) -> None:
        handler = self._handler
        self.close()
        if handler is not None:
            handler.on_lost(error)


class InprocListener:
    """A named place in this process that ``connect`` finds by its port number."""

    def __init__(self, port: int, on_wire: OnWire, pool: BufferPool | None) -> None:
        self._port = port
        self._on_wire = on_wire
        self._pool = pool
        self._loop = asyncio.get_running_loop()

    @property
    def port(self) -> int:
        return self._port

    def close(self) -> None:
        with _listeners_lock:
            if _listeners.get(self._port) is self:
                del _listeners[self._port]

    def _connect(self, pool: BufferPool | None) -> InprocWire:
        """Return the connecting end of a new pair; runs on the connecting loop."""
        address = f"inproc:{self._port}"
        client = InprocWire(address, asyncio.get_running_loop(), pool)
        server = InprocWire(address, self._loop, self._pool)
        client._peer, server._peer = server, client
        self._loop.call_soon_threadsafe(self._on_wire, server)
        return client


class InprocTransport:
    """``Transport`` over the memory of this process; ``host`` is ignored."""

    async def listen(self, host: str, port: int, on_wire: OnWire, *, pool: BufferPool | None = None) -> InprocListener:
        with _listeners_lock:
            number = port or next(candidate for candidate in _ports if candidate not in _listeners)
            if number in _listeners:
                raise OSError(errno.EADDRINUSE, f"inproc port {number} is in use")
            listener = _listeners[number] = InprocListener(number, on_wire, pool)
        return listener

    async def connect(self, host: str, port: int, *, timeout_s: float, pool: BufferPool | None = None) -> Wire:
        with _listeners_lock:
            listener = _listeners.get(port)
        if listener is None:
            raise LinkBroken(f"inproc:{port}", "nobody listens there in this process")
        return listener._connect(pool)

    def hold(self) -> Callable[[], None]:
        return lambda: None
