"""The link: frames between two proven instances, strictly in order, exactly once, bounded, and watched.

A frame of kind CONTROL, DISPATCH or COMBINE costs one of the credits that the peer granted in the handshake; the credit
comes back when the peer has *taken* the frame: a message when its handler returns, a tensor frame when the receiver
releases (or drops) it. So a peer that does not consume stops the sender (``LinkBusy``) and memory stays bounded on
both sides. A peer that falls silent (stopped, hung, unreachable) is declared broken by the heartbeat; one that dies,
by the wire, within milliseconds.

All methods are for the link's own event loop, except ``InFrame.release``.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import structlog

from janus.errors import DeadlineExceeded, LinkBroken, LinkBusy, LinkClosed, LinkError, ProtocolViolation
from janus.messages import Message, decode, encode
from janus.messages.control import Identity
from janus.transport import frame as framing
from janus.transport.buffers import Buffer, Bytes
from janus.transport.frame import HEADER_BYTES, Header, Kind
from janus.transport.wire import Wire

log = structlog.get_logger(__name__)

_SEQ_MASK = 0xFFFFFFFF
#: Request ids of ``call`` have bit 63 set, and bit 62 on the listening side, so an answer is never taken for a request.
_CALL_BIT = 1 << 63
_LISTENER_BIT = 1 << 62
#: A tick that comes this late means that our own loop stood still; the peer is not to blame for that silence.
_STALL_S = 0.25
#: After the peer's BYE: how long its connection is kept so that our BYE_ACK reaches it.
_LINGER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How a link behaves. The same on both sides is sensible, not required."""

    #: Frames that the peer may send before it must wait for us to take some.
    credits: int = 64
    #: A PING goes out this often, in seconds.
    heartbeat_s: float = 0.5
    #: Nothing heard for so many seconds means that the peer is gone.
    silence_s: float = 3.0
    #: Largest payload accepted, in bytes.
    max_payload: int = framing.MAX_PAYLOAD_BYTES
    #: The handshake must be done within so many seconds.
    handshake_s: float = 3.0
    #: Listener only: connections that may be in the handshake at a time.
    max_handshakes: int = 64


class LinkHandler(Protocol):
    """Who a link reports to. All methods are called on the loop and must not block."""

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """A control message that is not the answer to a ``call``. To answer it: ``link.reply(request_id, ...)``."""

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """A DISPATCH or COMBINE frame. Keep it as long as its payload is used."""

    def on_closed(self, link: Link, error: LinkError) -> None:
        """The link is down: ``LinkClosed``, ``LinkBroken`` or ``ProtocolViolation``. Called exactly once."""


class OutFrame:
    """A frame to fill and ``post``. ``payload``: uint8, 64-byte aligned, writable."""

    __slots__ = ("_buffer", "payload")

    def __init__(self, payload: Bytes, buffer: Buffer) -> None:
        self.payload = payload
        self._buffer: Buffer | None = buffer


class InFrame:
    """A received tensor frame. ``payload``: uint8, 64-byte aligned, writable, the receiver's until ``release``.

    A frame that is dropped without ``release`` returns its credit all the same, but not its memory to the pool, so
    views of ``payload`` that are still around stay valid.
    """

    __slots__ = ("_buffer", "_link", "header", "payload")

    def __init__(
        self, header: Header, payload: Bytes, *, buffer: Buffer | None = None, link: Link | None = None
    ) -> None:
        self.header = header
        self.payload = payload
        self._buffer = buffer
        self._link = link

    def release(self) -> None:
        """Give memory and credit back. No view of ``payload`` may be used afterwards. Idempotent, from any thread."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        self._return_credit()

    def _return_credit(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link._taken()

    def __del__(self) -> None:
        self._return_credit()


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStats:
    """A snapshot for ``/metrics`` and ``janus status``. Frames and bytes (headers included) since the start."""

    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    #: Frames that may be sent right now without waiting.
    credits: int
    #: Frames sent that the peer has not taken yet.
    in_flight: int
    #: Frames received that have not been released here yet.
    held: int
    #: Round trip of the last PING in milliseconds, ``None`` before the first.
    rtt_ms: float | None
    #: Seconds since the handshake.
    age_s: float


class Link:
    """One end of a link. Made by ``janus.transport.connect`` and ``listen``, never directly."""

    def __init__(
        self,
        wire: Wire,
        *,
        local: Identity,
        peer: Identity,
        options: LinkOptions,
        credits: int,
        listening: bool,
    ) -> None:
        self.peer = peer
        self.local = local
        self.address = wire.address
        self._wire = wire
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._handler: LinkHandler | None = None
        self._error: LinkError | None = None
        self._done: asyncio.Future[LinkError] = self._loop.create_future()
        # Once set, nothing more may be posted: our close(), or the peer's BYE.
        self._ending: LinkError | None = None
        self._bye_received = False
        self._lingering = False
        # Sending: frames on the wire, and those of them that cost a credit.
        self._seq_out = 0
        self._window = credits
        self._sent = 0
        self._acked = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        # Receiving.
        self._seq_in = 0
        self._received = 0
        self._taken_count = 0
        self._ack_sent = 0
        self._credit_every = max(1, options.credits // 2)
        # Calls.
        self._call_bits = _CALL_BIT | (_LISTENER_BIT if listening else 0)
        self._call_ids = itertools.count(self._call_bits)
        self._calls: dict[int, asyncio.Future[Message]] = {}
        # Watching.
        now = self._loop.time()
        self._born = self._last_heard = now
        self._tick_due = now + options.heartbeat_s
        self._timer = self._loop.call_at(self._tick_due, self._tick)
        self._rtt_s: float | None = None
        self._bytes_in = self._bytes_out = 0
        self._close_timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "up" if self._error is None else f"down: {self._error}"
        return f"<Link {self.local.instance} - {self.peer.instance} at {self.address}, {state}>"

    def attach(self, handler: LinkHandler) -> None:
        """Start delivering to ``handler``. For the opening of links only."""
        self._handler = handler
        self._wire.max_frame = self._options.max_payload + HEADER_BYTES
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
        return self._window - (self._sent - self._acked)

    async def wait_closed(self) -> LinkError:
        """Return why the link went down, once it has. Cancelling the wait changes nothing."""
        return await asyncio.shield(self._done)

    def stats(self) -> LinkStats:
        """Return counters; see ``LinkStats``."""
        return LinkStats(
            frames_in=self._seq_in,
            frames_out=self._seq_out,
            bytes_in=self._bytes_in,
            bytes_out=self._bytes_out,
            credits=self.credits,
            in_flight=self._sent - self._acked,
            held=self._received - self._taken_count,
            rtt_ms=None if self._rtt_s is None else self._rtt_s * 1e3,
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
        payload_len: int | None = None,
    ) -> None:
        """Send ``frame`` (its first ``payload_len`` bytes), without waiting. The frame must not be used afterwards.

        Raises:
            LinkBusy: no credit; the frame stays the caller's and may be posted again.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or going down.
            ValueError: the frame has been posted already, or ``payload_len`` exceeds it.
        """
        self._require_credit()
        buffer, payload = frame._buffer, frame.payload
        if buffer is None:
            raise ValueError("this frame has been posted already")
        nbytes = len(payload) if payload_len is None else payload_len
        if not 0 <= nbytes <= len(payload):
            raise ValueError(f"payload_len {nbytes} exceeds the frame's {len(payload)} bytes")
        framing.pack_fields(
            buffer.view,
            kind,
            request_id,
            nbytes,
            seq=self._seq_out & _SEQ_MASK,
            ack=self._taken_count & _SEQ_MASK,
            epoch=epoch,
            layer=layer,
            dtype=dtype,
            top_k=top_k,
            rows=rows,
            cols=cols,
            deadline_ms=deadline_ms,
        )
        frame._buffer = None
        self._sent += 1
        self._transmit(buffer, HEADER_BYTES + nbytes)

    def post_message(self, message: Message, *, request_id: int = 0) -> None:
        """Send ``message`` without waiting.

        Raises:
            LinkBusy: no credit.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or going down.
        """
        self._require_credit()
        self._sent += 1
        self._send_small(Kind.CONTROL, request_id, encode(message))

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
        while self._ending is None and self.credits <= 0:
            await self._wait_for_credit(deadline, timeout_s)
        self.post_message(message, request_id=request_id)

    async def call(self, message: Message, *, timeout_s: float) -> Message:
        """Send ``message`` and return the peer's ``reply``. If cancelled or late, the answer is dropped when it comes.

        Raises:
            DeadlineExceeded: no credit or no answer within ``timeout_s``.
            LinkClosed, LinkBroken, ProtocolViolation: the link is down or went down before the answer.
        """
        deadline = self._loop.time() + timeout_s
        request_id = next(self._call_ids)
        await self.send_message(message, request_id=request_id, timeout_s=timeout_s)
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._calls[request_id] = answer
        late = DeadlineExceeded(self.peer.instance, f"no answer to {type(message).__name__} within {timeout_s:g} s")
        timer = self._loop.call_at(deadline, _fail, answer, late)
        try:
            return await answer
        finally:
            timer.cancel()
            self._calls.pop(request_id, None)

    def _require_credit(self) -> None:
        if self._ending is not None:
            raise _again(self._ending)
        if self._sent - self._acked >= self._window:
            raise LinkBusy(self.peer.instance, f"{self._window} frames are on their way and not taken yet")

    async def _wait_for_credit(self, deadline: float, timeout_s: float) -> None:
        credit: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(credit)
        late = DeadlineExceeded(self.peer.instance, f"no credit to send within {timeout_s:g} s")
        timer = self._loop.call_at(deadline, _fail, credit, late)
        try:
            await credit
        except asyncio.CancelledError:
            if credit.done() and not credit.cancelled():
                self._wake_waiters()  # the credit that we were given is the next one's
            raise
        finally:
            timer.cancel()
            if credit in self._waiters:
                self._waiters.remove(credit)

    def _wake_waiters(self) -> None:
        for _ in range(min(self.credits, len(self._waiters))):
            credit = self._waiters.popleft()
            if not credit.done():
                credit.set_result(None)

    def _send_small(self, kind: Kind, request_id: int, payload: bytes) -> None:
        buffer = self._wire.pool.take(HEADER_BYTES + len(payload))
        framing.pack_fields(
            buffer.view,
            kind,
            request_id,
            len(payload),
            seq=self._seq_out & _SEQ_MASK,
            ack=self._taken_count & _SEQ_MASK,
        )
        nbytes = HEADER_BYTES + len(payload)
        if payload:
            buffer.view[HEADER_BYTES:nbytes] = payload
        self._transmit(buffer, nbytes)

    def _transmit(self, buffer: Buffer, nbytes: int) -> None:
        self._seq_out += 1
        self._bytes_out += nbytes
        self._ack_sent = self._taken_count
        self._wire.send(buffer, nbytes)

    # -- receiving (called by the wire) ---------------------------------------------------------------------------

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        """Take a frame from the wire."""
        if self._error is not None:
            return
        self._last_heard = self._loop.time()
        try:
            header = framing.unpack(buffer.view[:nbytes], max_payload=self._options.max_payload)
            self._check(header, nbytes)
        except ValueError as error:
            self._violated(str(error))
            return
        self._seq_in += 1
        self._bytes_in += nbytes
        if header.ack != self._acked & _SEQ_MASK:
            self._acked += (header.ack - self._acked) & _SEQ_MASK
            if self._waiters:
                self._wake_waiters()
        if header.kind >= framing.FIRST_LINK_KIND:
            self._on_link_frame(header, buffer)
            return
        self._received += 1
        if header.kind == Kind.CONTROL:
            self._on_control(header, buffer)
        else:
            payload = buffer.array[HEADER_BYTES:nbytes]
            self._hand_over(InFrame(header, payload, buffer=buffer, link=self))

    def on_lost(self, error: LinkError) -> None:
        """The wire is gone."""
        if self._bye_received or (isinstance(self._ending, LinkClosed) and not isinstance(error, ProtocolViolation)):
            assert self._ending is not None
            self._finish(self._ending)
        else:
            self._finish(type(error)(self.peer.instance, f"{error.problem} ({self.address})"))

    def _check(self, header: Header, nbytes: int) -> None:
        if header.payload_len != nbytes - HEADER_BYTES:
            here = nbytes - HEADER_BYTES
            raise ValueError(f"truncated frame: the header announces {header.payload_len} bytes, {here} came")
        if header.seq != self._seq_in & _SEQ_MASK:
            raise ValueError(f"frame {header.seq} came where {self._seq_in & _SEQ_MASK} was due")
        if (header.ack - self._acked) & _SEQ_MASK > self._sent - self._acked:
            raise ValueError(f"{header.ack} frames acknowledged, {self._sent} sent")
        if header.kind < framing.FIRST_LINK_KIND and self._received - self._taken_count >= self._options.credits:
            raise ValueError(f"more than the {self._options.credits} frames that were granted are on their way")

    def _on_control(self, header: Header, buffer: Buffer) -> None:
        end = HEADER_BYTES + header.payload_len
        try:
            message = decode(buffer.view[HEADER_BYTES:end])
        except ValueError as error:
            self._violated(str(error))
            return
        buffer.release()
        if header.request_id & (_CALL_BIT | _LISTENER_BIT) == self._call_bits:
            answer = self._calls.pop(header.request_id, None)
            if answer is not None and not answer.done():
                answer.set_result(message)
        else:
            assert self._handler is not None
            try:
                self._handler.on_message(self, header.request_id, message)
            except Exception as error:
                self._handler_failed(error)
        self._taken()

    def _hand_over(self, frame: InFrame) -> None:
        assert self._handler is not None
        try:
            self._handler.on_frame(self, frame)
        except Exception as error:
            self._handler_failed(error)

    def _handler_failed(self, error: Exception) -> None:
        # To go on would silently lose a frame that the peer believes taken.
        log.error("handler_failed", peer=self.peer.instance, exc_info=error)
        self.abort(f"the handler failed: {type(error).__name__}: {error}")

    def _on_link_frame(self, header: Header, buffer: Buffer) -> None:
        kind, reason = header.kind, b""
        if kind == Kind.BYE:
            reason = bytes(buffer.array[HEADER_BYTES : HEADER_BYTES + min(header.payload_len, 1024)])
        buffer.release()
        if kind == Kind.PING:
            self._send_small(Kind.PONG, header.request_id, b"")
        elif kind == Kind.PONG:
            self._rtt_s = self._loop.time() - header.request_id * 1e-6
        elif kind == Kind.BYE:
            self._on_bye(reason.decode(errors="replace"))
        elif kind == Kind.BYE_ACK and isinstance(self._ending, LinkClosed):
            self._finish(self._ending)

    def _taken(self) -> None:
        """Count one frame as taken; tell the peer now and then when no other frame does."""
        if threading.get_ident() != self._thread:
            try:
                self._loop.call_soon_threadsafe(self._taken)
            except RuntimeError:  # the loop is closed, and the link with it
                return
            return
        self._taken_count += 1
        if self._taken_count - self._ack_sent >= self._credit_every and self._ending is None:
            self._send_small(Kind.CREDIT, 0, b"")

    # -- watching -------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = self._loop.time()
        late = now - self._tick_due
        if late > _STALL_S:
            self._last_heard += late
        silent = now - self._last_heard
        if silent > self._options.silence_s:
            problem = f"silent for {silent:.1f} s ({self.address}): stopped, overloaded or unreachable"
            self._finish(LinkBroken(self.peer.instance, problem))
            return
        self._send_small(Kind.PING, int(now * 1e6), b"")
        self._tick_due = now + self._options.heartbeat_s
        self._timer = self._loop.call_at(self._tick_due, self._tick)

    # -- ending ---------------------------------------------------------------------------------------------------

    async def close(self, reason: str, *, timeout_s: float = 2.0) -> None:
        """Deliver what was posted, say goodbye, and close; after ``timeout_s`` close anyway. Idempotent.

        If cancelled, the link still closes, in the background and within ``timeout_s``.
        """
        if self._error is None and self._close_timer is None:
            closing = LinkClosed(self.peer.instance, f"closed: {reason}")
            self._end(closing)
            self._send_small(Kind.BYE, 0, reason.encode()[:1024])
            self._close_timer = self._loop.call_later(timeout_s, self._finish, closing)
        await self.wait_closed()

    def abort(self, reason: str) -> None:
        """Close now; what was posted may be lost. Idempotent."""
        self._finish(LinkClosed(self.peer.instance, f"closed: {reason}"))

    def _end(self, error: LinkError) -> None:
        """From here on nothing new is sent."""
        self._ending = error
        for waiter in self._waiters:
            _fail(waiter, _again(error))
        self._waiters.clear()

    def _on_bye(self, reason: str) -> None:
        self._bye_received = True
        self._send_small(Kind.BYE_ACK, 0, b"")
        if self._ending is None:
            # The peer drops the wire once it has our BYE_ACK; dropping it here could lose that very frame.
            self._lingering = True
            self._finish(LinkBroken(self.peer.instance, f"the peer closed the link: {reason}"))

    def _violated(self, problem: str) -> None:
        self._finish(ProtocolViolation(self.peer.instance, f"{problem} ({self.address})"))

    def _finish(self, error: LinkError) -> None:
        if self._error is not None:
            if self._lingering:  # the wire of a link that the peer closed is gone, or has had its time
                self._lingering = False
                self._wire.close()
            return
        self._error = error
        self._end(error)
        self._timer.cancel()
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._lingering:
            self._loop.call_later(_LINGER_S, self._finish, error)
        else:
            self._wire.close()
        for answer in self._calls.values():
            _fail(answer, _again(error))
        self._calls.clear()
        level = log.info if isinstance(error, LinkClosed) or self._bye_received else log.warning
        level("link_down", peer=self.peer.instance, problem=error.problem)
        self._done.set_result(error)
        assert self._handler is not None
        try:
            self._handler.on_closed(self, error)
        except Exception as failure:
            log.error("handler_failed", peer=self.peer.instance, exc_info=failure)


def _again(error: LinkError) -> LinkError:
    """Return an equal error of its own, so that each waiter gets its own traceback."""
    return type(error)(error.peer, error.problem)


def _fail(future: asyncio.Future[None] | asyncio.Future[Message], error: LinkError) -> None:
    if not future.done():
        future.set_exception(error)
