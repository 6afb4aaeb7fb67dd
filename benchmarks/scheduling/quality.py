"""a_max and imbalance of every policy over many dispatches of one trace, beside the optimum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from benchmarks.scheduling.optimum import least_a_max, least_imbalance
from benchmarks.scheduling.routing import Ids, Trace, seeded

from janus.core.placement import Placement
from janus.core.scheduling import Assignment, Scheduler
from janus.model.kernels.scheduling import fastest_scheduler

#: From the least to the most that is done about a_max.
POLICIES = ("static", "random", "token-balanced", "aebs-greedy", "aebs")


class NotOptimalError(AssertionError):
    """A choice that claims to be the best possible is not, or a policy beats the optimum: a bug, not a result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How many batches are drawn per case, by batch size, and of how many the optimum is found a second way."""

    batches: dict[int, int]
    check_every: int


@dataclass(slots=True)
class _Tally:
    """Sums over the launches of one case."""

    launches: int = 0
    optimum: int = 0
    activated: int = 0
    proven: int = 0
    repairs: int = 0
    repaired: int = 0
    most_repairs: int = 0
    checked: int = 0
    #: Imbalance of aebs above the least possible, over the checked launches.
    excess_imbalance: int = 0
    a_max: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0))
    imbalance: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0))
    optimal: dict[str, int] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0))
    tokens: dict[str, float] = field(default_factory=lambda: dict.fromkeys(POLICIES, 0.0))


def measure(trace: Trace, instances: Sequence[int], effort: Effort) -> list[dict[str, Any]]:
    """Return one case per batch size and number of instances. All of them see the same batches.

    Raises:
        NotOptimalError: see there.
    """
    schedulers = {name: fastest_scheduler(name) for name in POLICIES}
    placements = {n: trace.placement(n) for n in instances}
    random = seeded("batches", trace.shape, trace.routing)
    cases = []
    for size, batches in effort.batches.items():
        tallies = {n: _Tally() for n in instances}
        drawn = [trace.batch(random, size) for _ in range(batches)]
        # One placement after the other: a scheduler lays out its tables anew when the placement changes.
        for n, placement in placements.items():
            for index, ids_LBK in enumerate(drawn):
                for layer, ids_BK in enumerate(ids_LBK):
                    _launch(tallies[n], schedulers, ids_BK, placement, layer, check=index % effort.check_every == 0)
        cases += [_case(trace, size, placement, tallies[n]) for n, placement in placements.items()]
    return cases


def _launch(
    tally: _Tally, schedulers: dict[str, Scheduler], ids_BK: Ids, placement: Placement, layer: int, *, check: bool
) -> None:
    tally.launches += 1
    best = 0
    for name in reversed(POLICIES):  # aebs first: it says what the optimum is
        result = schedulers[name](ids_BK, placement, layer)
        a_max = result.a_max
        if name == "aebs":
            best = a_max if result.proven else _least(ids_BK, placement, layer)
            _count(tally, result, best)
            if check:
                _check(tally, result, ids_BK, placement, layer)
        if a_max < best:
            raise NotOptimalError(f"{name} has an a_max of {a_max}, below what is proven to be the least, {best}")
        tally.a_max[name] += a_max
        tally.imbalance[name] += a_max - int(result.load.min())
        tally.optimal[name] += a_max == best
        if check:
            of_instance = np.bincount(result.phys_ids.ravel() // placement.slots_per_instance)
            tally.tokens[name] += of_instance.max() * placement.num_instances / ids_BK.size


def _count(tally: _Tally, result: Assignment, best: int) -> None:
    tally.optimum += best
    tally.activated += result.activated
    tally.proven += bool(result.proven)
    tally.repairs += result.repairs
    tally.repaired += result.repairs > 0
    tally.most_repairs = max(tally.most_repairs, result.repairs)


def _check(tally: _Tally, result: Assignment, ids_BK: Ids, placement: Placement, layer: int) -> None:
    """Find the optimum the other way."""
    least = _least(ids_BK, placement, layer)
    if result.a_max != least:
        raise NotOptimalError(f"aebs has an a_max of {result.a_max} (proven: {result.proven}), matching finds {least}")
    experts, first = np.unique(ids_BK, return_index=True)
    chosen = result.phys_ids.ravel()[first] // placement.slots_per_instance
    tally.checked += 1
    possible = least_imbalance(_hosts(placement, layer, experts), chosen.tolist(), placement.num_instances)
    tally.excess_imbalance += result.a_max - int(result.load.min()) - possible


def _least(ids_BK: Ids, placement: Placement, layer: int) -> int:
    return least_a_max(_hosts(placement, layer, np.unique(ids_BK)), placement.num_instances)


def _hosts(placement: Placement, layer: int, experts: npt.NDArray[np.int32]) -> list[tuple[int, ...]]:
    return [placement.hosts(layer, expert) for expert in experts.tolist()]


def _case(trace: Trace, size: int, placement: Placement, tally: _Tally) -> dict[str, Any]:
    def mean(total: float, count: int) -> float:
        return round(total / count, 4)

    return {
        "shape": trace.shape.name,
        "routing": trace.routing,
        "instances": placement.num_instances,
        "slots": placement.slots_per_instance,
        "batch": size,
        "draws": tally.launches,
        "activated": mean(tally.activated, tally.launches),
        "optimum": mean(tally.optimum, tally.launches),
        "a_max": {name: mean(total, tally.launches) for name, total in tally.a_max.items()},
        "imbalance": {name: mean(total, tally.launches) for name, total in tally.imbalance.items()},
        "optimal_share": {name: mean(total, tally.launches) for name, total in tally.optimal.items()},
        "token_imbalance": {name: mean(total, tally.checked) for name, total in tally.tokens.items()},
        "proven": mean(tally.proven, tally.launches),
        "repairs": mean(tally.repairs, tally.launches),
        "repaired": mean(tally.repaired, tally.launches),
        "most_repairs": tally.most_repairs,
        "checked": tally.checked,
        "imbalance_least": round(tally.imbalance["aebs"] / tally.launches - tally.excess_imbalance / tally.checked, 4),
    }
