"""Wires over UCX.

Each frame is one tagged UCX message. Every wire end draws a random 64-bit tag for the frames it will receive and tells
it to the other end over the endpoint's stream (a prologue of 24 bytes), so tags are unique to the receiver and cannot
be guessed by third parties.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from janus.errors import LinkBroken, LinkError, ProtocolViolation
from janus.transport.buffers import Buffer, BufferPool
from janus.transport.ucx import Engine
from janus.transport.wire import MAX_UNPROVEN_FRAME_BYTES, WireHandler

_PROLOGUE = struct.Struct("<8sQQ")
_PROLOGUE_MAGIC = b"JANUSUCX"
_PROLOGUE_VERSION = 1
#: To wrap memory for UCX takes as long as to unpack two headers, so the wraps stay with it: of all of it, for receives,
#: and of as many bytes as frames had that were sent from it.
_WHOLE = -1
_MAX_WRAPS = 32


class UcxWire:
    """A UCX endpoint, the tag that the other end sends to, and the tag to send to."""

    proven = False

    def __init__(self, engine: Engine, endpoint: Any, address: str, pool: BufferPool | None) -> None:
        self.address = address
        self.max_frame = MAX_UNPROVEN_FRAME_BYTES
        self.pool = BufferPool() if pool is None else pool
        self._engine = engine
        self._endpoint = endpoint
        self._handler: WireHandler | None = None
        self._lost: LinkError | None = None  # before anyone was there to be told
        self._on_closed: Callable[[], None] = lambda: None
        self._receive_tag = secrets.randbits(64)
        self._send_tag: Any = None
        # Frames in order of arrival; the first ones may still be incomplete.
        self._inbox: deque[tuple[Any, Buffer, int]] = deque()
        engine.hold()
        engine.wires[self._receive_tag] = self
        endpoint.set_close_callback(engine.endpoint_lost, (self,))
        if not endpoint.alive:
            engine.endpoint_lost(self)
            engine.kick()

    @classmethod
    def open(cls, engine: Engine, ip: str, port: int, address: str, pool: BufferPool | None) -> UcxWire:
        """Return a wire to a listener that may not be there. Nobody but the wire has the endpoint, which keeps UCX."""
        return cls(engine, engine.api.UCXEndpoint.create(engine.worker, ip, port, True), address, pool)

    # -- the contract ---------------------------------------------------------------------------------------------

    def start(self, handler: WireHandler) -> None:
        self._handler = handler
        if self._lost is not None:
            self._engine.loop.call_soon(self._tell_lost, self._lost)
        elif self._inbox:
            self._engine.loop.call_soon(self._deliver)

    def send(self, buffer: Buffer, nbytes: int) -> None:
        if self._endpoint is None:
            buffer.release()
            return
        wraps = buffer.wrapped
        try:
            memory = None if wraps is None else wraps.get(nbytes)
            if memory is None:
                memory = self._wrap(buffer, nbytes)
            request = self._endpoint.tag_send(memory, self._send_tag)
            if not request.completed:
                self._engine.watch(request, lambda done: self._sent(done, buffer), buffer)
                return
            request.check_error()
        except Exception as error:  # ucxx raises a family of unrelated classes
            # Not reported from here: a handler that is in the middle of a send must not be called back.
            self._engine.loop.call_soon(self._lose, LinkBroken(self.address, f"cannot send: {self._reason(error)}"))
        else:
            buffer.release()

    def reference(self, buffer: Buffer, first: int, nbytes: int) -> Buffer | None:
        return None

    def close(self) -> None:
        self._handler = None
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is None:
            return
        del self._engine.wires[self._receive_tag]
        endpoint.remove_close_callback()
        endpoint.close_blocking()
        while self._inbox:
            # UCX may go on writing for a while into what it was receiving.
            self._engine.quarantine(*self._inbox.popleft())
        self._engine.release()
        self._on_closed()

    def when_closed(self, callback: Callable[[], None]) -> None:
        """Have ``callback`` called when this wire is closed."""
        self._on_closed = callback

    # -- called by the engine -------------------------------------------------------------------------------------

    def receive(self, probe: Any) -> bool:
        """Receive a message that has been announced; ``False`` if it is not welcome, and the wire is dropped."""
        nbytes: int = probe.length
        if nbytes > self.max_frame:
            problem = f"frame of {nbytes} bytes exceeds the limit of {self.max_frame}"
            self._lose(ProtocolViolation(self.address, problem))
            return False
        buffer = self.pool.take(nbytes)
        wraps, endpoint = buffer.wrapped, self._endpoint
        # A receive on an endpoint that has failed would be cancelled at once, though the message is here.
        receiver = endpoint if endpoint.alive else self._engine.worker
        try:
            memory = self._wrap(buffer, len(buffer.view)) if wraps is None else wraps[_WHOLE]
            request = receiver.tag_recv_with_handle(memory, probe)
        except Exception as error:
            self._lose(LinkBroken(self.address, f"cannot receive: {self._reason(error)}"))
            return True
        if not request.completed:
            self._inbox.append((request, buffer, nbytes))
            self._engine.watch(request, self._deliver, buffer)
        elif self._inbox or self._handler is None:
            self._inbox.append((request, buffer, nbytes))
            self._deliver()
        else:
            self._deliver_one(request, buffer, nbytes)
        return True

    def endpoint_closed(self) -> None:
        """UCX has given the endpoint up. All that had arrived has been delivered by now."""
        self._lose(LinkBroken(self.address, "the other end closed the connection or died"))

    def engine_failed(self, problem: str) -> None:
        """UCX itself has failed."""
        self._lose(LinkBroken(self.address, f"UCX failed in this process: {problem}"))

    # -- within ---------------------------------------------------------------------------------------------------

    def _wrap(self, buffer: Buffer, nbytes: int) -> Any:
        """Return the first ``nbytes`` of ``buffer`` as UCX takes memory, and keep that with the memory."""
        wraps = buffer.wrapped
        if wraps is None:
            wraps = buffer.wrapped = {_WHOLE: self._engine.array(buffer.view)}
        elif len(wraps) >= _MAX_WRAPS:
            wraps = buffer.wrapped = {_WHOLE: wraps[_WHOLE]}
        if nbytes == len(buffer.view):
            return wraps[_WHOLE]
        wrap = wraps[nbytes] = self._engine.array(buffer.view[:nbytes])
        return wrap

    def _deliver(self, _: object = None) -> None:
        while self._inbox and self._handler is not None and self._inbox[0][0].completed:
            self._deliver_one(*self._inbox.popleft())

    def _deliver_one(self, request: Any, buffer: Buffer, nbytes: int) -> None:
        try:
            request.check_error()
        except Exception as error:
            self._engine.quarantine(request, buffer)
            self._lose(LinkBroken(self.address, f"cannot receive: {self._reason(error)}"))
        else:
            assert self._handler is not None
            self._handler.on_frame(buffer, nbytes)

    def _sent(self, request: Any, buffer: Buffer) -> None:
        try:
            request.check_error()
        except Exception as error:
            self._engine.quarantine(request, buffer)
            self._lose(LinkBroken(self.address, f"cannot send: {self._reason(error)}"))
        else:
            buffer.release()

    def _reason(self, error: Exception) -> str:
        """Return why the endpoint failed, which says more than how a request on it did."""
        try:
            if self._endpoint is not None:
                self._endpoint.raise_on_error()
        except Exception as cause:
            return str(cause).partition(" error: ")[2] or str(cause)  # "Endpoint 0x7f... error: <reason>"
        return str(error)

    def _lose(self, error: LinkError) -> None:
        handler = self._handler
        self.close()
        if handler is not None:
            handler.on_lost(error)
        else:
            self._lost = error

    def _tell_lost(self, error: LinkError) -> None:
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.on_lost(error)

    # -- telling each other the tags ------------------------------------------------------------------------------

    def send_prologue(self) -> None:
        """Tell the other end where to send to."""
        memory = bytearray(_PROLOGUE.pack(_PROLOGUE_MAGIC, _PROLOGUE_VERSION, self._receive_tag))
        request = self._endpoint.stream_send(self._engine.array(memory))
        self._engine.watch(request, lambda _: None, memory)

    def receive_prologue(self, done: Callable[[LinkError | None], None]) -> None:
        """Learn where to send to, then call ``done`` from the pump with ``None`` or what went wrong."""
        memory = bytearray(_PROLOGUE.size)

        def received(request: Any) -> None:
            try:
                request.check_error()
            except Exception as error:
                done(LinkBroken(self.address, f"cannot connect: {self._reason(error)}"))
                return
            magic, version, tag = _PROLOGUE.unpack(memory)
            if magic != _PROLOGUE_MAGIC:
                done(ProtocolViolation(self.address, f"not a Janus instance: it starts with {bytes(magic)!r}"))
            elif version != _PROLOGUE_VERSION:
                done(ProtocolViolation(self.address, f"wire version {version}, this side speaks {_PROLOGUE_VERSION}"))
            else:
                self._send_tag = self._engine.api.UCXXTag(tag)
                done(None)

        self._engine.watch(self._endpoint.stream_recv(self._engine.array(memory)), received, memory)
