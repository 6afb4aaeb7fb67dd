"""A run: consecutive steps of one attention instance that differ only in how much context they read."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Run:
    """``steps`` steps from ``start_s``; the first takes ``first_s``, each next one ``more_s`` more."""

    start_s: float
    steps: int
    first_s: float
    more_s: float
    #: Streams, one token each per step.
    streams: int

    def length_s(self, steps: int) -> float:
        """Return how long the first ``steps`` of it take."""
        return steps * self.first_s + self.more_s * (steps * (steps - 1) / 2)

    def end_s(self, steps: int | None = None) -> float:
        """Return when the first ``steps`` of it, or all, are over."""
        return self.start_s + self.length_s(self.steps if steps is None else steps)

    def done_by(self, now: float) -> int:
        """Return how many of its steps are over at ``now``."""
        passed = now - self.start_s
        if passed <= 0:
            return 0
        if self.more_s <= 0:
            found = int(passed / self.first_s)
        else:
            # The positive root of more/2 j^2 + (first - more/2) j = passed, in the form that does not cancel.
            b = self.first_s - self.more_s / 2
            found = int(2 * passed / (b + math.sqrt(b * b + 2 * self.more_s * passed)))
        found = min(max(found, 0), self.steps)
        # The root is rounded, the ends of steps are what counts.
        while found < self.steps and self.end_s(found + 1) <= now:
            found += 1
        while found and self.end_s(found) > now:
            found -= 1
        return found
