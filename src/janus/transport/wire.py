"""The wire: what a link needs from UCX, from a socket or from memory, and nothing more.

A wire moves whole frames between two ends, in order and intact, until it is lost.
It knows no identities, credits or deadlines. All methods and callbacks run on the event loop that made the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from janus.errors import LinkError
from janus.transport.buffers import Buffer, BufferPool

TransportKind: TypeAlias = Literal["ucx", "tcp", "inproc", "shm"]
TRANSPORT_KINDS: tuple[TransportKind, ...] = ("ucx", "tcp", "inproc", "shm")

#: Largest frame (header included) that is taken from a peer that has not proven the cluster secret.
MAX_UNPROVEN_FRAME_BYTES = 64 << 10


class WireHandler(Protocol):
    """Who a wire reports to. Both are called on the loop and must not block."""

    def on_frame(self, buffer: Buffer, nbytes: int) -> None:
        """A whole frame of ``nbytes``, header included, lies in ``buffer``, which now belongs to the handler.

        Its header is in ``buffer.header``, its payload in ``buffer.array[buffer.at :]``.
        """

    def on_lost(self, error: LinkError) -> None:
        """The wire is gone (``LinkBroken``) or the peer sent what is no frame (``ProtocolViolation``).

        Called at most once, and never after ``Wire.close``. Frames that came before have all been delivered.
        """


class Wire(Protocol):
    """One end of a connection."""

    #: ``host:port`` of the other end, as far as it is known, else a name for the logs.
    address: str
    #: Frames larger than this are a violation. Small until the handshake is done.
    max_frame: int
    #: Whether the peer has proven the cluster secret; set by the link. Before, memory is not shared with it.
    proven: bool
    #: Where receive buffers come from, and send buffers should.
    pool: BufferPool

    def start(self, handler: WireHandler) -> None:
        """Report to ``handler`` from now on; may be called again to replace it."""

    def send(self, buffer: Buffer, nbytes: int) -> None:
        """Send the frame in ``buffer``, ``nbytes`` with its header. Takes over the buffer. Never waits.

        The caller bounds how many frames are on their way.
        """

    def reference(self, buffer: Buffer, first: int, nbytes: int) -> Buffer | None:
        """Return a buffer that this wire can ``send`` with ``nbytes`` of payload from byte ``first`` of ``buffer``'s.

        It shares the memory of ``buffer``, which stays the caller's. ``None`` where this wire would have to copy.
        """

    def close(self) -> None:
        """Drop the connection now; what was not yet sent may be lost. Idempotent."""


class WireListener(Protocol):
    """Accepts wires until closed."""

    @property
    def port(self) -> int:
        """The port in use."""

    def close(self) -> None:
        """Stop accepting. Wires that were accepted stay."""


#: Called for each accepted wire; calls ``Wire.start`` before it returns.
OnWire: TypeAlias = Callable[[Wire], None]


class Transport(Protocol):
    """A way to make wires on the running loop."""

    async def listen(self, host: str, port: int, on_wire: OnWire, *, pool: BufferPool | None = None) -> WireListener:
        """Accept wires at ``host:port`` (port 0: any). Raises ``OSError`` when the port cannot be bound.

        ``pool`` is where the wires' buffers come from; ``None``: one of their own.
        """

    async def connect(self, host: str, port: int, *, timeout_s: float, pool: BufferPool | None = None) -> Wire:
        """Return a wire to ``host:port``. Raises ``LinkBroken`` or ``DeadlineExceeded``."""

    def hold(self) -> Callable[[], None]:
        """Keep what is costly to set up alive until the returned function is called."""
