"""Expectations without a profile: equation 1 with coefficients that follow what is observed, on any hardware.

A step takes T = T_a + T_e. T_a is linear in the rows per attention instance, B / n_a. T_e is linear in the experts that
an expert instance activates, E (1 - (1 - k / E)^B) / n_e, which is what it reads. How T is split is observed: an
attention instance knows how long it waits for its experts.

With T(B) the TPOT of B streams, the steady state is B = D T(B) for D tokens per second (arXiv 2512.13525, equation 2).
T does not fall with B, so the steady state lies at or below a limit L wherever D T(L) <= L: one step time says whether
numbers of instances will do, and no equation has to be solved for those that will not be chosen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from janus.core.planning.little import settled
from janus.core.scaling.contract import Counts, Observation, Prediction, ScalingConfig
from janus.core.scaling.demand import Demand
from janus.core.scaling.factor import Factor

#: Intervals after which what was learned counts for half.
_HALF_LIFE_INTERVALS = 20.0
#: Share of a step that is taken to be there whatever the batch, until batches of other sizes were seen; and the weight
#: of that, beside what was seen. At 2 % a batch that varies by a seventh counts as much as the assumption.
_FIXED_SHARE, _FIXED_WEIGHT = 0.5, 0.02
_LEAST_DRIFT, _MOST_DRIFT = 0.5, 2.0
#: The SLO's percentile of TPOT over its mean: at first, at most, and the weight of one observation.
_FIRST_TAIL, _MOST_TAIL, _NEW_TAIL = 1.2, 5.0, 0.3
#: Streams per attention instance where nobody says how many it takes.
_MOST_STREAMS = 4096


class LearnedModel:
    """A ``Model`` that begins with nothing: before the first observation every step takes no time."""

    name = "learned"

    def __init__(self, config: ScalingConfig, *, experts: int = 0, top_k: int = 0) -> None:
        """``experts`` and ``top_k`` of the model; 0 = not known, then T_e is taken to be linear in B / n_e."""
        self._config = config
        self._experts, self._top_k = experts, top_k
        self._half_life_s = _HALF_LIFE_INTERVALS * config.interval_s
        self._attention, self._expert = _Line(), _Line()
        #: The lines are of many minutes, the factor between them and what is observed is of the last few.
        self._factor = Factor(_LEAST_DRIFT, _MOST_DRIFT)
        self._tail = _FIRST_TAIL if config.percentile else 1.0

    @property
    def correction(self) -> float:
        """See ``Model.correction``."""
        return self._factor.value

    def outlook(self, demand: Demand, *, slo_s: float, most: Counts, streams_most: int) -> LearnedOutlook:
        """See ``Model.outlook``."""
        del most
        streams = streams_most or _MOST_STREAMS
        return LearnedOutlook(model=self, demand=demand, slo_s=slo_s, tail=self._tail, streams_most=streams)

    def step_s(self, counts: Counts, batch: float) -> float:
        """Return the mean TPOT of ``batch`` streams; never falls with ``batch``."""
        return self.correction * self._line_s(counts, batch)

    def learn(self, seen: Observation, demand: Demand, dt: float) -> None:
        """See ``Model.learn``."""
        del demand
        if not seen.tpot_mean_s or seen.running <= 0:
            return
        share = 0.0 if not seen.present.experts else 0.5 if seen.expert_share is None else seen.expert_share
        fade = math.exp2(-dt / self._half_life_s)
        # A mean below one is of times without any stream, which say nothing about steps.
        batch = max(1.0, seen.running)
        self._attention.add(batch / seen.present.attention, (1 - share) * seen.tpot_mean_s, weight=dt, fade=fade)
        if seen.present.experts:
            activated = self._activated(seen.present, batch)
            self._expert.add(activated, share * seen.tpot_mean_s, weight=dt, fade=fade)
        self._factor.learn(seen.tpot_mean_s, self._line_s(seen.present, batch))
        if self._config.percentile and seen.tpot_tail_s is not None:
            tail = min(max(1.0, seen.tpot_tail_s / seen.tpot_mean_s), _MOST_TAIL)
            self._tail += _NEW_TAIL * (tail - self._tail)

    @property
    def shares(self) -> tuple[float, float]:
        """Streams and KV cache that are planned with."""
        return self._config.streams, self._config.kv_usage

    def _line_s(self, counts: Counts, batch: float) -> float:
        return self._attention.at(batch / counts.attention) + self._expert.at(self._activated(counts, batch))

    def _activated(self, counts: Counts, batch: float) -> float:
        if not counts.experts:
            return 0.0
        if not self._experts:
            return batch / counts.experts
        return self._experts * (1 - math.pow(1 - self._top_k / self._experts, batch)) / counts.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedOutlook:
    """See ``Outlook``."""

    model: LearnedModel
    demand: Demand
    slo_s: float
    #: The SLO's percentile of TPOT over its mean.
    tail: float
    #: Streams that one attention instance takes.
    streams_most: int

    def strain(self, counts: Counts) -> float:
        """See ``Outlook.strain``."""
        demand = self.demand
        if not demand.tokens_s > 0:
            return 0.0
        limit = min(demand.tokens_s * self.slo_s / self.tail, self._room(counts, *self.model.shares))
        step = self.model.step_s(counts, max(1.0, limit))
        # Below one stream there is now and then one, alone: it is in time, or it is not.
        return step * self.tail / self.slo_s if limit < 1.0 else demand.tokens_s * step / limit

    def predict(self, counts: Counts) -> Prediction:
        """See ``Outlook.predict``."""
        rate, most = self.demand.tokens_s, max(1.0, self._room(counts, 1.0, 1.0))

        def step(batch: float) -> float:
            return self.model.step_s(counts, max(1.0, batch))

        batch, settles = (0.0, True) if not rate else settled(rate, step, least=0.0, most=most)
        tpot = step(batch) if settles else math.inf
        return Prediction(counts=counts, tpot_mean_s=tpot, tpot_tail_s=tpot * self.tail, batch=batch)

    def _room(self, counts: Counts, streams: float, kv_usage: float) -> float:
        """Streams that fit into these shares of the instances' batches and KV cache."""
        room = streams * counts.attention * self.streams_most
        if self.demand.kv_share > 0:
            room = min(room, kv_usage * counts.attention / self.demand.kv_share)
        return room


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
        """``x`` is above 0."""
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
        self.slope = min(max(0.0, slope), self._xy / self._xx)
        self.fixed = max(0.0, (self._y - self.slope * self._x) / self._n)
