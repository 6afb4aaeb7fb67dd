"""Janus and the systems that it is compared with, each with an a_max table of its own placement and scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from benchmarks.paper import published
from benchmarks.paper.routing import OURS, Effort, Policies, Routing, table_of

from janus.core.exchange_routes import MODES
from janus.core.planning.activation import AMaxTable
from janus.core.planning.baselines import (
    BASELINES,
    MONOLITHIC,
    MONOLITHIC_SIZES,
    Offer,
    Setting,
    System,
    separate,
    whole_model,
)
from janus.core.planning.catalog import named
from janus.core.planning.hardware import HardwareProfile
from janus.core.planning.memory import most_slots
from janus.core.planning.performance import AMax, Load
from janus.core.planning.sizes import ModelSizes

#: Those of the paper's section 5.
MODELS = ("DeepSeek-V2", "Qwen3-235B-A22B", "Scaled-DS-1", "Scaled-DS-2")
#: Batches that a_max is estimated at.
SIZES = (1, 4, 16, 32, 64, 128, 256, 512, 1024)
#: Expert instances beyond the fewest that hold the model; a_max is interpolated over 1 / n between them.
_LARGER = (8, 9, 10, 12, 14, 16, 20, 24, 32, 48, 64)
#: Devices that a system may use: the most that figure 8's monolithic ones have.
MOST = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class EvenShares:
    """An ``AMax`` of systems without spare replicas: with every number of instances, other slots per instance."""

    tables: Mapping[int, AMaxTable]

    def __call__(self, experts: int, batch: float) -> float:
        """See ``janus.core.planning.performance.AMax``."""
        found: float = self.tables[experts](experts, batch)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What all systems are compared in."""

    profile: HardwareProfile
    routing: Routing
    effort: Effort

    def setting(self, system: System, model: str) -> Setting:
        """Return what ``system`` is asked about ``model``."""
        sizes = sizes_of(model)
        slots = most_slots(sizes, self.profile.device(), rows=SIZES[-1])
        policies = Policies(system.placement, system.scheduler)
        spare = system.name not in {MONOLITHIC.name, ONE_DEGREE.name}
        a_max = _a_max(model, self.routing, policies, slots if spare else 0, self.effort)
        return Setting(model=sizes, profile=self.profile, device=self.profile.device(), a_max=a_max, slots=slots)


@cache
def _a_max(model: str, routing: Routing, policies: Policies, slots: int, effort: Effort) -> AMax:
    """Return the tables of a system; ``slots`` 0 = an even share, whole models."""
    sizes = sizes_of(model)
    if slots:
        first = -(-sizes.experts // slots)
        instances = (*range(first, first + 4), *(n for n in _LARGER if n >= first + 4))
        return table_of(sizes, routing, policies, slots=slots, instances=instances, sizes=SIZES, effort=effort)
    tables = {
        n: table_of(sizes, routing, policies, slots=-(-sizes.experts // n), instances=(n,), sizes=SIZES, effort=effort)
        for n in MONOLITHIC_SIZES
    }
    return EvenShares(tables=tables)


@cache
def sizes_of(model: str) -> ModelSizes:
    """Return the sizes of a model in bfloat16."""
    return named(model, dtype="bfloat16")


def _janus(setting: Setting, load: Load, most: int) -> Iterator[Offer]:
    for experts in range(setting.least_experts, most):
        for attention in range(1, most - experts + 1):
            yield separate("janus", setting, load, attention=attention, experts=experts)


def _one_degree(setting: Setting, load: Load, most: int) -> Iterator[Offer]:
    for devices in MONOLITHIC_SIZES:
        if devices <= most:
            yield whole_model(setting, load, devices=devices, widths=(devices,))


JANUS = System(name="janus", placement=OURS.placement, scheduler=OURS.scheduler, modes=MODES, offers=_janus)
#: Whole models whose attention and experts have one degree of parallelism, as the paper's section 2 has them: attention
#: tensor-parallel over all devices that the experts are spread over.
ONE_DEGREE = replace(MONOLITHIC, name="one-degree", offers=_one_degree)
SYSTEMS: dict[str, System] = {"janus": JANUS, **BASELINES, ONE_DEGREE.name: ONE_DEGREE}


def load_of(batch: float) -> Load:
    """Return a step of ``batch`` streams, each halfway through the paper's mean answer."""
    return Load(batch=batch, context=published.PROMPT + published.ANSWER / 2)
