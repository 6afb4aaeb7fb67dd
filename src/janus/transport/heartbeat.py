"""When silence means that the peer is gone. Pure: the caller brings the time."""

from __future__ import annotations

#: A tick that comes this late means that our own loop stood still; the peer is not to blame for that silence.
_STALL_S = 0.25


class Heartbeat:
    """Watches one peer: ``last_heard`` is set for every frame, ``tick`` called every ``interval_s``."""

    __slots__ = ("_due", "_interval_s", "_silence_s", "last_heard", "rtt_s")

    def __init__(self, now: float, *, interval_s: float, silence_s: float) -> None:
        self._interval_s = interval_s
        self._silence_s = silence_s
        #: When the last frame came; set by the link, without a call for each frame.
        self.last_heard = now
        self._due = now + interval_s
        #: Round trip of the last PING in seconds, ``None`` before the first.
        self.rtt_s: float | None = None

    @property
    def due(self) -> float:
        """When to call ``tick`` next."""
        return self._due

    def tick(self, now: float) -> float | None:
        """Return for how long the peer has been silent if that is too long, else ``None``: then send a PING."""
        late = now - self._due
        if late > _STALL_S:
            self.last_heard += late
        self._due = now + self._interval_s
        silent = now - self.last_heard
        return silent if silent > self._silence_s else None

    def ponged(self, now: float, stamp: int) -> None:
        """Note the answer to the PING that carried ``stamp(then)``."""
        self.rtt_s = max(0.0, now - stamp * 1e-6)

    @staticmethod
    def stamp(now: float) -> int:
        """Return ``now`` as a PING carries it: whole microseconds."""
        return int(now * 1e6)
