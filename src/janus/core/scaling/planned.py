"""Expectations of the planner: the search of ``janus.core.planning`` on a profile, corrected by what is observed.

Where TPOT is c times what the profile says, c is taken to be the same at other sizes until it is observed there. A
cluster whose steps take c T(B) settles where B = (c D) T(B): so the planner is asked about c times the rate, and held
to an SLO of 1 / c. A wrong profile converges that way, and one for other hardware is only of little use, not harmful.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from janus.core.exchange_routes import MODES, Mode
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.performance import AMax
from janus.core.planning.plan import Problem
from janus.core.planning.plane import Plane
from janus.core.planning.pricing import planes
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.steady import Traffic
from janus.core.scaling.contract import Counts, Observation, Prediction, ScalingConfig
from janus.core.scaling.demand import Demand
from janus.core.scaling.factor import Factor

#: A profile that is further off than this describes other hardware.
_LEAST_FACTOR, _MOST_FACTOR = 0.05, 20.0


class PlannedModel:
    """A ``Model`` of a profile. ``problem`` is the question with everything but the load: model, profile, C, kinds.

    Its traffic stands for nothing, and the bounds of its search are those of the autoscaler.
    """

    def __init__(self, problem: Problem) -> None:
        """The problem's SLO and percentile are the autoscaler's."""
        self.name = problem.profile.name
        self._problem = problem
        self._factor = Factor(_LEAST_FACTOR, _MOST_FACTOR)

    @classmethod
    def of(
        cls,
        config: ScalingConfig,
        *,
        model: ModelSizes,
        profile: HardwareProfile,
        slots: int,
        a_max: Callable[[int], AMax],
        attention_devices: Sequence[str] = (),
        expert_devices: Sequence[str] = (),
        tensor_parallel: int = 1,
        micro_batches: int = 1,
        modes: Sequence[Mode] = MODES,
    ) -> PlannedModel:
        """Return the model of a cluster that is held to ``config``.

        Args:
            slots: C of its expert instances.
            a_max: tables by C.
            attention_devices: what it runs on, by name; none = the profile's first.
            expert_devices: likewise.
            tensor_parallel: devices of each attention instance.
            micro_batches: that take turns.
            modes: ways to exchange that it has.
        """
        problem = Problem(
            model=model,
            profile=profile,
            slo_tpot_s=config.slo_tpot_s,
            # Below the median a percentile is no tail: the mean is what is planned for.
            percentile=config.percentile if config.percentile >= 50 else 0.0,
            batch=1.0,
            slots=slots,
            a_max=a_max,
            attention_devices=attention_devices,
            expert_devices=expert_devices,
            tensor_parallel=(tensor_parallel,),
            micro_batches=(micro_batches,),
            modes=modes,
        )
        return cls(problem)

    def use_a_max(self, tables: Callable[[int], AMax]) -> None:
        """Expect the router to choose as it did lately: tables by C, slots per instance and layer."""
        self._problem = replace(self._problem, a_max=tables)

    @property
    def correction(self) -> float:
        """See ``Model.correction``."""
        return self._factor.value

    def learn(self, seen: Observation, demand: Demand, dt: float) -> None:
        """See ``Model.learn``."""
        del dt
        if seen.tpot_mean_s and seen.running > 0 and demand.tokens_s > 0 and seen.present.experts:
            # Of the batch that there is, whatever rate has led to it.
            expected = self._at_batch(seen.present, max(1.0, seen.running), demand)
            self._factor.learn(seen.tpot_mean_s, expected)

    def outlook(self, demand: Demand, *, slo_s: float, most: Counts, streams_most: int) -> PlannedOutlook:
        """See ``Model.outlook``."""
        problem = replace(
            self._problem,
            slo_tpot_s=slo_s / self.correction,
            batch=0.0,
            # At the bounds it is still asked which role more would be needed of.
            most_attention=most.attention + 1,
            most_experts=most.experts + 1,
            max_running=streams_most or self._problem.max_running,
            traffic=Traffic(
                requests_s=self.correction * demand.tokens_s / max(1.0, demand.output_tokens),
                prompt_tokens=demand.prompt_tokens,
                output_tokens=max(1.0, demand.output_tokens),
            ),
        )
        return PlannedOutlook(
            demand=demand, slo_s=slo_s, correction=self.correction, problem=problem, plane=next(planes(problem))
        )

    def _at_batch(self, counts: Counts, batch: float, demand: Demand) -> float:
        problem = replace(
            self._problem,
            traffic=None,
            batch=batch,
            context=demand.context,
            most_attention=counts.attention,
            most_experts=counts.experts,
        )
        return float(next(planes(problem)).tpot_s[-1, -1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOutlook:
    """See ``Outlook``."""

    demand: Demand
    slo_s: float
    correction: float
    problem: Problem
    plane: Plane

    def strain(self, counts: Counts) -> float:
        """See ``Outlook.strain``."""
        if not self.demand.tokens_s > 0:
            return 0.0
        at = counts.attention - 1, counts.experts - 1
        tails = self.plane.tpot_tail_s if self.problem.percentile else self.plane.tpot_s
        strain = self.correction * float(tails[at]) / self.slo_s
        # Where something else is wanting, room for streams or slots, TPOT may be short enough and is not what counts.
        return min(1.0, strain) if self.plane.feasible[at] else max(strain, math.nextafter(1.0, 2.0))

    def predict(self, counts: Counts) -> Prediction:
        """See ``Outlook.predict``."""
        plane, at = self.plane, (counts.attention - 1, counts.experts - 1)
        tails = plane.tpot_tail_s if self.problem.percentile else plane.tpot_s
        return Prediction(
            counts=counts,
            tpot_mean_s=self.correction * float(plane.tpot_s[at]),
            tpot_tail_s=self.correction * float(tails[at]),
            batch=float(plane.batch[at]),
        )
