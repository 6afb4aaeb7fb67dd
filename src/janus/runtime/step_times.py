"""Where a step's time goes, measured on every step: a few clock readings, no allocation."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class StepTimes:
    """Sums since the start, in nanoseconds. ``dispatch`` + ``combine`` = what the exchange took, waiting included."""

    steps: int = 0
    tokens: int = 0
    plan_ns: int = 0
    embed_ns: int = 0
    attention_ns: int = 0
    gate_ns: int = 0
    dispatch_ns: int = 0
    combine_ns: int = 0
    dense_ns: int = 0
    logits_ns: int = 0
    sample_ns: int = 0
    publish_ns: int = 0
    #: Whole steps, from plan to publish.
    total_ns: int = 0

    def as_dict(self) -> dict[str, int]:
        """The fields by name."""
        return asdict(self)


class Stopwatch:
    """Charges the time since the last ``lap`` to a field of ``StepTimes``."""

    __slots__ = ("_last", "_times")

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._last = time.perf_counter_ns()

    def lap(self, field: str) -> None:
        """Add the time since the last lap to ``field``."""
        now = time.perf_counter_ns()
        setattr(self._times, field, getattr(self._times, field) + now - self._last)
        self._last = now
