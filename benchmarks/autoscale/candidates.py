"""Which fixed numbers of instances are worth trying: what the planner has on its frontier, no larger than the peak.

The planner knows a profile; what one instance of each role really gives here, on its share of a core, was measured. As
in the autoscaler, a cluster whose steps take c times as long as the profile says settles where the planner's does under
c times the rate, held to an SLO of 1 / c.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from janus.core.planning.activation import AMaxTable, estimate
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.host import Host
from janus.core.planning.performance import Deployment, Load, step_time
from janus.core.planning.plan import Problem
from janus.core.planning.pricing import planes
from janus.core.planning.routing import synthetic_routing
from janus.core.planning.sizes import ModelSizes
from janus.core.planning.steady import Traffic

#: Tokens of synthetic routing, in which all experts are alike.
_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Numbers of instances, and the TPOT that the planner expects of them at the percentile."""

    attention: int
    experts: int
    tpot_s: float

    @property
    def total(self) -> int:
        """Instances."""
        return self.attention + self.experts


def apart(profile: HardwareProfile) -> HardwareProfile:
    """Return ``profile`` as if every instance had a device of its own, which is what a quota gives it."""
    devices = {name: replace(device, shared_cores=0) for name, device in profile.devices.items()}
    return replace(profile, devices=devices, host=Host())


def correction(model: ModelSizes, profile: HardwareProfile, *, streams: float, context: float, tpot_s: float) -> float:
    """Return how many times as long as ``profile`` says a step of ``streams`` takes on one of each."""
    device = profile.device()
    one = Deployment(attention=1, experts=1, attention_device=device, expert_device=device)
    load = Load(batch=streams, context=context)
    return tpot_s / step_time(model, profile, one, load, a_max=_table(model, 1)).total_s


def priced(
    peak: tuple[int, int], model: ModelSizes, profile: HardwareProfile, traffic: Traffic, *, slo_s: float, factor: float
) -> list[Candidate]:
    """Return all numbers up to ``peak``, with what the planner expects of them under ``traffic``.

    ``profile`` is of devices of their own (``apart``); ``factor`` is its ``correction``.
    """
    found = []
    for experts in range(1, peak[1] + 1):
        problem = Problem(
            model=model,
            profile=profile,
            slo_tpot_s=slo_s / factor,
            percentile=99.0,
            traffic=traffic.times(factor),
            slots=-(-model.experts // experts),
            most_attention=peak[0],
            most_experts=experts,
            a_max=lambda _, experts=experts: _table(model, experts),
        )
        plane = next(planes(problem))
        found += [
            Candidate(attention=a + 1, experts=experts, tpot_s=factor * float(plane.tpot_tail_s[a, -1]))
            for a in range(peak[0])
        ]
    return found


def frontier(every: Sequence[Candidate], peak: tuple[int, int], *, slo_s: float, most: int) -> list[tuple[int, int]]:
    """Return up to ``most`` numbers to try: the peak's, and those of the frontier next to where the SLO is just kept.

    On the frontier is what no other numbers with as few instances are quicker than. The cheapest that should keep the
    SLO come first, and the dearest that should not is among them: expectations err.
    """
    best: dict[int, Candidate] = {}
    for each in sorted(every, key=lambda one: (one.total, one.tpot_s)):
        if all(other.tpot_s > each.tpot_s for other in best.values()):
            best.setdefault(each.total, each)
    enough = [each for each in best.values() if each.tpot_s <= slo_s]
    short = [each for each in best.values() if each.tpot_s > slo_s]
    chosen = [peak]
    for each in (*enough[:1], *short[-1:], *enough[1:], *reversed(short[:-1])):
        counts = (each.attention, each.experts)
        if counts not in chosen and len(chosen) < most:
            chosen.append(counts)
    return chosen


@lru_cache
def _table(model: ModelSizes, experts: int) -> AMaxTable:
    ids = synthetic_routing(model.experts, model.top_k, _TOKENS)
    slots = -(-model.experts // experts)
    return estimate(ids, num_experts=model.experts, slots=slots, instances=(experts,), policy="static", draws=8)
