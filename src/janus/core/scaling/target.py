"""The fewest instances that bear a demand within the SLO: Little's law, streams and KV cache.

With T(B) the TPOT of B streams, the steady state is B = D T(B) for D tokens per second (arXiv 2512.13525, equation 2).
T does not fall with B, so the steady state lies at or below a limit L wherever D T(L) <= L: one step time says whether
numbers of instances will do, and no equation has to be solved for those that will not be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from janus.core.scaling.contract import Counts, Prediction, ScalingConfig
from janus.core.scaling.demand import Demand
from janus.core.scaling.models import StepModel

#: Streams per attention instance where nobody says how many it takes.
_MOST_STREAMS = 4096
_HALVINGS = 40
#: What is strained by so little more counts as equal.
_AS_GOOD = 1.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A demand, and what it must be borne within."""

    model: StepModel
    demand: Demand
    #: Percentile of TPOT over its mean, and the SLO that the percentile is held to.
    tail: float
    slo_s: float
    #: Streams that one attention instance takes, 0 = not known; and the shares of streams and KV cache to plan with.
    streams_most: int
    streams: float
    kv_usage: float

    @classmethod
    def of(
        cls, config: ScalingConfig, model: StepModel, demand: Demand, *, tail: float, slo_s: float, streams_most: int
    ) -> Question:
        """The question with the shares of ``config``."""
        return cls(
            model=model,
            demand=demand,
            tail=tail,
            slo_s=slo_s,
            streams_most=streams_most,
            streams=config.streams,
            kv_usage=config.kv_usage,
        )

    def most_streams(self, counts: Counts) -> float:
        """Streams that fit into the instances: slots of the batch, and KV cache."""
        most = self.streams * counts.attention * (self.streams_most or _MOST_STREAMS)
        if self.demand.kv_share > 0:
            most = min(most, self.kv_usage * counts.attention / self.demand.kv_share)
        return most

    def bears(self, counts: Counts) -> bool:
        """Whether ``counts`` bear the demand within all limits."""
        return self.strain(counts) <= 1.0

    def strain(self, counts: Counts) -> float:
        """How much of what ``counts`` can bear the demand is: at most 1, or it is too much."""
        demand = self.demand
        if not demand.tokens_s > 0:
            return 0.0
        limit = min(demand.tokens_s * self.slo_s / self.tail, self.most_streams(counts))
        step = self.model.step_s(counts, max(1.0, limit), demand)
        # Below one stream there is now and then one, alone: it is in time, or it is not.
        return step * self.tail / self.slo_s if limit < 1.0 else demand.tokens_s * step / limit

    def predict(self, counts: Counts) -> Prediction:
        """The steady state of ``counts``; TPOT is infinite where there is none that the instances have room for."""
        demand, most = self.demand, max(1.0, self.most_streams(counts) / min(self.streams, self.kv_usage))

        def step(batch: float) -> float:
            return self.model.step_s(counts, max(1.0, batch), demand)

        if demand.tokens_s * step(most) > most:
            return Prediction(counts=counts, tpot_mean_s=math.inf, tpot_tail_s=math.inf, batch=most)
        low, high = 0.0, most
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if demand.tokens_s * step(middle) <= middle else (middle, high)
        tpot = step(high)
        return Prediction(counts=counts, tpot_mean_s=tpot, tpot_tail_s=tpot * self.tail, batch=high)


def as_good_as(question: Question, low: Counts, most: Counts) -> Counts:
    """Return the fewest instances between ``low`` and ``most`` that come as near to bearing it as ``most`` do."""
    enough = _AS_GOOD * question.strain(most)
    return fewest(lambda counts: question.strain(counts) <= enough, low, most) or most


def fewest(bears: Callable[[Counts], bool], low: Counts, high: Counts) -> Counts | None:
    """Return the fewest instances between ``low`` and ``high`` that bear it; ``None`` when not even ``high`` does.

    More of one role never ask for more of the other, so the border between enough and too few is a staircase that is
    walked down once: as many questions as there are rows and columns. Of equals, that with fewer attention instances.
    """
    best: Counts | None = None
    experts = high.experts
    for attention in range(low.attention, high.attention + 1):
        if best is not None and attention + low.experts >= best.total:
            break
        found = Counts(attention=attention, experts=experts)
        if not bears(found):
            continue
        while experts > low.experts and bears(Counts(attention=attention, experts=experts - 1)):
            experts -= 1
        found = Counts(attention=attention, experts=experts)
        if best is None or found.total < best.total:
            best = found
    return best
