"""Stalls and goodput out of the moments at which tokens arrived: pure. Times are seconds of one clock."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

#: Of goodput's bins, and of the window that rolls over them.
BIN_S = 0.1
WINDOW_S = 1.0
#: Goodput is back at this share of what it was.
RECOVERED = 0.9


def stall_s(
    sent_at: float, tokens_at: Sequence[float], ended_at: float, *, fault_at: float, over_at: float
) -> float | None:
    """The longest wait for a token that was over after the fault.

    None of a stream that was not in flight from ``fault_at`` to ``over_at``, not even for a moment. The wait for the
    first token counts where it began before the fault: of a request that is sent later it is its TTFT.
    """
    if sent_at > over_at or ended_at <= fault_at:
        return None
    moments = [sent_at, *tokens_at, ended_at] if sent_at <= fault_at else [*tokens_at, ended_at]
    return max((after - before for before, after in pairwise(moments) if after > fault_at), default=None)


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least ``share`` of them do not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """What a fault did to the tokens per second of all streams together."""

    before: float
    #: Share of it that was missing in the worst second after the fault.
    dip: float
    #: From the fault to the first second, from the worst one on, that has ``RECOVERED`` of it; None: not under load.
    recovered_s: float | None
    bins: list[int]


def goodput(tokens_at: Sequence[float], *, start: float, fault_at: float, end: float) -> Goodput | None:
    """Goodput of a load that was on from ``start`` to ``end``; None when it was not on long enough to tell.

    Args:
        tokens_at: arrivals of all tokens of all streams, in any order.
    """
    if fault_at - start < 2 * BIN_S or end - fault_at < WINDOW_S:
        return None
    ordered = sorted(tokens_at)

    def count(low: float, high: float) -> int:
        return bisect_left(ordered, high) - bisect_left(ordered, low)

    before = count(start, fault_at) / (fault_at - start)
    windows = int((end - fault_at - WINDOW_S) / BIN_S + 1e-6) + 1
    seconds = [count(at, at + WINDOW_S) / WINDOW_S for at in (fault_at + k * BIN_S for k in range(windows))]
    worst = seconds.index(min(seconds))
    back = next((k for k in range(worst, windows) if seconds[k] >= RECOVERED * before), None)
    bins = [count(fault_at + k * BIN_S, fault_at + (k + 1) * BIN_S) for k in range(int((end - fault_at) / BIN_S))]
    return Goodput(
        before=before,
        dip=max(0.0, 1 - seconds[worst] / before) if before else 0.0,
        recovered_s=None if back is None else (0.0 if seconds[worst] >= RECOVERED * before else back * BIN_S),
        bins=bins,
    )
