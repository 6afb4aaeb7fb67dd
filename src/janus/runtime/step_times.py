"""Where a step's time goes, measured on every step: a few clock readings, no allocation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class StepTimes:
    """Sums since the start, in nanoseconds. ``dispatch`` + ``shared`` + ``combine`` = a MoE layer, waiting included.

    ``shared``: a shared expert computes while its dispatch is away.

    With several micro-batches in flight the waiting of one includes the computing of the others.
    """

    steps: int = 0
    tokens: int = 0
    plan_ns: int = 0
    embed_ns: int = 0
    attention_ns: int = 0
    gate_ns: int = 0
    dispatch_ns: int = 0
    shared_ns: int = 0
    combine_ns: int = 0
    dense_ns: int = 0
    logits_ns: int = 0
    sample_ns: int = 0
    publish_ns: int = 0
    #: Whole steps, from plan to publish.
    total_ns: int = 0
    #: Computing, over all steps; the part of it while another micro-batch waited for its experts; and the time in which
    #: all that were in flight waited.
    compute_ns: int = 0
    overlap_ns: int = 0
    idle_ns: int = 0

    def as_dict(self) -> dict[str, int]:
        """The fields by name."""
        return asdict(self)


class Stopwatch:
    """Charges the time since the last ``lap`` to a field of ``StepTimes``."""

    __slots__ = ("_clock_ns", "_last", "_times")

    def __init__(self, times: StepTimes, clock_ns: Callable[[], int]) -> None:
        self._times = times
        self._clock_ns = clock_ns
        self._last = clock_ns()

    def lap(self, field: str) -> int:
        """Add the time since the last lap to ``field``; return the time now, in nanoseconds."""
        now = self._clock_ns()
        setattr(self._times, field, getattr(self._times, field) + now - self._last)
        self._last = now
        return now


class Turns:
    """Whose turn it is on the one thread: what steps in flight compute, hide behind each other, and wait for.

    A step computes from ``begin`` or ``resume`` until ``pause`` or ``end``; each call is told the time, nanoseconds.
    """

    __slots__ = ("_since", "_times", "computing", "waiting")

    def __init__(self, times: StepTimes) -> None:
        self._times = times
        self._since = 0
        self.computing = 0
        self.waiting = 0

    @property
    def in_flight(self) -> int:
        """Steps that have begun and not ended."""
        return self.computing + self.waiting

    def begin(self, now: int) -> None:
        """A step begins to compute."""
        self._advance(now)
        self.computing += 1

    def pause(self, now: int) -> None:
        """A step begins to wait."""
        self._advance(now)
        self.computing -= 1
        self.waiting += 1

    def resume(self, now: int) -> None:
        """A step goes on computing."""
        self._advance(now)
        self.waiting -= 1
        self.computing += 1

    def end(self, now: int) -> None:
        """A step that computed has ended."""
        self._advance(now)
        self.computing -= 1

    def _advance(self, now: int) -> None:
        passed = now - self._since
        self._since = now
        if self.computing:
            self._times.compute_ns += passed
            if self.waiting:
                self._times.overlap_ns += passed
        elif self.waiting:
            self._times.idle_ns += passed
