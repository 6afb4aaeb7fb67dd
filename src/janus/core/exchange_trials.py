"""Which of several ways is the fastest: the usual one and a challenger in windows, by turns. Pure.

A trial compares a challenger with the usual way in short windows that alternate, so that whatever else changes meets
both, and medians of their medians are compared. The first intervals after a change do not count: others have yet to
follow. A trial ends as soon as the difference is clear beside the scatter, and a hopeless challenger within its first
window.

Each challenger is tried soon, and again after ever longer gaps; a usual way whose cadence changes by much makes the
next trials come early.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

from janus.core.exchange_routes import MODES, Mode

#: Intervals that a window has, or fewer where they hardly differ, as those of large batches; and dispatches after a
#: change that are in none.
WINDOW, SHORT_WINDOW, _STEADY = 6, 3, 1.08
SKIP = 2
#: Windows of a challenger at most; then its mean decides.
_MOST_PAIRS = 12
#: Pairs before it is judged, and standard errors at which a difference is clear.
_LEAST_PAIRS = 2
_CLEAR = 2.0
#: Ways that differ by less (in logarithms) are as good: the one that sends fewer frames is taken, since what that
#: saves the other nodes and the experts is not seen here.
_TIE = 0.03
#: A challenger is given up within its first window when each of so many intervals takes so many times as long.
_HOPELESS_AFTER, _HOPELESS = 2, math.log(1.8)
#: Intervals of the usual way between two trials of one challenger: at first, and at most. A challenger that was clearly
#: slower, by much (in logarithms), waits four times as long the next time, any other twice as long. One that was given
#: up has cost little, and may have met with a burst of other load: it is looked at again soon.
FIRST_GAP, _LONGEST_GAP = 256, 1 << 16
_SOON = 64
_MUCH = math.log(1.25)
#: The usual cadence has changed when so many blocks in a row are off by so much.
_BLOCK, _CHANGED_BLOCKS, _CHANGED = 2 * WINDOW, 2, math.log(1.6)
#: Least variance of a window's level: two windows of equal numbers are not known to be equal to the last digit.
_LEAST_VARIANCE = 1e-6


def _centre(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and its variance: as of a normal distribution of that median deviation.

    Medians, since other load comes in bursts: what they do to a few intervals, or windows, counts for nothing.
    """
    middle = median(values)
    spread = 1.483 * median(abs(each - middle) for each in values)
    return middle, math.pi / 2 * spread**2 / len(values)


@dataclass(frozen=True, slots=True)
class _Window:
    """Intervals in a row that one way took: the logarithm of their median, and how far it may be off."""

    level: float
    variance: float

    @classmethod
    def of(cls, seconds: Collection[float]) -> _Window:
        level, variance = _centre([math.log(each) for each in seconds])
        return cls(level, max(_LEAST_VARIANCE, variance))


@dataclass(slots=True)
class _Trial:
    """``windows``: of the usual way, of the challenger, of the usual way, and so on."""

    way: Mode
    windows: list[_Window]

    @property
    def challenges(self) -> bool:
        """Whether it is the challenger's turn."""
        return len(self.windows) % 2 == 1

    @property
    def pairs(self) -> int:
        """Windows of the challenger that have been followed by one of the usual way."""
        return (len(self.windows) - 1) // 2

    def ratio(self) -> tuple[float, float]:
        """Return the logarithm of challenger over usual way, and its standard error."""
        usual, tried = self._level(self.windows[::2]), self._level(self.windows[1::2])
        return tried.level - usual.level, math.sqrt(tried.variance + usual.variance)

    @staticmethod
    def _level(windows: Sequence[_Window]) -> _Window:
        # Both ways' medians are of the same moment on average, so a drift is in both. What a burst of other load adds
        # is seen only from window to window.
        level, between = _centre([window.level for window in windows])
        within = fmean(window.variance for window in windows) / len(windows)
        return _Window(level, max(between, within))


def _fill_a_window(seconds: Sequence[float]) -> bool:
    if len(seconds) >= WINDOW:
        return True
    return len(seconds) >= SHORT_WINDOW and max(seconds) < _STEADY * min(seconds)


def _tie(challenger: Mode, usual: Mode) -> float:
    """Return below which logarithm of the ratio ``challenger`` takes over."""
    return _TIE if MODES.index(challenger) > MODES.index(usual) else -_TIE


@dataclass(slots=True)
class _Challenger:
    """When a way is tried next, in intervals of the usual way, and how long the gap before was."""

    due: int
    gap: int = 0
    tried_at: int = -FIRST_GAP


@dataclass(slots=True)
class Contest:
    """The ways of dispatches of one size. Deterministic in what it is told."""

    usual: Mode | None = None
    #: Logarithms of cadences, comparable with each other: of the usual way, and of those that were tried.
    levels: dict[Mode, float] = field(default_factory=dict)
    #: Trials that have ended, and how many of them the challenger won.
    trials: int = 0
    changes: int = 0
    _challengers: dict[Mode, _Challenger] = field(default_factory=dict)
    _trial: _Trial | None = None
    #: Number of the window under way: an interval that began in another one does not count.
    _window: int = 0
    _skipped: int = 0
    _seconds: list[float] = field(default_factory=list)
    #: Intervals of the usual way, outside of trials too.
    _seen: int = 0
    #: Its cadence as it was, and blocks in a row that are off.
    _reference: float | None = None
    _block: list[float] = field(default_factory=list)
    _off: int = 0

    def settled(self, ways: Collection[Mode]) -> bool:
        """Return whether each of ``ways`` was tried."""
        return self.usual in ways and all(way in self.levels for way in ways)

    def choose(self, ways: Collection[Mode], prior: Callable[[], Mapping[Mode, float]]) -> tuple[Mode, int]:
        """Return the way of the next dispatch, and the window that its interval belongs to; 0 for none.

        Args:
            ways: those that are possible and differ, at least one.
            prior: gives the logarithm of what each is thought to take, while nothing is known.
        """
        if self.usual not in ways:
            self._begin(ways, prior())
        elif self._trial is not None and self._trial.way not in ways:
            self._end_trial()
        assert self.usual is not None
        if self._trial is None and len(ways) > 1 and _fill_a_window(self._seconds):
            self._look_for_challenger(ways)
        trial = self._trial
        way = self.usual if trial is None or not trial.challenges else trial.way
        if self._skipped < SKIP:
            self._skipped += 1
            return way, 0
        return way, self._window

    def took(self, window: int, seconds: float) -> None:
        """A dispatch that was in ``window`` was followed by the next layer's after ``seconds``."""
        if window != self._window or seconds <= 0:
            return
        trial = self._trial
        self._seconds.append(seconds)
        if trial is None:
            del self._seconds[:-WINDOW]
        if trial is None or not trial.challenges:
            self._seen += 1
        if trial is None:
            self._watch(seconds)
        elif trial.challenges and self._is_hopeless(trial):
            ratio = math.log(median(self._seconds)) - trial.windows[-1].level
            self._judge(trial, ratio, gap=_SOON, longer=4)
        elif _fill_a_window(self._seconds):
            trial.windows.append(_Window.of(self._seconds))
            self._turn()
            if not trial.challenges or trial.pairs < _LEAST_PAIRS:
                return
            ratio, error = trial.ratio()
            clear = abs(ratio - _tie(trial.way, self._usual())) > _CLEAR * error
            if clear or trial.pairs >= _MOST_PAIRS:
                self._judge(trial, ratio, gap=FIRST_GAP, longer=4 if clear and ratio > _MUCH else 2)

    # -- trials --------------------------------------------------------------------------------------------------

    def _usual(self) -> Mode:
        assert self.usual is not None
        return self.usual

    def _begin(self, ways: Collection[Mode], prior: Mapping[Mode, float]) -> None:
        """Nothing is known, or the usual way has vanished."""
        known = {way: level for way, level in self.levels.items() if way in ways}
        # What was measured counts, and what is unknown is judged beside it as the prior has it.
        offset = fmean(level - prior[way] for way, level in known.items()) if known else 0.0
        usual = min(ways, key=lambda way: (known.get(way, prior[way] + offset), -MODES.index(way)))
        self.usual = usual
        self.levels.setdefault(usual, 0.0)
        self._end_trial()

    def _look_for_challenger(self, ways: Collection[Mode]) -> None:
        due: list[tuple[bool, int, Mode]] = []
        for way in ways:
            if way == self.usual:
                continue
            challenger = self._challengers.setdefault(way, _Challenger(self._seen))
            if challenger.due <= self._seen:
                due.append((way in self.levels, challenger.due, way))
        if due:
            self._trial = _Trial(min(due)[2], [_Window.of(self._seconds)])
            self._turn()

    def _turn(self) -> None:
        """The other way's window begins."""
        self._window += 1
        self._skipped = 0
        self._seconds.clear()

    def _end_trial(self) -> None:
        self._trial = None
        self._reference = None
        self._block.clear()
        self._off = 0
        self._turn()

    def _is_hopeless(self, trial: _Trial) -> bool:
        if len(self._seconds) < _HOPELESS_AFTER or len(trial.windows) > 1:
            return False
        return math.log(min(self._seconds)) - trial.windows[-1].level > _HOPELESS

    def _judge(self, trial: _Trial, ratio: float, *, gap: int, longer: int) -> None:
        """End ``trial``. A challenger that has lost waits for ``longer`` times its last gap, at least ``gap``."""
        usual, way = self._usual(), trial.way
        usual_level = median(window.level for window in trial.windows[::2])
        self.trials += 1
        self.levels[way] = self.levels[usual] + ratio
        if ratio < _tie(way, usual):
            self.usual = way
            self.changes += 1
            # Who has lost is looked at again before long, and so is everybody else.
            self._challengers[usual] = _Challenger(self._seen + FIRST_GAP, FIRST_GAP, self._seen)
            self._challengers.pop(way)
            usual_level += ratio
        else:
            challenger = self._challengers[way]
            challenger.gap = min(max(gap, longer * challenger.gap), _LONGEST_GAP)
            challenger.due, challenger.tried_at = self._seen + challenger.gap, self._seen
        self._end_trial()
        self._reference = usual_level

    def _watch(self, seconds: float) -> None:
        """Notice that the usual way's cadence is no longer what it was when the others were compared with it."""
        self._block.append(seconds)
        if len(self._block) < _BLOCK:
            return
        level = math.log(median(self._block))
        self._block.clear()
        if self._reference is None:
            self._reference = level
        self._off = self._off + 1 if abs(level - self._reference) > _CHANGED else 0
        if self._off < _CHANGED_BLOCKS:
            return
        self._off, self._reference = 0, level
        for challenger in self._challengers.values():
            challenger.gap = 0
            challenger.due = min(challenger.due, max(self._seen, challenger.tried_at + FIRST_GAP))
