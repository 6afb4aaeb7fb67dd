"""What step times are to be expected of other numbers of instances: learned alone, or from a profile and corrected."""

from __future__ import annotations

import math
from typing import Protocol

from janus.core.scaling.contract import Counts, Observation
from janus.core.scaling.demand import Demand

#: Intervals after which what was learned counts for half.
_HALF_LIFE_INTERVALS = 20.0
#: Share of a step that is taken to be there whatever the batch, until batches of other sizes were seen; and the weight
#: of that, beside what was seen. At 2 % a batch that varies by a seventh counts as much as the assumption.
_FIXED_SHARE, _FIXED_WEIGHT = 0.5, 0.02
#: A profile that is further off than this describes other hardware; the SLO is then kept by feedback alone.
_LEAST_FACTOR, _MOST_FACTOR = 0.05, 20.0
_LEAST_DRIFT, _MOST_DRIFT = 0.5, 2.0
#: Weight of one observation of the correction, and of the tail.
_NEW = 0.3
_MOST_TAIL = 5.0


class StepModel(Protocol):
    """Step times, and how they follow what is observed."""

    @property
    def name(self) -> str:
        """Where it is from: "learned", or a profile."""

    @property
    def correction(self) -> float:
        """What its own step times are multiplied by."""

    def step_s(self, counts: Counts, batch: float, demand: Demand) -> float:
        """Return the mean TPOT of ``batch`` streams; never falls with ``batch``. 0 as long as nothing is known."""

    def learn(self, seen: Observation, demand: Demand, dt: float) -> None:
        """Take in what clients saw during ``dt`` seconds, from a cluster that did not change meanwhile."""


class StepTimes(Protocol):
    """Step times of a profile: equation 1 of the paper, see ``janus.core.planning.performance``."""

    def __call__(self, counts: Counts, batch: float, demand: Demand) -> float:
        """Return the seconds of a step of ``batch`` streams."""


class Tail:
    """How far the SLO's percentile of TPOT lies above its mean, as observed lately."""

    def __init__(self, percentile: float) -> None:
        self._fixed = percentile == 0
        self.factor = 1.0 if self._fixed else 1.2

    def learn(self, seen: Observation) -> None:
        """Take one observation in."""
        if self._fixed or not seen.tpot_mean_s or seen.tpot_tail_s is None:
            return
        factor = min(max(1.0, seen.tpot_tail_s / seen.tpot_mean_s), _MOST_TAIL)
        self.factor += _NEW * (factor - self.factor)


class LearnedModel:
    """Equation 1 with coefficients that follow what is observed: for any hardware, without a profile.

    A step takes T = T_a + T_e. T_a is linear in the rows per attention instance, B / n_a. T_e is linear in the experts
    that an expert instance activates, E (1 - (1 - k / E)^B) / n_e, which is what it reads. How T is split is observed:
    an attention instance knows how long it waits for its experts.
    """

    name = "learned"

    def __init__(self, *, experts: int = 0, top_k: int = 0, interval_s: float = 60.0) -> None:
        """``experts`` and ``top_k`` of the model; 0 = not known, then T_e is taken to be linear in B / n_e."""
        self._experts, self._top_k = experts, top_k
        self._half_life_s = _HALF_LIFE_INTERVALS * interval_s
        self._attention, self._expert = _Line(), _Line()
        #: The lines are of many minutes, the factor between them and what is observed is of the last few.
        self._factor = _Factor(_LEAST_DRIFT, _MOST_DRIFT)

    @property
    def correction(self) -> float:
        """See ``StepModel.correction``."""
        return self._factor.value

    def step_s(self, counts: Counts, batch: float, demand: Demand) -> float:
        """See ``StepModel.step_s``."""
        del demand
        return self.correction * self._line_s(counts, batch)

    def _line_s(self, counts: Counts, batch: float) -> float:
        return self._attention.at(batch / counts.attention) + self._expert.at(self._activated(counts, batch))

    def learn(self, seen: Observation, demand: Demand, dt: float) -> None:
        """See ``StepModel.learn``."""
        del demand
        if not seen.tpot_mean_s or seen.running <= 0:
            return
        share = 0.0 if not seen.present.experts else 0.5 if seen.expert_share is None else seen.expert_share
        fade = 0.5 ** (dt / self._half_life_s)
        # A mean below one is of times without any stream, which say nothing about steps.
        batch = max(1.0, seen.running)
        self._attention.add(batch / seen.present.attention, (1 - share) * seen.tpot_mean_s, weight=dt, fade=fade)
        if seen.present.experts:
            activated = self._activated(seen.present, batch)
            self._expert.add(activated, share * seen.tpot_mean_s, weight=dt, fade=fade)
        self._factor.learn(seen.tpot_mean_s, self._line_s(seen.present, batch))

    def _activated(self, counts: Counts, batch: float) -> float:
        if not counts.experts:
            return 0.0
        if not self._experts:
            return batch / counts.experts
        return self._experts * (1 - (1 - self._top_k / self._experts) ** batch) / counts.experts


class _Line:
    """y = fixed + slope x, both at least 0, by least squares over what was seen lately.

    Where x hardly varied, the fixed share is what ``_FIXED_SHARE`` assumes: without it, noise would pass for a slope.
    """

    def __init__(self) -> None:
        self._n = self._x = self._xx = self._y = self._xy = 0.0
        self.fixed = self.slope = 0.0

    def at(self, x: float) -> float:
        return self.fixed + self.slope * x

    def add(self, x: float, y: float, *, weight: float, fade: float) -> None:
        self._n = self._n * fade + weight
        self._x = self._x * fade + weight * x
        self._xx = self._xx * fade + weight * x * x
        self._y = self._y * fade + weight * y
        self._xy = self._xy * fade + weight * x * y
        assumed = _FIXED_WEIGHT * self._n
        n, mean = self._n + assumed, self._y / self._n
        total = self._y + assumed * _FIXED_SHARE * mean
        slope = (n * self._xy - self._x * total) / (n * self._xx - self._x * self._x)
        # Where one of them would be negative it is 0, and the other is what fits best alone.
        most = self._xy / self._xx
        self.slope = min(max(0.0, slope), most)
        self.fixed = max(0.0, (self._y - self.slope * self._x) / self._n)


class _Factor:
    """Observed over expected, as a running mean of its logarithm."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = math.log(least), math.log(most)
        self._log: float | None = None

    @property
    def value(self) -> float:
        return math.exp(self._log or 0.0)

    def learn(self, observed: float, expected: float) -> None:
        if not (observed > 0 and expected > 0):
            return
        found = min(max(self._least, math.log(observed / expected)), self._most)
        # The first observation says more than an expectation that nobody has checked.
        self._log = found if self._log is None else self._log + _NEW * (found - self._log)


class CorrectedModel:
    """A profile's step times, times a factor that is learned from what clients see.

    With the factor, a profile of the wrong hardware still converges: where TPOT is 1.5 times what was predicted, it is
    taken to be so at other sizes too, until it is observed there.
    """

    def __init__(self, name: str, times: StepTimes) -> None:
        self.name = name
        self._times = times
        self._factor = _Factor(_LEAST_FACTOR, _MOST_FACTOR)

    @property
    def correction(self) -> float:
        """See ``StepModel.correction``."""
        return self._factor.value

    def step_s(self, counts: Counts, batch: float, demand: Demand) -> float:
        """See ``StepModel.step_s``."""
        return self.correction * self._times(counts, batch, demand)

    def learn(self, seen: Observation, demand: Demand, dt: float) -> None:
        """See ``StepModel.learn``."""
        del dt
        if seen.tpot_mean_s and seen.running > 0:
            self._factor.learn(seen.tpot_mean_s, self._times(seen.present, max(1.0, seen.running), demand))
