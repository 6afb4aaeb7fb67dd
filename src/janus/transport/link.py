"""The link: frames between two proven instances, strictly in order, exactly once, bounded, and watched.

A frame that is not the link's own costs one of the credits that the peer granted in the handshake; the credit comes
back when the peer has *taken* the frame: a message when its handler returns, a tensor frame when the receiver
releases (or drops) it. So a peer that does not consume stops the sender (``LinkBusy``) and memory stays bounded on
both sides. A peer that falls silent (stopped, hung, unreachable) is declared broken by the heartbeat; one that dies,
by the wire, within milliseconds.

All methods are for the link's own event loop, except ``InFrame.release``.
"""

from __future__ import annotations

import asyncio
from threading import get_ident
from typing import Unpack

import structlog

from janus.errors import LinkBroken, LinkBusy, LinkClosed, LinkError, ProtocolViolation
from janus.messages import Message, decode, encode
from janus.messages.control import Identity
from janus.transport.buffers import Buffer
from janus.transport.contract import InFrame, LinkHandler, LinkOptions, LinkStats, OutFrame
from janus.transport.frame import (
    FIRST_LINK_KIND,
    FRAME_VERSION,
    HEADER_BYTES,
    MAGIC,
    Header,
    HeaderFields,
    Kind,
    pack_fields,
    pack_values,
    unpack,
)
from janus.transport.heartbeat import Heartbeat
from janus.transport.waiting import Calls, CreditQueue, RoundTrips, again
from janus.transport.window import ReceiveWindow, SendWindow
from janus.transport.wire import Wire

__all__ = ["InFrame", "Link", "LinkHandler", "LinkOptions", "LinkStats", "OutFrame"]

log = structlog.get_logger(__name__)

#: After the peer's BYE: how long its wire is kept so that our BYE_ACK reaches it.
_LINGER_S = 1.0
_MAX_REASON_BYTES = 1024
#: In Python 3.11, ``Kind.CONTROL`` is a Python call.
_CONTROL = Kind.CONTROL


class Link:
    """One end of a link. Made by ``janus.transport.connect`` and ``listen``, never directly."""

    def __init__(
        self, wire: Wire, *, local: Identity, peer: Identity, options: LinkOptions, credits: int, listening: bool
    ) -> None:
        self.peer = peer
        self.local = local
        self.address = wire.address
        self._wire = wire
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._thread = get_ident()
        self._handler: LinkHandler | None = None
        self._out = SendWindow(credits)
        self._in = ReceiveWindow(options.credits)
        self._calls = Calls(peer.instance, listening=listening)
        self._senders = CreditQueue(peer.instance)
        self._bytes_in = self._bytes_out = 0
        self._round_trips = RoundTrips(peer.instance)
        self._born = now = self._loop.time()
        self._heartbeat = Heartbeat(now, interval_s=options.heartbeat_s, silence_s=options.silence_s)
        self._timer = self._loop.call_at(self._heartbeat.due, self._tick)
        # Set by our close() or by the end of the link: nothing more may be posted.
        self._ending: LinkError | None = None
        self._error: LinkError | None = None
        self._bye_received = False
        self._down: asyncio.Future[LinkError] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()

    def __repr__(self) -> str:
        state = "up" if self._error is None else f"down: {self._error}"
        return f"<Link {self.local.instance} - {self.peer.instance} at {self.address}, {state}>"

    def attach(self, handler: LinkHandler) -> None:
        """Start delivering to ``handler``. For ``janus.transport.endpoint`` only."""
        self._handler = handler
        self._wire.max_frame = self._options.max_payload + HEADER_BYTES
        self._wire.proven = True
        self._wire.start(self)

    # -- state ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether the link is down."""
        return self._error is not None

    @property
    def error(self) -> LinkError | None:
        """Why the link is down, ``None`` while it is up."""
        return self._error

    @property
    def credits(self) -> int:
        """Frames that may be posted right now."""
        return self._out.credits

    async def wait_closed(self) -> LinkError:
        """Return why the link went down, once it has. Cancelling the wait changes nothing."""
        return await asyncio.shield(self._down)

    @property
    def gone(self) -> bool:
        """Whether the link is down and its connection dropped too."""
        return self._gone.done()

    async def wait_gone(self) -> None:
        """Return once the link is down and its connection dropped too, at most a second later."""
        await asyncio.shield(self._gone)

    def stats(self) -> LinkStats:
        """Return counters; see ``LinkStats``."""
        rtt_s = self._heartbeat.rtt_s
        return LinkStats(
            frames_in=self._in.frames,
            frames_out=self._out.frames,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            credits=self._out.credits,
            in_flight=self._out.sent - self._out.acked,
            held=self._in.held,
            rtt_ms=None if rtt_s is None else rtt_s * 1e3,
            age_s=self._loop.time() - self._born,
        )

    # -- sending --------------------------------------------------------------------------------------------------

    def allocate(self, nbytes: int) -> OutFrame:
        """Return a frame with room for ``nbytes`` of payload; its contents are arbitrary."""
        buffer = self._wire.pool.take(HEADER_BYTES + nbytes)
        return OutFrame(buffer.array[HEADER_BYTES : HEADER_BYTES + nbytes], buffer)

    def post(
        self,
        frame: OutFrame,
        *,
        kind: Kind,
        request_id: int = 0,
        epoch: int = 0,
        layer: int = 0,
        dtype: int = 0,
        top_k: int = 0,
        rows: int = 0,
        cols: int = 0,
        deadline_ms: int = 0,
        elapsed_us: int = 0,
        flags: int = 0,
        target: int = 0,
        payload_len: int | None = None,
    ) -> None:
        """Send ``frame`` (its first ``payload_len`` bytes), without waiting. The frame must not be used afterwards.

        Raises:
            LinkBusy: no credit; the frame stays the caller's and may be posted again.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or going down.
            ValueError: the frame has been posted already, or ``payload_len`` exceeds it.
        """
        out, incoming = self._out, self._in
        if self._ending is not None or out.sent - out.acked >= out.limit or get_ident() != self._thread:
            self._require_credit()
        buffer, room = frame._buffer, len(frame.payload)
        if buffer is None:
            raise ValueError("this frame has been posted already")
        nbytes = room if payload_len is None else payload_len
        if not 0 <= nbytes <= room:
            raise ValueError(f"payload_len {nbytes} exceeds the frame's {room} bytes")
        frame._buffer = None
        out.sent += 1
        # fmt: off
        pack_values(
            buffer.header, 0, MAGIC, FRAME_VERSION, kind, flags, request_id, nbytes, target, 0, epoch, layer, dtype,
            top_k, rows, cols, out.next_seq(), incoming.ack(), deadline_ms, elapsed_us,
        )
        # fmt: on
        nbytes += HEADER_BYTES
        self._bytes_out += nbytes
        self._wire.send(buffer, nbytes)

    def forward(
        self,
        frame: InFrame,
        *,
        first: int = 0,
        nbytes: int | None = None,
        kind: Kind,
        **fields: Unpack[HeaderFields],
    ) -> None:
        """Send ``nbytes`` (``None``: the rest) from byte ``first`` on of the payload of a received frame.

        Where the wire can send from the memory that the frame was received into, nothing is copied: over "shm", when
        the frame came into this process's own shared memory and ``first`` is a multiple of 64. The frame stays the
        caller's, who may release it at once: the memory is reused when the caller and every peer have released it.
        Until then nobody may write to it.

        Raises:
            LinkBusy: no credit; nothing was sent.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or going down.
            ValueError: the frame has been released already, or has no such bytes.
        """
        self._require_credit()
        source, room = frame._buffer, len(frame.payload)
        if source is None:
            raise ValueError("this frame has been released already")
        nbytes = room - first if nbytes is None else nbytes
        if first < 0 or nbytes < 0 or first + nbytes > room:
            raise ValueError(f"bytes {first} to {first + nbytes} are not within the frame's {room}")
        payload = frame.payload[first : first + nbytes]
        shared = self._wire.reference(source, first, nbytes)
        if shared is None:
            out = self.allocate(nbytes)
            out.payload[:] = payload
        else:
            out = OutFrame(payload, shared)
        self.post(out, kind=kind, **fields)

    def post_message(self, message: Message, *, request_id: int = 0) -> None:
        """Send ``message`` without waiting.

        Raises:
            LinkBusy: no credit.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or going down.
        """
        self._require_credit()
        payload = encode(message)
        self._out.sent += 1
        self._send(Kind.CONTROL, request_id, payload)

    def reply(self, request_id: int, message: Message) -> None:
        """Answer the message or frame that came with ``request_id``; raises as ``post_message`` does."""
        self.post_message(message, request_id=request_id)

    async def send_message(self, message: Message, *, request_id: int = 0, timeout_s: float) -> None:
        """Send ``message``, waiting for credit at most ``timeout_s``. If cancelled, it has not been sent.

        Raises:
            DeadlineExceeded: no credit came in time; the message has not been sent.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or went down.
        """
        deadline = self._loop.time() + timeout_s
        while self._ending is None and self._out.credits <= 0:
            await self._senders.wait(deadline=deadline, timeout_s=timeout_s)
        self.post_message(message, request_id=request_id)

    async def call(self, message: Message, *, timeout_s: float) -> Message:
        """Send ``message`` and return the peer's ``reply``. If cancelled or late, the answer is dropped when it comes.

        Raises:
            DeadlineExceeded: no credit or no answer within ``timeout_s``.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or went down before the answer.
        """
        deadline = self._loop.time() + timeout_s
        request_id = self._calls.next_id()
        await self.send_message(message, request_id=request_id, timeout_s=timeout_s)
        return await self._calls.answer(request_id, type(message).__name__, deadline=deadline, timeout_s=timeout_s)

    async def round_trip(self, nbytes: int = 0, *, count: int = 1, timeout_s: float) -> float:
        """Return the seconds from posting ``count`` frames of ``nbytes`` until the peer has answered the last one.

        The frames are PINGs: they cost no credit, and the peer's link answers them, not its handler.

        Raises:
            DeadlineExceeded: not within ``timeout_s``.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or went down.
        """
        if self._ending is not None:
            raise again(self._ending)
        payload = bytes(nbytes)

        def send(request_id: int) -> None:
            self._send(Kind.PING, request_id, payload)

        return await self._round_trips.measure(send, count=count, timeout_s=timeout_s)

    def _require_credit(self) -> None:
        if get_ident() != self._thread:
            # UCX would not say so; it would corrupt its memory.
            raise RuntimeError(f"{self!r} belongs to another thread; hand the frame to its loop instead")
        if self._ending is not None:
            raise again(self._ending)
        if self._out.credits <= 0:
            raise LinkBusy(self.peer.instance, f"{self._out.limit} frames are on their way and not taken yet")

    def _send(self, kind: Kind, request_id: int = 0, payload: bytes = b"") -> None:
        nbytes = HEADER_BYTES + len(payload)
        buffer = self._wire.pool.take(nbytes)
        seq, ack = self._out.next_seq(), self._in.ack()
        pack_fields(buffer.view, kind, request_id, len(payload), seq=seq, ack=ack)
        buffer.view[HEADER_BYTES:nbytes] = payload
        self._bytes_out += nbytes
        self._wire.send(buffer, nbytes)

    # -- receiving (called by the wire) ---------------------------------------------------------------------------

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        """Take a frame from the wire."""
        if self._error is not None:
            return
        self._heartbeat.last_heard = self._now()
        self._bytes_in += nbytes
        try:
            header = unpack(buffer.header, nbytes=nbytes)
            kind = header.kind
            self._in.accept(header)
            if self._out.acknowledged(header.ack) and self._senders:
                self._senders.wake(self._out.credits)
            if kind >= FIRST_LINK_KIND:
                self._on_link_frame(header, buffer)
            elif kind == _CONTROL:
                self._on_control(header, buffer)
            else:
                payload = buffer.array[buffer.at : buffer.at + header.payload_len]
                self._on_tensor(InFrame(header, payload, buffer, self))
        except ValueError as error:
            self._finish(ProtocolViolation(self.peer.instance, f"{error} ({self.address})"))

    def on_lost(self, error: LinkError) -> None:
        """The wire is gone."""
        expected = self._bye_received or isinstance(self._ending, LinkClosed)
        if expected and self._ending is not None and not isinstance(error, ProtocolViolation):
            self._finish(self._ending)
        else:
            self._finish(type(error)(self.peer.instance, f"{error.problem} ({self.address})"))
        self._drop_wire()

    def _on_control(self, header: Header, buffer: Buffer) -> None:
        message = decode(buffer.view[buffer.at : buffer.at + header.payload_len])
        buffer.release()
        if not self._calls.resolve(header.request_id, message):
            assert self._handler is not None
            try:
                self._handler.on_message(self, header.request_id, message)
            except Exception as error:
                self._handler_failed(error)
        self._taken()

    def _on_tensor(self, frame: InFrame) -> None:
        assert self._handler is not None
        try:
            self._handler.on_frame(self, frame)
        except Exception as error:
            self._handler_failed(error)

    def _handler_failed(self, error: Exception) -> None:
        log.error("handler_failed", peer=self.peer.instance, exc_info=error)
        self.abort(f"the handler failed: {type(error).__name__}: {error}")

    def _on_link_frame(self, header: Header, buffer: Buffer) -> None:
        end = buffer.at + min(header.payload_len, _MAX_REASON_BYTES)
        reason = bytes(buffer.view[buffer.at : end]).decode(errors="replace")
        buffer.release()
        if header.kind == Kind.PING:
            self._send(Kind.PONG, header.request_id)
        elif header.kind == Kind.PONG:
            if not self._round_trips.answered(header.request_id):
                self._heartbeat.ponged(self._loop.time(), header.request_id)
        elif header.kind == Kind.BYE:
            self._on_bye(reason)
        elif header.kind == Kind.BYE_ACK and self._ending is not None:
            self._finish(self._ending)

    def _taken(self) -> None:
        """Count one frame as taken; tell the peer now and then when no other frame does."""
        if get_ident() == self._thread:
            if self._in.take() and self._ending is None and not self._loop.is_closed():
                self._send(Kind.CREDIT)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._taken)

    # -- watching and ending --------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._loop.time()
        silent_s = self._heartbeat.tick(now)
        if silent_s is not None:
            problem = f"silent for {silent_s:.1f} s ({self.address}): stopped, overloaded or unreachable"
            self._finish(LinkBroken(self.peer.instance, problem))
            return
        self._send(Kind.PING, self._heartbeat.stamp(now))
        self._timer = self._loop.call_at(self._heartbeat.due, self._tick)

    async def close(self, reason: str, *, timeout_s: float = 2.0) -> None:
        """Deliver what was posted, say goodbye, and close; after ``timeout_s`` close anyway. Idempotent.

        If cancelled, the link still closes, in the background and within ``timeout_s``.
        """
        if self._ending is None:
            closing = LinkClosed(self.peer.instance, f"closed: {reason}")
            self._end(closing)
            self._send(Kind.BYE, 0, reason.encode()[:_MAX_REASON_BYTES])
            self._timer.cancel()
            self._timer = self._loop.call_later(timeout_s, self._finish, closing)
        await self.wait_closed()

    def abort(self, reason: str) -> None:
        """Close now; what was posted may be lost. Idempotent."""
        self._finish(LinkClosed(self.peer.instance, f"closed: {reason}"))

    def _end(self, error: LinkError) -> None:
        """From here on nothing new is sent."""
        self._ending = error
        self._senders.fail(error)

    def _on_bye(self, reason: str) -> None:
        self._bye_received = True
        self._send(Kind.BYE_ACK)
        if self._ending is None:
            self._finish(LinkBroken(self.peer.instance, f"the peer closed the link: {reason}"))

    def _finish(self, error: LinkError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._timer.cancel()
        self._end(error)
        self._calls.fail(error)
        self._round_trips.fail(error)
        if self._bye_received and isinstance(error, LinkBroken):
            # The peer drops the wire once it has our BYE_ACK; dropping it first could lose that very frame.
            self._timer = self._loop.call_later(_LINGER_S, self._drop_wire)
        else:
            self._drop_wire()
        level = log.info if isinstance(error, LinkClosed) or self._bye_received else log.warning
        level("link_down", peer=self.peer.instance, problem=error.problem)
        self._down.set_result(error)
        assert self._handler is not None
        try:
            self._handler.on_closed(self, error)
        except Exception as failure:
            log.error("handler_failed", peer=self.peer.instance, exc_info=failure)

    def _drop_wire(self) -> None:
        self._timer.cancel()
        self._wire.close()
        if not self._gone.done():
            self._gone.set_result(None)
