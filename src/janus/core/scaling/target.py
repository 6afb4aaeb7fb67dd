"""The fewest instances that bear a demand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from janus.core.scaling.contract import Counts, Observation, Prediction
from janus.core.scaling.demand import Demand

#: What is strained by so little more counts as equal.
_AS_GOOD = 1.03


class Outlook(Protocol):
    """What numbers of instances are expected to do under one demand, held to one SLO."""

    @property
    def demand(self) -> Demand:
        """The demand."""

    def strain(self, counts: Counts) -> float:
        """How much of what ``counts`` can bear the demand is: at most 1, or it is too much. Falls with either number.

        Infinite: they could not keep up, and by how much is not known.
        """

    def predict(self, counts: Counts) -> Prediction:
        """The steady state; TPOT is infinite where there is none that the instances have room for."""


class Model(Protocol):
    """Expectations, and how they follow what is observed."""

    @property
    def name(self) -> str:
        """Where it is from: "learned", or a profile."""

    @property
    def correction(self) -> float:
        """What its own step times are multiplied by to meet those that were observed."""

    def learn(self, seen: Observation, demand: Demand, dt: float) -> None:
        """Take in what clients saw during ``dt`` seconds, from a cluster that did not change meanwhile."""

    def outlook(self, demand: Demand, *, slo_s: float, most: Counts, streams_most: int) -> Outlook:
        """Return what to expect under ``demand`` of at most ``most`` instances, of ``streams_most`` streams each.

        And of one more of either role: where the bounds are reached, it is said which would be needed.
        """


def bears(outlook: Outlook, counts: Counts) -> bool:
    """Whether ``counts`` bear the demand within all limits."""
    return outlook.strain(counts) <= 1.0


def as_good_as(outlook: Outlook, low: Counts, most: Counts) -> Counts:
    """Return the fewest instances between ``low`` and ``most`` that come as near to bearing it as ``most`` do."""
    enough = _AS_GOOD * outlook.strain(most)
    if math.isinf(enough):
        return most
    return fewest(lambda counts: outlook.strain(counts) <= enough, low, most) or most


def fewest(enough: Callable[[Counts], bool], low: Counts, high: Counts) -> Counts | None:
    """Return the fewest instances between ``low`` and ``high`` that are enough; ``None`` when not even ``high`` are.

    More of one role never ask for more of the other, so the border between enough and too few is a staircase that is
    walked down once: as many questions as there are rows and columns. Of equals, that with fewer attention instances.
    """
    best: Counts | None = None
    experts = high.experts
    for attention in range(low.attention, high.attention + 1):
        if best is not None and attention + low.experts >= best.total:
            break
        found = Counts(attention=attention, experts=experts)
        if not enough(found):
            continue
        while experts > low.experts and enough(Counts(attention=attention, experts=experts - 1)):
            experts -= 1
        found = Counts(attention=attention, experts=experts)
        if best is None or found.total < best.total:
            best = found
    return best
