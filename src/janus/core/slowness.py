"""How long to wait for expert instances, whom to leave out meanwhile, and who gets less work. Pure: times come in.

A dispatch that has waited for ``hedge_after_s`` while others have answered is sent again without those who are late (a
hedged request: Dean and Barroso, The Tail at Scale, 2013). They are *suspects*: nothing is planned with them until
their back-off is over, or until a first late answer says that they live. Who is late again is left out for twice as
long; who kept time for as long as it was left out starts anew.

Waits are relative to what dispatches of that way and size take, so a cluster that is slow as a whole suspects nobody:
per instance a high quantile is followed, and the lower median over the instances counts, which a single slow instance
does not move. Hedges are a small share of dispatches, so that overload is not answered with more load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import TypeAlias

from janus.core.exchange_routes import Mode

#: A dispatch is late after so many times the high quantile, and never before this.
_MULTIPLE = 6.0
FLOOR_S = 0.1
#: Timings of a way and size before they count.
_ENOUGH = 4
#: Steps of the high quantile towards a timing above and below it: it settles where 1 in 17 timings is above.
_UP, _DOWN = 1 / 4, 1 / 64
#: The first back-off, and the longest.
BACK_OFF_S = 1.0
LONGEST_BACK_OFF_S = 60.0
#: Of so many dispatches one is timed, and all of the first.
TIMED_EVERY, TIMED_FIRST = 8, 64
#: Hedges that may be made at once, and how many more each timing earns.
_HEDGES = 8.0
_EARNED = 0.25
#: An instance that takes so much longer than the others gets an expert less, one that takes hardly longer gets one
#: more: as ratios of their times in the same dispatch, averaged, and as a difference that is worth it.
_SLOWER, _EVEN = 1.5, 1.15
_WORTH_S = 300e-6
#: The share of the newest ratio in the average, timings between two changes, and the most that is taken away.
_NEWEST = 1 / 8
_SETTLE = 16
_MOST_BIAS = 64

#: A way and a size class: powers of four of a dispatch's rows.
_Kind: TypeAlias = tuple[Mode, int]


@dataclass(slots=True)
class _Waits:
    """What dispatches of one way and size take."""

    #: By who answers: the high quantile, seconds.
    high_s: dict[str, float] = field(default_factory=dict)
    timings: int = 0
    hedge_s: float | None = None


@dataclass(slots=True)
class _Record:
    """One expert instance."""

    #: How often it was late in a row.
    strikes: int = 0
    suspected: bool = False
    #: While suspected: when the back-off is over. Else: since when it is in use again.
    since_s: float = -math.inf
    back_off_s: float = 0.0
    #: Its time over that of the others, and timings since the bias changed.
    ratio: float = 1.0
    settled: int = 0
    bias: int = 0


def is_timed(number: int) -> bool:
    """Return whether dispatch ``number`` is timed."""
    return number % TIMED_EVERY == 0 or number < TIMED_FIRST


class Slowness:
    """The record of one attention instance. Seconds on any one clock; ``timeout_s``: the dispatch deadline."""

    def __init__(self, *, timeout_s: float, floor_s: float = FLOOR_S) -> None:
        self._longest_s = timeout_s / 2
        self._floor_s = min(floor_s, self._longest_s)
        self._waits: dict[_Kind, _Waits] = {}
        self._records: dict[str, _Record] = {}
        self._hedges = _HEDGES
        #: Who is left out, and when the first back-off is over.
        self.suspects: frozenset[str] = frozenset()
        self.due_s = math.inf
        #: Instances that get less work, and by how many experts; empty on an ordinary cluster.
        self.biases: dict[str, int] = {}

    # -- how long to wait ----------------------------------------------------------------------------------------

    def hedge_after_s(self, mode: Mode, rows: int) -> float:
        """Return when a dispatch of ``rows`` is late, in seconds from its post."""
        size = rows.bit_length() >> 1
        known = self._waits.get((mode, size))
        if known is not None and known.hedge_s is not None:
            return known.hedge_s
        # The nearest size that is known: a larger one takes no less, a smaller one no less per row.
        found = {kind: waits.hedge_s for kind, waits in self._waits.items() if waits.hedge_s is not None}
        same = {kind: s for kind, s in found.items() if kind[0] == mode} or found
        estimates = [s * 4.0 ** max(0, size - kind[1]) for kind, s in same.items()]
        return min((self._longest_s, *estimates))

    def answered(self, mode: Mode, rows: int, timings: Sequence[tuple[str, float]]) -> None:
        """Take in when each of those asked answered a dispatch: ``(name, seconds from its post)``."""
        waits = self._waits.setdefault((mode, rows.bit_length() >> 1), _Waits())
        high_s = waits.high_s
        for name, seconds in timings:
            high = high_s.get(name)
            high_s[name] = seconds if high is None else high + (seconds - high) * (_UP if seconds > high else _DOWN)
        waits.timings += 1
        if waits.timings >= _ENOUGH:
            hedge_s = _MULTIPLE * median_low(high_s.values())
            waits.hedge_s = min(max(hedge_s, self._floor_s), self._longest_s)
        self._hedges = min(_HEDGES, self._hedges + _EARNED)
        if mode == "direct" and len(timings) > 1:
            self._weigh(timings)

    def may_hedge(self) -> bool:
        """Return whether another hedge is within the share that hedges may be, and count it."""
        if self._hedges < 1:
            return False
        self._hedges -= 1
        return True

    def forget(self, names: Iterable[str]) -> None:
        """These instances are no more."""
        for name in names:
            self._records.pop(name, None)
            for waits in self._waits.values():
                waits.high_s.pop(name, None)
        self._changed()

    # -- whom to leave out ---------------------------------------------------------------------------------------

    def late(self, names: Iterable[str], *, now_s: float) -> None:
        """Suspect ``names``, for twice as long as the last time if that is not long ago."""
        for name in names:
            record = self._records.setdefault(name, _Record())
            if record.suspected:
                continue
            if now_s - record.since_s > record.back_off_s:
                record.strikes = 0  # it kept time for as long as it was left out
            record.strikes += 1
            record.back_off_s = min(BACK_OFF_S * 2.0 ** (record.strikes - 1), LONGEST_BACK_OFF_S)
            record.suspected, record.since_s = True, now_s + record.back_off_s
        self._changed()

    def alive(self, name: str, *, now_s: float) -> bool:
        """A late answer came, or a new link: returns whether ``name`` is back in use.

        It is after its first lateness. Who is late again and again answers late again and again: it waits for the end
        of its back-off.
        """
        record = self._records.get(name)
        if record is None or not record.suspected or record.strikes > 1:
            return False
        self._readmit(record, now_s)
        self._changed()
        return True

    def readmit(self, *, now_s: float, all_but: frozenset[str] | None = None) -> tuple[str, ...]:
        """Put those back in use whose back-off is over; with ``all_but``, all others, as they are needed."""
        back = tuple(
            name
            for name, record in self._records.items()
            if record.suspected and (record.since_s <= now_s if all_but is None else name not in all_but)
        )
        for name in back:
            self._readmit(self._records[name], now_s)
        if back:
            self._changed()
        return back

    @staticmethod
    def _readmit(record: _Record, now_s: float) -> None:
        record.suspected, record.since_s = False, now_s

    def _changed(self) -> None:
        suspected = {name: record for name, record in self._records.items() if record.suspected}
        self.suspects = frozenset(suspected)
        self.due_s = min((record.since_s for record in suspected.values()), default=math.inf)
        self.biases = {name: record.bias for name, record in self._records.items() if record.bias}

    # -- who gets less work --------------------------------------------------------------------------------------

    def _weigh(self, timings: Sequence[tuple[str, float]]) -> None:
        """Move the biases so that all of a dispatch's instances answer at about the same time.

        What an instance takes is compared, not computed from its load: at a bias where it keeps up, it stays.
        """
        usual_s = median_low(seconds for _, seconds in timings)
        before, asked = self.biases, set()
        for name, seconds in timings:
            asked.add(name)
            record = self._records.get(name)
            if record is None:
                if seconds < _SLOWER * usual_s or seconds - usual_s < _WORTH_S:
                    continue
                record = self._records[name] = _Record()
            # A single stall says nothing about its speed: it counts for no more than some.
            ratio = min(seconds / usual_s, 2 * record.ratio, 8.0) if seconds - usual_s >= _WORTH_S else 1.0
            record.ratio += _NEWEST * (ratio - record.ratio)
            self._shift(record, asked=True)
        for name in before:
            if name not in asked:
                self._shift(self._records[name], asked=False)

    def _shift(self, record: _Record, *, asked: bool) -> None:
        record.settled += 1
        if record.settled < _SETTLE:
            return
        bias = record.bias
        if asked and record.ratio > _SLOWER:
            bias = min(bias + 1, _MOST_BIAS)
        elif not asked or record.ratio < _EVEN:
            # Also who gets no work at all any more, as nothing else would tell that it has recovered.
            bias = max(bias - 1, 0)
        if bias != record.bias:
            record.bias, record.settled = bias, 0
            self._changed()
