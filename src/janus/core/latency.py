"""Latencies as a histogram that is small, adds up over sources, and can be taken apart by time.

Buckets are 5 % wide, so a percentile is within 2.5 % of the true one whatever its magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

_FIRST_S = 1e-4
_RATIO = 1.05
_LOG_RATIO = math.log(_RATIO)
#: The last bucket holds everything above 1,000 s.
_LAST = math.ceil(math.log(1e3 / _FIRST_S) / _LOG_RATIO)


class LatencyHistogram:
    """Counts per bucket; empty buckets take no room."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._counts = dict(counts or {})

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[int, int]]) -> LatencyHistogram:
        """What ``pairs`` returned; buckets that cannot be are left out."""
        return cls({bucket: count for bucket, count in pairs if 0 <= bucket <= _LAST and count > 0})

    def pairs(self) -> list[tuple[int, int]]:
        """``(bucket, count)``, in order."""
        return sorted(self._counts.items())

    def add(self, seconds: float, count: int = 1) -> None:
        """Count a latency ``count`` times."""
        bucket = 0 if seconds <= _FIRST_S else min(_LAST, math.ceil(math.log(seconds / _FIRST_S) / _LOG_RATIO))
        self._counts[bucket] = self._counts.get(bucket, 0) + count

    def plus(self, other: LatencyHistogram) -> LatencyHistogram:
        """Both together."""
        counts = dict(self._counts)
        for bucket, count in other._counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        return LatencyHistogram(counts)

    def since(self, earlier: LatencyHistogram) -> LatencyHistogram:
        """What was added after ``earlier``, which was this one once."""
        before = earlier._counts
        counts = {bucket: count - before.get(bucket, 0) for bucket, count in self._counts.items()}
        return LatencyHistogram({bucket: count for bucket, count in counts.items() if count > 0})

    @property
    def total(self) -> int:
        """Latencies counted."""
        return sum(self._counts.values())

    def percentile(self, percent: float) -> float | None:
        """The latency that ``percent`` of them do not exceed, seconds; ``None`` of none."""
        total = self.total
        if not total:
            return None
        rank = max(1, math.ceil(percent / 100 * total))
        for bucket, count in sorted(self._counts.items()):
            rank -= count
            if rank <= 0:
                # The middle of the bucket, as ratios go.
                return _FIRST_S * _RATIO ** (bucket - 0.5) if bucket else _FIRST_S
        raise AssertionError("ranks are at most the total")
