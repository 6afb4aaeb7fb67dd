"""Where a replica is read from, and how fast: pure; the clock and the measurements are passed in."""

from __future__ import annotations

from collections.abc import Iterable

from janus.config.options import LoadSource

#: The checkpoint; every other source is the name of an instance.
DISK = ""
#: Weight of a new measurement: a few replicas tell when a disk's cache or a network has become another.
_WEIGHT = 0.3
#: Every so many replicas the source that was measured longest ago goes first, or it would never be known to be faster.
_EXPLORE_EVERY = 32
#: A source that failed is the last resort for so long, in seconds.
_PENALTY_S = 30.0
#: Peers that are tried for one replica besides the checkpoint.
_MAX_PEERS = 2
#: What may go at once after a pause, as seconds of the rate.
_BURST_S = 0.25


class SourceChoice:
    """Prefers what has been faster, tries what is unknown, and falls back on the rest."""

    def __init__(self, mode: LoadSource = "auto") -> None:
        self._mode = mode
        #: Bytes per second of each source, smoothed exponentially.
        self._speeds: dict[str, float] = {}
        #: By source: which replica, counted from 0, it was measured with last.
        self._measured_at: dict[str, int] = {}
        self._failed_until: dict[str, float] = {}
        self._replicas = 0

    @property
    def speeds(self) -> dict[str, float]:
        """Bytes per second of each source that was measured."""
        return dict(self._speeds)

    def order(self, peers: Iterable[str], now: float) -> list[str]:
        """Return the sources to try for the next replica, best first; the checkpoint is always among them.

        Args:
            peers: instances that have the replica, in any order.
            now: seconds on any steady clock.
        """
        self._replicas += 1
        names = list(dict.fromkeys(peers)) if self._mode != "disk" else []
        names.sort(key=lambda name: self._rank(name, now))
        if self._mode == "peer":
            return [*names[:_MAX_PEERS], DISK]
        sources = sorted([DISK, *names[:_MAX_PEERS]], key=lambda name: self._rank(name, now))
        if self._replicas % _EXPLORE_EVERY == 0:
            sound = [name for name in sources if not self._in_penalty(name, now)] or sources
            oldest = min(sound, key=lambda name: self._measured_at.get(name, -1))
            sources.remove(oldest)
            sources.insert(0, oldest)
        return sources

    def measured(self, source: str, nbytes: int, seconds: float) -> None:
        """``source`` gave ``nbytes`` in ``seconds``, waits for the rate limit not counted."""
        speed = nbytes / max(seconds, 1e-9)
        old = self._speeds.get(source)
        self._speeds[source] = speed if old is None else old + _WEIGHT * (speed - old)
        self._measured_at[source] = self._replicas
        self._failed_until.pop(source, None)

    def failed(self, source: str, now: float) -> None:
        """``source`` refused, broke or was too late."""
        self._failed_until[source] = now + _PENALTY_S

    def _in_penalty(self, source: str, now: float) -> bool:
        return self._failed_until.get(source, now) > now

    def _rank(self, source: str, now: float) -> tuple[bool, bool, float]:
        """Sound before failed, unknown before known, then fast before slow."""
        return (self._in_penalty(source, now), source in self._speeds, -self._speeds.get(source, 0.0))


class RateLimit:
    """A token bucket that may go into debt: any piece may go at once when nothing is owed, and is paid for by waiting.

    In every window of t seconds at most ``bytes_per_s * (t + 0.25)`` bytes and one piece begin.
    """

    def __init__(self, bytes_per_s: float) -> None:
        """``bytes_per_s``: 0 for no limit."""
        self._rate = bytes_per_s
        self._burst = bytes_per_s * _BURST_S
        self._tokens = self._burst
        self._at: float | None = None

    def take(self, nbytes: int, now: float) -> float:
        """Return how many seconds after ``now`` the next ``nbytes`` may begin; they count as sent."""
        if not self._rate:
            return 0.0
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        wait_s = max(0.0, -self._tokens / self._rate)
        self._tokens -= nbytes
        return wait_s

    def give(self, nbytes: int) -> None:
        """Take back a ``take``: these bytes will not go."""
        self._tokens += nbytes
