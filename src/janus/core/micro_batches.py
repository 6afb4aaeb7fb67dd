"""How many micro-batches an attention instance keeps in flight: one, or more that compute while others are away.

With two, one half of the streams computes attention while the activations of the other half are with the experts. That
hides waiting, and costs: every expert is read once per micro-batch, and more, smaller messages travel. Which of the two
is more cannot be told from the outside (the network, the experts' load and free cores all matter), so it is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

#: More than these are never tried: each additional one hides less and costs as much.
MAX_MICRO_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """What one good step took."""

    #: The choice under which it was planned.
    micro_batches: int
    #: Running requests, over all micro-batches.
    streams: int
    #: From plan to end. Each stream gets one token per so long.
    step_s: float
    #: The part of ``step_s`` in which every step in flight waited and nothing was computed.
    idle_s: float
    #: Whether during all of the step as many were in flight as chosen, none failed, and no prompt was computed.
    settled: bool


class MicroBatchPolicy(Protocol):
    """Decides before each step."""

    def choose(self, streams: int) -> int:
        """Return how many micro-batches ``streams`` running requests are split into."""

    def record(self, sample: StepSample) -> None:
        """Learn from a step."""


@dataclass(frozen=True, slots=True)
class FixedMicroBatches:
    """Always ``count``, as far as there are as many streams."""

    count: int

    def choose(self, streams: int) -> int:
        return max(1, min(self.count, streams))

    def record(self, sample: StepSample) -> None:
        return None


def policy_for(micro_batches: str) -> MicroBatchPolicy:
    """Return the policy of ``--micro-batches``: ``auto`` or a number."""
    return AutoMicroBatches() if micro_batches == "auto" else FixedMicroBatches(int(micro_batches))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What ``AutoMicroBatches`` is held to."""

    most: int = MAX_MICRO_BATCHES
    #: Steps spent on choices that are not the current one, over all steps.
    explored: float = 0.02
    #: Settled steps that a comparison is made of, on either side.
    samples: int = 16
    #: A trial that has no result after so many steps ends without one.
    trial_steps: int = 64
    #: Throughput that one more micro-batch must win. One less need only lose nothing.
    gain: float = 0.05
    #: Idle share of a step below which one more is not even tried: overlap wins at most what is idle.
    idle: float = 0.05


@dataclass(slots=True)
class _Trial:
    count: int
    steps: int = 0
    samples: int = 0
    seconds_per_token: float = 0.0
    idle: float = 0.0


@dataclass(slots=True)
class _Level:
    """What is known for about so many streams; figures are running means of the current choice."""

    count: int = 1
    samples: int = 0
    seconds_per_token: float = 0.0
    idle: float = 0.0
    #: Trials that changed nothing, since the last that did.
    in_vain: int = 0
    upwards: bool = True
    #: Whether the last trial won and the next one more is yet to be tried.
    climbing: bool = False
    trial: _Trial | None = None


@dataclass(slots=True)
class AutoMicroBatches:
    """Climbs from one micro-batch to the next for as long as a trial shows that it pays. Deterministic in its inputs.

    A trial runs a neighbour of the current choice for some steps, right after as many of the current one, and compares
    seconds per token. After each one at least ``1 / explored`` times as many steps pass as it took, weighted with how
    slow it was; only on the way up the next trial follows at once, and the pauses are made up for afterwards. Streams
    are told apart by powers of two; one stream is never split.
    """

    limits: Limits = field(default_factory=Limits)
    #: Counts since the start.
    steps: int = 0
    explored_steps: int = 0
    _levels: dict[int, _Level] = field(default_factory=dict)
    _key: int = 0
    _next_trial: float = 0.0

    def choose(self, streams: int) -> int:
        if streams < 2:
            return 1
        level = self._enter(streams)
        if level.trial is None:
            level.trial = self._begin(level, streams)
        return max(1, min(level.count if level.trial is None else level.trial.count, streams))

    def record(self, sample: StepSample) -> None:
        self.steps += 1
        level = self._levels.get(self._key)
        if level is None or sample.streams < 2 or sample.step_s <= 0:
            return
        trial = level.trial
        if trial is not None and sample.micro_batches == trial.count:
            self.explored_steps += 1
            trial.steps += 1
            if sample.settled:
                trial.samples += 1
                self._average(trial, sample, min(trial.samples, self.limits.samples))
            if trial.samples >= self.limits.samples or trial.steps >= self.limits.trial_steps:
                self._end(level, trial)
        elif trial is None and sample.settled and sample.micro_batches == level.count:
            level.samples += 1
            self._average(level, sample, min(level.samples, self.limits.samples))

    # -- levels --------------------------------------------------------------------------------------------------

    def _enter(self, streams: int) -> _Level:
        """Return the level of ``streams``; it changes only when they are clearly nearer to another one."""
        exact = math.log2(streams)
        if abs(exact - self._key) > 0.6 or self._key not in self._levels:
            old = self._levels.get(self._key)
            if old is not None and old.trial is not None:
                self._pause(old.trial.steps, 1.0)
                old.trial = None
            self._key = round(exact)
        return self._levels.setdefault(self._key, _Level())

    @staticmethod
    def _average(of: _Level | _Trial, sample: StepSample, weight: int) -> None:
        of.seconds_per_token += (sample.step_s / sample.streams - of.seconds_per_token) / weight
        of.idle += (sample.idle_s / sample.step_s - of.idle) / weight

    # -- trials --------------------------------------------------------------------------------------------------

    def _begin(self, level: _Level, streams: int) -> _Trial | None:
        limits = self.limits
        up = level.count < min(limits.most, streams) and level.idle >= limits.idle
        down = level.count > 1
        early = self.steps < self._next_trial and not (up and level.climbing)
        if level.samples < limits.samples or early or not (up or down):
            return None
        # Both sides in turn.
        level.upwards = up and (not down or level.upwards)
        return _Trial(level.count + (1 if level.upwards else -1))

    def _end(self, level: _Level, trial: _Trial) -> None:
        level.trial = None
        more = trial.count > level.count
        level.upwards = not more
        level.climbing = False
        enough = trial.samples >= self.limits.samples
        slower = trial.seconds_per_token / level.seconds_per_token if enough else 1.0
        if enough and slower <= (1 / (1 + self.limits.gain) if more else 1.0):
            level.count, level.in_vain = trial.count, 0
            level.seconds_per_token, level.idle = trial.seconds_per_token, trial.idle
            level.upwards = level.climbing = more  # on in the same direction
        else:
            level.in_vain += 1
        # What has often been tried in vain is tried up to four times more rarely.
        self._pause(trial.steps, slower * 2 ** min(max(0, level.in_vain - 1), 2))

    def _pause(self, steps: int, weight: float) -> None:
        self._next_trial = max(self._next_trial, self.steps) + steps * max(1.0, weight) / self.limits.explored
