"""What users of a link see besides the link itself: frames, the handler they bring, options and counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from janus.errors import LinkError
from janus.messages import Message
from janus.transport.buffers import Buffer, Bytes
from janus.transport.frame import MAX_PAYLOAD_BYTES, Header

if TYPE_CHECKING:
    from janus.transport.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkOptions:
    """How a link behaves. The same on both sides is sensible, not required."""

    #: Frames that the peer may send before it must wait for us to take some.
    credits: int = 64
    #: A PING goes out this often, in seconds.
    heartbeat_s: float = 0.5
    #: Nothing heard for so many seconds means that the peer is gone. Longer than its longest uninterrupted computation.
    silence_s: float = 3.0
    #: Largest payload accepted, in bytes.
    max_payload: int = MAX_PAYLOAD_BYTES
    #: The handshake must be done within so many seconds.
    handshake_s: float = 3.0
    #: Listener only: connections that may be in the handshake at a time.
    max_handshakes: int = 64


class LinkHandler(Protocol):
    """Who a link reports to. All methods are called on the loop and must not block.

    An exception from ``on_message`` or ``on_frame`` ends the link: going on would silently lose a frame that the peer
    believes taken.
    """

    def on_message(self, link: Link, request_id: int, message: Message) -> None:
        """A control message that is not the answer to a ``call``. To answer it: ``link.reply(request_id, ...)``."""

    def on_frame(self, link: Link, frame: InFrame) -> None:
        """A DISPATCH, COMBINE or REPLICA frame. Keep it as long as its payload is used."""

    def on_closed(self, link: Link, error: LinkError) -> None:
        """The link is down: ``LinkClosed``, ``LinkBroken`` or ``ProtocolViolation``. Called exactly once."""


class OutFrame:
    """A frame to fill and ``post``. ``payload``: uint8, 64-byte aligned, writable."""

    __slots__ = ("_buffer", "payload")

    def __init__(self, payload: Bytes, buffer: Buffer) -> None:
        self.payload = payload
        self._buffer: Buffer | None = buffer

    @property
    def address(self) -> int:
        """Where ``payload`` lies in memory; valid until the frame is posted."""
        buffer = self._buffer
        return self.payload.ctypes.data if buffer is None else buffer.address + buffer.at


class InFrame:
    """A received tensor frame. ``payload``: uint8, 64-byte aligned, writable, the receiver's until ``release``.

    A frame that is dropped without ``release`` returns its credit all the same, but not its memory to the pool, so
    views of ``payload`` that are still around stay valid. A frame that has been forwarded, or was sent by ``forward``,
    shares its memory with other receivers: read it, do not write to it.
    """

    __slots__ = ("_buffer", "_link", "header", "payload")

    def __init__(self, header: Header, payload: Bytes, buffer: Buffer | None = None, link: Link | None = None) -> None:
        self.header = header
        self.payload = payload
        self._buffer = buffer
        self._link = link

    @property
    def address(self) -> int:
        """Where ``payload`` lies in memory; valid until ``release``."""
        buffer = self._buffer
        return self.payload.ctypes.data if buffer is None else buffer.address + buffer.at

    def release(self) -> None:
        """Give memory and credit back. No view of ``payload`` may be used afterwards. Idempotent, from any thread."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            buffer.release()
        link, self._link = self._link, None
        if link is not None:
            link._taken()

    def __del__(self) -> None:
        if self._buffer is not None:
            self._buffer.dropped()
        if self._link is not None:
            self._link._taken()


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
