"""How long to wait before the next attempt, and how often to speak of it."""

from __future__ import annotations

import random
import time

_FIRST_S, _LONGEST_S = 0.05, 2.0


class Backoff:
    """Exponential from 50 ms to 2 s, with jitter, so that a restarted peer is not met by everyone at once."""

    def __init__(self) -> None:
        self._next_s = _FIRST_S

    def next_s(self) -> float:
        """Return the seconds to wait now."""
        wait = self._next_s * random.uniform(0.5, 1.0)
        self._next_s = min(self._next_s * 2, _LONGEST_S)
        return wait

    def reset(self) -> None:
        """The attempt succeeded."""
        self._next_s = _FIRST_S


class Reminder:
    """Says whether a lasting trouble should be logged (again): at once, then every ``every_s`` seconds."""

    def __init__(self, every_s: float = 5.0) -> None:
        self._every_s = every_s
        self._last: tuple[object, float] | None = None

    def due(self, trouble: object) -> bool:
        """Whether ``trouble`` is new, or was last spoken of ``every_s`` ago. ``None`` = no trouble: start afresh."""
        if trouble is None:
            self._last = None
            return False
        now = time.monotonic()
        if self._last is not None and self._last[0] == trouble and now - self._last[1] < self._every_s:
            return False
        self._last = (trouble, now)
        return True
