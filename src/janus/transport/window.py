"""Order and credits of one link, as pure counting: no clock, no I/O.

Every frame has a sequence number; frames of the kinds CONTROL, DISPATCH and COMBINE cost a credit too. ``ack`` in each
header is how many of those the sender has taken so far, so any frame returns credits. Counters wrap at 2**32 on the
wire and are unbounded here.
"""

from __future__ import annotations

from janus.transport.frame import FIRST_LINK_KIND, Header

_MASK = 0xFFFFFFFF


class SendWindow:
    """What this side has sent, and how much of it the peer has taken."""

    __slots__ = ("acked", "frames", "limit", "sent")

    def __init__(self, limit: int) -> None:
        #: Frames that may be on their way and not taken.
        self.limit = limit
        self.frames = 0
        self.sent = 0
        self.acked = 0

    @property
    def credits(self) -> int:
        """Frames that may be sent now."""
        return self.limit - self.sent + self.acked

    def next_seq(self) -> int:
        """Return the sequence number of the frame that is sent now."""
        seq = self.frames & _MASK
        self.frames += 1
        return seq

    def acknowledged(self, ack: int) -> bool:
        """Note the peer's ``ack``; return whether it returns any credit.

        Raises:
            ValueError: the peer has taken more than was sent.
        """
        returned = (ack - self.acked) & _MASK
        if returned > self.sent - self.acked:
            raise ValueError(f"{returned} frames acknowledged, {self.sent - self.acked} are on their way")
        self.acked += returned
        return returned > 0


class ReceiveWindow:
    """What has come from the peer, and how much of it this side has taken."""

    __slots__ = ("_announce_every", "announced", "frames", "limit", "received", "taken")

    def __init__(self, limit: int) -> None:
        #: Frames that the peer may have on their way and not taken; granted in the handshake.
        self.limit = limit
        self.frames = 0
        self.received = 0
        self.taken = 0
        self.announced = 0
        self._announce_every = max(1, limit // 2)

    @property
    def held(self) -> int:
        """Frames received and not yet taken."""
        return self.received - self.taken

    def accept(self, header: Header) -> None:
        """Count a frame in.

        Raises:
            ValueError: it is out of order, or the peer had no credit for it.
        """
        if header.seq != self.frames & _MASK:
            raise ValueError(f"frame {header.seq} came where {self.frames & _MASK} was due")
        self.frames += 1
        if header.kind < FIRST_LINK_KIND:
            if self.received - self.taken >= self.limit:
                raise ValueError(f"more than the {self.limit} frames that were granted are on their way")
            self.received += 1

    def ack(self) -> int:
        """Return the ``ack`` for a header that is sent now."""
        self.announced = self.taken
        return self.taken & _MASK

    def take(self) -> bool:
        """Count one frame as taken; return whether the peer should be told even if nothing else goes its way."""
        self.taken += 1
        return self.taken - self.announced >= self._announce_every
