"""What scaling did not achieve lately, so that it is not tried over and over."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from janus.core.scaling.contract import Counts

#: Growth that lowers TPOT by less than this did not help, if the load did not grow by more than that.
_LEAST_GAIN, _MORE_LOAD = 0.03, 0.1
#: So much growth in vain in a row ends it. It is tried again when the load is so different, or after a look-back, then
#: two, then four.
_ATTEMPTS, _OTHER_LOAD, _MOST_PATIENCE = 2, 0.25, 64
#: Numbers that proved too few under a load are left alone under nine tenths of it for so many look-backs.
_SIMILAR_LOAD, _REMEMBERED_LOOK_BACKS = 0.9, 12
_MAX_REMEMBERED = 16


@dataclass(frozen=True, slots=True)
class _Growth:
    before: Counts
    tail_s: float
    tokens_s: float


@dataclass(frozen=True, slots=True)
class _TooFew:
    counts: Counts
    tokens_s: float
    until: float


class Trials:
    """Growth in vain, and shrinking that had to be undone."""

    def __init__(self, look_back_s: float) -> None:
        self._look_back_s = look_back_s
        self._growth: _Growth | None = None
        self._in_vain = 0
        self._gave_up: tuple[float, float] | None = None
        self._patience = 1
        self._shrunk_to: Counts | None = None
        self._too_few: deque[_TooFew] = deque(maxlen=_MAX_REMEMBERED)

    # -- growth in vain ------------------------------------------------------------------------------------------

    def grows(self, before: Counts, tail_s: float | None, tokens_s: float, now: float) -> None:
        """More than ``before`` are wanted; ``tail_s`` is TPOT as observed, if it is why."""
        self._growth = None if tail_s is None else _Growth(before, tail_s, tokens_s)
        if before == self._shrunk_to:
            until = now + _REMEMBERED_LOOK_BACKS * self._look_back_s
            self._too_few.append(_TooFew(before, tokens_s, until))
            self._shrunk_to = None

    def judge(self, present: Counts, tail_s: float, tokens_s: float, now: float) -> None:
        """TPOT is known again; if there are more instances than before, they helped or not."""
        growth = self._growth
        if growth is None or present == growth.before:
            return
        self._growth = None
        if tail_s > (1 - _LEAST_GAIN) * growth.tail_s and tokens_s <= (1 + _MORE_LOAD) * growth.tokens_s:
            self._in_vain += 1
            if self._in_vain >= _ATTEMPTS:
                self._gave_up = (now, tokens_s)
        else:
            self._in_vain, self._patience = 0, 1

    def given_up(self, tokens_s: float, now: float) -> bool:
        """Whether more instances are not worth another attempt now."""
        if self._gave_up is None:
            return False
        at, load = self._gave_up
        patience_s = self._patience * self._look_back_s
        alike = abs(tokens_s - load) <= _OTHER_LOAD * load
        if alike and now - at < patience_s:
            return True
        self._patience = min(2 * self._patience, _MOST_PATIENCE) if alike else 1
        self._gave_up, self._in_vain = None, _ATTEMPTS - 1
        return False

    # -- too few -------------------------------------------------------------------------------------------------

    def shrinks(self, wanted: Counts) -> None:
        """Only ``wanted`` are to be left."""
        self._shrunk_to = wanted

    def too_few(self, counts: Counts, tokens_s: float, now: float) -> bool:
        """Whether ``counts`` have proved to be too few under such a load."""
        return any(
            now < each.until and each.counts.covers(counts) and tokens_s >= _SIMILAR_LOAD * each.tokens_s
            for each in self._too_few
        )
