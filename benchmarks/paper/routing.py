"""Routing whose a_max is the paper's: synthetic, with its parameters fitted to one column of figure 17.

a_max is estimated as ``janus plan`` does (``janus.core.planning.activation``): placed by what the first half of a trace
chose, scheduled batch by batch with tokens of the second. For a fit, placement and scheduler are the paper's: replica
counts and algorithm 3 of its appendix B, and algorithm 1. Noise, ranks and batches are the same for all parameters that
are tried, so that a_max depends on these smoothly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from janus.core.placing import POLICIES
from janus.core.placing.contract import Held, PlacingPolicy, PlacingRequest
from janus.core.placing.policies.activation_aware import algorithm_3
from janus.core.placing.policies.eplb import packed
from janus.core.placing.problem import as_held, problems
from janus.core.planning.activation import AMaxTable, estimate
from janus.core.planning.routing import synthetic_routing
from janus.core.planning.sizes import ModelSizes
from janus.model.kernels.scheduling import fastest_scheduler


def paper_placement(request: PlacingRequest) -> Held:
    """Place as the paper's appendix B does: every expert at least once, replicas by load, algorithm 3 as printed."""
    return as_held([algorithm_3(problem) for problem in problems(replace(request, least_replicas=1))])


def token_balanced_placement(request: PlacingRequest) -> Held:
    """Place as EPLB does for tokens: every expert at least once, replicas by load, hosts even in load."""
    return as_held([packed(problem) for problem in problems(replace(request, least_replicas=1))])


#: Placements by name: Janus's, and those of others.
PLACEMENTS: Mapping[str, PlacingPolicy] = {
    **POLICIES,
    "paper": paper_placement,
    "tokens": token_balanced_placement,
}


@dataclass(frozen=True, slots=True)
class Policies:
    """Who is placed where, and which replica serves."""

    placement: str
    scheduler: str


#: The paper's, and those that Janus uses unless told otherwise.
PAPER = Policies("paper", "aebs-greedy")
OURS = Policies("activation-aware", "aebs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Parameters of ``synthetic_routing``."""

    #: Exponent s of the popularity.
    popularity: float = 0.0
    #: Share of each layer's experts that no token chooses.
    unused: float = 0.0
    #: Topics, and how much they differ in what they prefer.
    clusters: int = 1
    affinity: float = 0.0

    def __str__(self) -> str:
        parts = [f"popularity rank^-{self.popularity:.2f}"]
        if self.unused:
            parts.append(f"{self.unused:.0%} of the experts unused")
        if self.affinity:
            parts.append(f"{self.clusters} topics of affinity {self.affinity:g}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is drawn: tokens of a trace, half of which make the placement; batches of each size and layer."""

    layers: int = 4
    tokens: int = 8192
    draws: int = 16
    seed: int = 0


@lru_cache(maxsize=8)
def trace_of(experts: int, top_k: int, routing: Routing, effort: Effort) -> npt.NDArray[np.uint16]:
    """Return uint16[L, S, K]. With the same effort, all routings have the same noise and ranks."""
    return synthetic_routing(experts, top_k, effort.tokens, layers=effort.layers, seed=effort.seed, **asdict(routing))


def table_of(
    model: ModelSizes,
    routing: Routing,
    policies: Policies,
    *,
    slots: int,
    instances: Sequence[int],
    sizes: Sequence[int],
    effort: Effort,
) -> AMaxTable:
    """Return a_max by instances and batch under ``policies``."""
    return estimate(
        trace_of(model.experts, model.top_k, routing, effort),
        num_experts=model.experts,
        slots=slots,
        instances=instances,
        batches=sizes,
        policy=PLACEMENTS[policies.placement],
        scheduler=fastest_scheduler(policies.scheduler),
        draws=effort.draws,
        layers=effort.layers,
        seed=effort.seed,
    )


def column(table: AMaxTable, instances: int) -> dict[int, float]:
    """Return the means of one number of instances by batch, as they were drawn."""
    row = table.mean[table.instances.index(instances)]
    return {size: float(mean) for size, mean in zip(table.batches, row, strict=True)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Routing and how well it explains the column that it was fitted to."""

    routing: Routing
    #: Instances that the column was taken to be of.
    instances: int
    #: a_max by batch.
    fitted: Mapping[int, float]
    #: Root mean square of log(fitted / published).
    error: float

    def as_json(self) -> dict[str, Any]:
        """Return it as a result file has it."""
        return {
            "instances": self.instances,
            "routing": asdict(self.routing) | {"popularity": round(self.routing.popularity, 4)},
            "fitted": {str(size): round(value, 3) for size, value in self.fitted.items()},
            "error": round(self.error, 4),
        }


def fit(
    model: ModelSizes,
    wanted: Mapping[int, float],
    *,
    instances: int,
    slots: int,
    effort: Effort,
    families: Sequence[Routing] = (Routing(),),
    popularity: tuple[float, float] = (0.0, 2.5),
    steps: int = 9,
) -> Fit:
    """Return the routing whose a_max is nearest to ``wanted``, a_max by batch size, on ``instances``.

    For each of ``families``, ``steps`` steps of a golden-section search look for the best exponent in ``popularity``:
    skew makes every batch activate fewer experts, so the error has one valley.
    """

    def tried(s: float, family: Routing) -> Fit:
        routing = replace(family, popularity=s)
        table = table_of(model, routing, PAPER, slots=slots, instances=(instances,), sizes=tuple(wanted), effort=effort)
        found = {size: value for size, value in column(table, instances).items() if size in wanted}
        squares = [math.log(found[size] / value) ** 2 for size, value in wanted.items()]
        return Fit(routing=routing, instances=instances, fitted=found, error=math.sqrt(sum(squares) / len(squares)))

    return min((_golden(partial(tried, family=each), *popularity, steps) for each in families), key=_error)


def _golden(tried: Callable[[float], Fit], low: float, high: float, steps: int) -> Fit:
    """Return the best of a golden-section search: each step keeps 0.62 of the interval, and one of its inner points."""
    shrink = (math.sqrt(5) - 1) / 2
    inner = [tried(high - shrink * (high - low)), tried(low + shrink * (high - low))]
    for _ in range(steps):
        if inner[0].error <= inner[1].error:
            high = inner[1].routing.popularity
            inner = [tried(high - shrink * (high - low)), inner[0]]
        else:
            low = inner[0].routing.popularity
            inner = [inner[1], tried(low + shrink * (high - low))]
    return min(inner, key=_error)


def _error(fit: Fit) -> float:
    return fit.error
