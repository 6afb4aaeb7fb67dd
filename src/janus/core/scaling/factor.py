"""How far observations are from expectations."""

from __future__ import annotations

import math

#: Weight of one observation.
_NEW = 0.3


class Factor:
    """Observed over expected, as a running mean of its logarithm; 1 before the first observation."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = math.log(least), math.log(most)
        self._log: float | None = None

    @property
    def value(self) -> float:
        """The factor."""
        return math.exp(self._log or 0.0)

    def learn(self, observed: float, expected: float) -> None:
        """Take one observation in; times that are 0 or infinite say nothing."""
        if not (0 < observed < math.inf and 0 < expected < math.inf):
            return
        found = min(max(self._least, math.log(observed / expected)), self._most)
        # The first observation says more than an expectation that nobody has checked.
        self._log = found if self._log is None else self._log + _NEW * (found - self._log)
