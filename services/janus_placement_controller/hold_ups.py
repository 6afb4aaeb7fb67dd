"""Whether this process stood still lately: then it could hear nobody, and may judge nobody. Pure."""

from __future__ import annotations

#: Heartbeats for which nobody is judged after this process stood still.
_FORGIVEN_HEARTBEATS = 4


class HoldUps:
    """On a machine that is busy or was asleep, all instances would else be given up at once, and their work with them.

    Times are of any monotonic clock.
    """

    def __init__(self, heartbeat_s: float, *, now: float) -> None:
        self._heartbeat_s = heartbeat_s
        self._ticked_at = now
        #: Until when nobody is judged.
        self.judge_from = 0.0

    def tick(self, now: float) -> None:
        """This process runs, and does so every half heartbeat."""
        self._ticked_at = now

    def look(self, now: float) -> float:
        """Return for how many seconds this process stood still until ``now``; 0 when it did not, or has said so."""
        held_up = now - self._ticked_at
        if held_up <= self._heartbeat_s:
            return 0.0
        self._ticked_at = now
        # Who has given this controller up comes back, and everyone has reported once, by then.
        self.judge_from = now + _FORGIVEN_HEARTBEATS * self._heartbeat_s
        return held_up

    def may_judge(self, now: float) -> bool:
        """Whether silence means anything at ``now``."""
        return now >= self.judge_from
